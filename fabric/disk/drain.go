package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	drainName  = "drained" // of the file, beside the format's; none: the node is not being drained
	drainStart = "vmfabric drained "
)

// drainFile is in the state directory itself.
func (s *Store) drainFile() string { return filepath.Join(filepath.Dir(s.dir), drainName) }

// Drained implements [fabric.Store]. That the file is there counts, also
// where a power cut has left nothing in it; the time is then that of the file.
func (s *Store) Drained(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := s.drainFile()
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	text, _ := strings.CutPrefix(strings.TrimSpace(string(content)), drainStart)
	since, err := time.Parse(time.RFC3339Nano, text)
	if err == nil && !since.IsZero() {
		return since, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}, fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	return info.ModTime(), nil
}

// SetDrained implements [fabric.Store]. It is safe on the disk when it
// returns nil; after an error it is as it was, or as it was to be.
func (s *Store) SetDrained(ctx context.Context, since time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isShut {
		return fmt.Errorf("state: %w", fs.ErrClosed)
	}
	path := s.drainFile()
	dir := filepath.Dir(path)
	var err error
	if since.IsZero() {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		err = cmp.Or(err, s.sync(dir))
	} else {
		temp := filepath.Join(dir, tempStart+drainName)
		os.Remove(temp) // of one who was killed
		err = writeFile(temp, path, []byte(drainStart+since.UTC().Format(time.RFC3339Nano)+"\n"), os.Rename)
		err = cmp.Or(err, s.sync(path), s.sync(dir))
	}
	if err != nil {
		return fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	return nil
}
