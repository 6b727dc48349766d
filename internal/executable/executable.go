// Package executable writes programs that are run at once.
package executable

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
)

// Write writes a script or another program, executable by all and writable only by
// its owner. This process forks no other meanwhile: a child would hold the file
// open for writing until it runs its own program, and until then the kernel would
// refuse to run the written one (ETXTBSY, execve(2)).
func Write(path string, content []byte) error { return Copy(path, bytes.NewReader(content)) }

// Copy is [Write] for content from a reader.
func Copy(path string, from io.Reader) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
