package plugins

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"sync"
)

// longestLine of what a plugin prints, in bytes; the rest makes another line.
const longestLine = 4096

// eachLine calls f with each line that is not empty, until r ends.
func eachLine(r io.Reader, f func(line string)) {
	b := bufio.NewReaderSize(r, longestLine)
	for {
		line, err := b.ReadSlice('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			f(string(line))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// lineWriter logs what a plugin prints through go-plugin, which comes in pieces.
type lineWriter struct {
	log *slog.Logger

	mu   sync.Mutex
	part []byte // of a line that has no end yet
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part = append(w.part, b...)
	end := bytes.LastIndexByte(w.part, '\n') + 1
	if end == 0 && len(w.part) >= longestLine {
		end = len(w.part)
	}
	eachLine(bytes.NewReader(w.part[:end]), func(line string) { w.log.Info(line) })
	w.part = append(w.part[:0], w.part[end:]...)
	return len(b), nil
}
