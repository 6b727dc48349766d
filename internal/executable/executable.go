// Package executable writes programs that are to run at once.
package executable

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
)

// Write writes a script or another program, executable by all and writable by its
// owner alone. No process is forked meanwhile: one that another goroutine starts
// would hold the file open for writing until it runs its own program, and as long
// as that is so the kernel runs this one for nobody (ETXTBSY, execve(2)).
func Write(path string, content []byte) error { return Copy(path, bytes.NewReader(content)) }

// Copy is [Write] for what comes from a reader.
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
