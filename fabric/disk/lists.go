package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vmfabric/vmfabric/fabric"
)

// The lists of a node, each a file in the state directory itself.
var (
	movesList = list{"moves.json", "reports of moves"}
	goneList  = list{"gone.json", "guests whose addresses are to be given back"}
	// blackholesList has addresses to which packets are discarded for a time.
	blackholesList = list{"blackholes.json", "blackholes"}
)

// list is a file with a list, and what it is for people.
type list struct{ file, what string }

// KeptMoves implements [fabric.Store].
func (n *nodeFiles) KeptMoves(ctx context.Context) (moves []fabric.Move, err error) {
	return moves, n.read(ctx, movesList, &moves)
}

// KeepMoves implements [fabric.Store].
func (n *nodeFiles) KeepMoves(ctx context.Context, moves []fabric.Move) error {
	return n.write(ctx, movesList, moves)
}

// KeptGone implements [fabric.Store].
func (n *nodeFiles) KeptGone(ctx context.Context) (guests []fabric.VM, err error) {
	return guests, n.read(ctx, goneList, &guests)
}

// KeepGone implements [fabric.Store].
func (n *nodeFiles) KeepGone(ctx context.Context, guests []fabric.VM) error {
	return n.write(ctx, goneList, guests)
}

// KeptBlackholes implements [fabric.Store].
func (n *nodeFiles) KeptBlackholes(ctx context.Context) (all []fabric.Blackhole, err error) {
	return all, n.read(ctx, blackholesList, &all)
}

// KeepBlackholes implements [fabric.Store].
func (n *nodeFiles) KeepBlackholes(ctx context.Context, all []fabric.Blackhole) error {
	return n.write(ctx, blackholesList, all)
}

// read reads a list; nothing if nobody has written it.
func (n *nodeFiles) read(ctx context.Context, l list, into any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	path := filepath.Join(n.dir, l.file)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w; %s", l.what, err, remedy(err))
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("%s in %s: damaged (%v); remove the file", l.what, path, err)
	}
	return nil
}

// write replaces a list. It does not wait for the disk: a power cut may take the last
// change, of reports for people, or of addresses that somebody can release by hand.
func (n *nodeFiles) write(ctx context.Context, l list, all any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	content, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", l.what, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if isClosed(n.closed) {
		return fmt.Errorf("%s: %w", l.what, fs.ErrClosed)
	}
	path, temp := filepath.Join(n.dir, l.file), filepath.Join(n.dir, tempStart+l.file)
	os.Remove(temp) // of a writer that was killed
	if err := writeFile(temp, path, append(content, '\n'), os.Rename); err != nil {
		return fmt.Errorf("%s: %w; %s", l.what, err, remedy(err))
	}
	return nil
}
