package libvirt

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// managed is the first version of libvirt that knows the attribute managed of an
// interface's <target>: with managed='no', the interface is there already.
const managed = 5_007_000

// Examination is what a libvirt says of itself.
type Examination struct {
	Daemon  string // libvirtd or virtqemud
	Socket  string
	Version string // "9.0.0"
	Managed bool   // it knows managed='no' of an interface's <target>
	// Hook says why it does not call the fabric's hook, and the way out; empty: it does,
	// or that is not known.
	Hook string
}

// Examine asks the libvirt of this node what a node needs to know of it, on a connection
// of its own if [Source.Run] has none. The error is [fs.ErrNotExist] if there is none.
func (s *Source) Examine(ctx context.Context) (Examination, error) {
	ctx, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return Examination{}, err
	}
	defer release()
	if err := c.Ping(ctx); err != nil {
		return Examination{}, unreachable(c.path, err)
	}
	v := c.version.Load()
	hook, _ := s.lookAtHook(c)
	return Examination{
		Daemon: daemonOf(c.path), Socket: c.path, Hook: hook, Managed: v >= managed,
		Version: fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1_000%1_000, v%1_000),
	}, nil
}

// HookFault says what is wrong with the hook's file in a directory of hooks, below a
// root directory, for a libvirt that does not run. It is empty if there is one.
func HookFault(root, dir, daemon string) (string, error) {
	h := hookState{dir: dir, daemon: daemon, dropIns: true, started: time.Now(), known: true}
	var err error
	if h.files, err = hookFiles(root, dir); err != nil {
		return "", fmt.Errorf("libvirt: %w", err)
	}
	for _, f := range h.files {
		if f.path == filepath.Join(dir, "qemu") && f.executable {
			return "", nil // enough for a libvirt older than 6.5, and it may call the fabric's
		}
	}
	return h.problem(), nil
}
