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

const movesName = "moves.json" // the file, in the state directory itself

func (n *nodeFiles) movesFile() string { return filepath.Join(n.dir, movesName) }

// KeptMoves implements [fabric.Store].
func (n *nodeFiles) KeptMoves(ctx context.Context) ([]fabric.Move, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	content, err := os.ReadFile(n.movesFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reports of moves: %w; %s", err, remedy(err))
	}
	var moves []fabric.Move
	if err := json.Unmarshal(content, &moves); err != nil {
		return nil, fmt.Errorf("reports of moves in %s: damaged (%v); remove the file", n.movesFile(), err)
	}
	return moves, nil
}

// KeepMoves implements [fabric.Store]. It does not wait for the disk: reports are
// for people, and a power cut may take the last ones.
func (n *nodeFiles) KeepMoves(ctx context.Context, moves []fabric.Move) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	content, err := json.MarshalIndent(moves, "", "  ")
	if err != nil {
		return fmt.Errorf("reports of moves: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if isClosed(n.closed) {
		return fmt.Errorf("reports of moves: %w", fs.ErrClosed)
	}
	path := n.movesFile()
	temp := filepath.Join(filepath.Dir(path), tempStart+movesName)
	os.Remove(temp) // of a writer that was killed
	if err := writeFile(temp, path, append(content, '\n'), os.Rename); err != nil {
		return fmt.Errorf("reports of moves: %w; %s", err, remedy(err))
	}
	return nil
}
