package plugins

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestOutputAfterItsDeadline: what is in the pipe is read, also by one who had no
// turn before, and it ends although somebody holds the other end.
func TestOutputAfterItsDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_, err = w.WriteString("last words\nof two lines\n")
	require.NoError(t, err)
	require.NoError(t, r.SetReadDeadline(time.Now().Add(-time.Second)))
	var lines []string
	eachLine(&output{f: r}, func(line string) { lines = append(lines, line) })
	assert.Equal(t, []string{"last words", "of two lines"}, lines)

	// One who goes on writing is not read for ever.
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}()
	read, err := io.Copy(io.Discard, &output{f: r})
	assert.LessOrEqual(t, read, int64(mostLeft+1<<20))
	if err != nil {
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	r.Close()
	<-stop
}
