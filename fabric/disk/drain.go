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
	drainName  = "drained" // the file, beside the format's; none: the node is not being drained
	drainStart = "vmfabric drained "
)

// drainFile returns the file's path, in the state directory itself.
func (n *nodeFiles) drainFile() string { return filepath.Join(n.dir, drainName) }

// Drained implements [fabric.Store]. An existing file counts, even if a power cut
// has left it empty; the time is then the file's.
func (n *nodeFiles) Drained(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	path := n.drainFile()
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

// SetDrained implements [fabric.Store]. The change is safe on the disk when
// SetDrained returns nil. After an error it may or may not be in effect.
func (n *nodeFiles) SetDrained(ctx context.Context, since time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if isClosed(n.closed) {
		return fmt.Errorf("state: %w", fs.ErrClosed)
	}
	path := n.drainFile()
	dir := filepath.Dir(path)
	var err error
	if since.IsZero() {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		err = cmp.Or(err, n.sync(dir))
	} else {
		temp := filepath.Join(dir, tempStart+drainName)
		os.Remove(temp) // of a writer that was killed
		err = writeFile(temp, path, []byte(drainStart+since.UTC().Format(time.RFC3339Nano)+"\n"), os.Rename)
		err = cmp.Or(err, n.sync(path), n.sync(dir))
	}
	if err != nil {
		return fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	return nil
}
