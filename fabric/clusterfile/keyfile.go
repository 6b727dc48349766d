package clusterfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"unicode"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/trusted"
)

// maxKey is the longest key that is read, in bytes.
const maxKey = 4096

// keyFile reads the file with the cluster's key that the value names.
func (d *decoder) keyFile(l literal) (string, error) {
	path, shown, err := d.fileOf(l, "the cluster's key")
	if err != nil || d.withoutKey {
		return "", err
	}
	data, err := readSecret(path, "the cluster's key", maxKey)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist; make it once, and copy it to all nodes: (umask 077; head -c 32 /dev/urandom | base64 > %s)", shown, shown)
	case err != nil:
		return "", fmt.Errorf("%s: %w", shown, err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(s) < fabric.MinKey:
		return "", fmt.Errorf("%s holds %d bytes, which can be guessed; make one of at least %d: (umask 077; head -c 32 /dev/urandom | base64 > %s)", shown, len(s), fabric.MinKey, shown)
	case strings.ContainsFunc(s, unicode.IsControl):
		return "", fmt.Errorf("%s has a control character or a second line; make it with (umask 077; head -c 32 /dev/urandom | base64 > %s)", shown, shown)
	}
	return s, nil
}

// readSecret reads a file of at most most bytes that no other user can have read or
// written.
func readSecret(path, what string, most int64) ([]byte, error) {
	// Look at it before opening it: to open a device can trigger it.
	info, err := os.Stat(path)
	if err == nil {
		err = secret(info, what, most)
	}
	if bad, ok := errors.AsType[*trusted.Error](trusted.Check(path)); ok && err == nil { // the folders above it
		err = errors.New(bad.Text())
	}
	if err != nil {
		return nil, plain(err)
	}
	// It may be another file by now: do not wait for the writer of a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, plain(err)
	}
	defer f.Close()
	if info, err = f.Stat(); err == nil {
		err = secret(info, what, most)
	}
	if err != nil {
		return nil, plain(err)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	return data, plain(err)
}

// plain returns an error of the operating system without the path, and with the way
// out.
func plain(err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); !ok {
		return err
	}
	return fmt.Errorf("%w; run this as the file's owner, or correct the path", reason(err))
}

// secret checks that only its owner can read and write a file.
func secret(info fs.FileInfo, what string, most int64) error {
	owner := uint32(0)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = st.Uid
	}
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("not a regular file; name the file with %s", what)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("open to others (mode %04o); run 'chmod 600' on it, and make a new one if they may have read it", info.Mode().Perm())
	case owner != 0 && owner != uint32(os.Geteuid()):
		return fmt.Errorf("belongs to user %d, who can read and change it; run 'chown root' on it, and make a new one if that user may have read it", owner)
	case info.Size() > most:
		return fmt.Errorf("%d bytes; a key has at most %d", info.Size(), most)
	}
	return nil
}
