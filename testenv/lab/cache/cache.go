// Package cache keeps files that labs need again and that are slow to make: kernels,
// images and root file systems of guests.
package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Variable names the environment variable with the directory of the cache. By default
// it is vmfabric-lab in the user's cache directory.
const Variable = "VMFABRIC_LAB_CACHE"

// base returns the directory of the cache, and makes it if it is missing.
func base() (string, error) {
	dir := os.Getenv(Variable)
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no place for the lab's cache: %w; set %s", err, Variable)
		}
		dir = filepath.Join(user, "vmfabric-lab")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Find returns the path of the directory of that name in the cache; ok is false when
// there is none.
func Find(name string) (path string, ok bool) {
	all, err := base()
	path = filepath.Join(all, name)
	return path, err == nil && exists(path)
}

// Dir returns the path of the directory of that name in the cache. If there is
// none, fill makes its files, in a directory that becomes the cached one when fill
// has succeeded. One process fills, others wait.
func Dir(name string, fill func(dir string) error) (string, error) {
	all, err := base()
	if err != nil {
		return "", err
	}
	path := filepath.Join(all, name)
	if exists(path) {
		return path, nil
	}
	lock, err := os.OpenFile(filepath.Join(all, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if exists(path) {
		return path, nil
	}
	tmp, err := os.MkdirTemp(all, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := errors.Join(os.Chmod(tmp, 0o755), fill(tmp)); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Fingerprint returns a short hash of the parts.
func Fingerprint(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d\n", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}
