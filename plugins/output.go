package plugins

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// longestLine is the longest line of a plugin's output, in bytes; the rest makes
// another line.
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

// output reads a pipe until every process has closed its other end. After its
// deadline it reads only what is in the pipe then: the reader may not have had a
// turn before.
type output struct {
	f    *os.File
	late int // bytes that were read after the deadline
}

func (o *output) Read(b []byte) (int, error) {
	n, err := o.f.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) || o.late >= mostLeft {
		return n, err
	}
	raw, err := o.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); cerr != nil {
		return 0, cerr
	}
	if n <= 0 || err != nil { // EAGAIN: it is empty
		return 0, io.EOF
	}
	o.late += n
	return n, nil
}

// transcript logs the output of a process, and keeps the lines that tell why it does
// not work. It is safe for concurrent use.
type transcript struct {
	log     *slog.Logger
	readers sync.WaitGroup

	mu    sync.Mutex
	first string // the first line of standard output, the handshake
	last  string // the last line of standard error, or the one of a panic
}

// readStdout passes on the first line, the handshake, and logs the rest.
func (t *transcript) readStdout(r io.Reader, hello *io.PipeWriter) {
	defer hello.Close()
	first := true
	eachLine(r, func(line string) {
		if !first {
			t.log.Info(line)
			return
		}
		first = false
		t.mu.Lock()
		t.first = line
		t.mu.Unlock()
		_, _ = io.WriteString(hello, line+"\n")
		hello.Close()
	})
}

func (t *transcript) readStderr(r io.Reader) {
	eachLine(r, func(line string) {
		t.mu.Lock()
		if !strings.HasPrefix(t.last, "panic: ") && !strings.HasPrefix(t.last, "fatal error: ") {
			t.last = line
		}
		t.mu.Unlock()
		t.log.Info(line)
	})
}

// lines returns the lines that are kept of the plugin's output.
func (t *transcript) lines() (first, last string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first, t.last
}

// lineWriter logs the output of a plugin that comes through go-plugin, in pieces.
type lineWriter struct {
	log *slog.Logger

	mu   sync.Mutex
	part []byte // a line that has no end yet
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
