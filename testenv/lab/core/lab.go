package core

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// namePrefix begins every name of a lab that is visible outside.
const namePrefix = "vmf-"

// Options are the options of a lab. The zero value is a good one.
type Options struct {
	// Name begins the lab's run id, for people who look at the machine: plain
	// characters, of which at most 16 are used. "lab" when empty.
	Name string
	// NetnsDir is the directory of the named namespaces. By default /run/netns,
	// where `ip netns exec` finds them, or the lab's own directory where /run/netns
	// cannot be written, as in a user namespace.
	NetnsDir string
}

// Lab is a set of hosts, each a network namespace, and the processes in them. Its
// methods can be called concurrently.
type Lab struct {
	id       string
	dir      string
	netnsDir string
	keeper   *keeper

	mu      sync.Mutex
	record  *os.File
	hosts   []*Host // as added
	daemons []*Daemon
	closers []func()
	closed  bool

	underlay underlay
}

// New makes an empty lab. It first removes labs of this user whose owner is dead.
// It needs root, or a user namespace with mounts of its own. ctx bounds the making
// of the lab, not its life: that ends with Close, or with the process.
func New(ctx context.Context, o Options) (*Lab, error) {
	if _, err := daemons.Find(ctx, "umount"); err != nil { // of the programs that the keeper runs, this is one that some systems lack
		return nil, fmt.Errorf("new lab: %w", err)
	}
	l := &Lab{}
	if err := l.makeDir(ctx, o.Name); err != nil {
		return nil, fmt.Errorf("new lab: %w", err)
	}
	var err error
	if l.netnsDir, err = chooseNetnsDir(o.NetnsDir, l.dir); err == nil {
		err = l.note("netns", l.netnsDir)
	}
	if err == nil {
		l.keeper, err = startKeeper(l.dir)
	}
	if err != nil {
		l.record.Close()
		return nil, fmt.Errorf("new lab: %w", errors.Join(err, clean(l.dir)))
	}
	return l, nil
}

// makeDir makes the lab's directory, with the record in it.
func (l *Lab) makeDir(ctx context.Context, name string) error {
	base := baseDir()
	var unfit error // an error that no wait can mend
	err := Until(ctx, func() error {
		err := makeBase(base)
		if err == nil {
			err = l.makeDirBelow(base, name)
		}
		// Another process makes a lab, or the last lab removed the base.
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
			return err
		}
		unfit = err
		return nil
	})
	return errors.Join(unfit, err)
}

func (l *Lab) makeDirBelow(base, name string) error {
	unlock, err := lockBase(base, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return err
	}
	defer unlock()
	// A lab that cannot be swept hinders no new one. Sweep returns the error.
	_, _ = sweep(base)
	by, err := newOrigin()
	if err != nil {
		return err
	}
	for {
		l.id = runID(name)
		l.dir = filepath.Join(base, l.id)
		err := os.Mkdir(l.dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			l.record, err = by.begin(l.dir)
		}
		return err
	}
}

// makeBase makes the base directory, if the last lab removed it.
func makeBase(base string) error {
	// Daemons that do not stay root look for their files in it.
	if err := os.Mkdir(base, 0o755); err == nil {
		if err := os.Chmod(base, 0o755); err != nil { // Mkdir masks the mode by umask
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	return trustBase(base)
}

// runID returns a run id that most likely no other lab has.
func runID(name string) string {
	plain := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return -1
	}, name)
	plain = plain[:min(len(plain), 16)]
	if plain == "" {
		plain = "lab"
	}
	const digits = "0123456789abcdefghijkmnpqrstuvwxyz"
	suffix := make([]byte, 5)
	for i := range suffix {
		suffix[i] = digits[rand.IntN(len(digits))]
	}
	return plain + "-" + string(suffix)
}

// ID returns the run id that is in every name of the lab.
func (l *Lab) ID() string { return l.id }

// Dir returns the lab's directory, which Close removes. Below it each host has one
// of its own ([Host.Dir]).
func (l *Lab) Dir() string { return l.dir }

// Host returns the host of that name, or nil.
func (l *Lab) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.hosts, func(h *Host) bool { return h.name == name })
	if i < 0 {
		return nil
	}
	return l.hosts[i]
}

// Hosts lists the hosts in the order in which they were added.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

// Daemons lists the daemons of the lab in the order in which they were started,
// also those that have ended.
func (l *Lab) Daemons() []*Daemon {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.daemons)
}

// note adds a line to the record.
func (l *Lab) note(kind, what string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("lab %s is closed", l.id)
	}
	if strings.Contains(what, "\n") {
		return fmt.Errorf("%q: a line break in it; choose another name, or another TMPDIR", what)
	}
	_, err := fmt.Fprintf(l.record, "%s %s\n", kind, what)
	return err
}

// OwnTree makes the lab remove directories outside of its own at its end. Call it
// before you make them, so that they go whatever comes between.
func (l *Lab) OwnTree(dirs ...string) error {
	for _, dir := range dirs {
		if err := l.note("tree", dir); err != nil {
			return err
		}
	}
	return nil
}

// OwnProcess makes the lab end a process at its end. The lab finds processes in the
// network namespaces of its hosts by itself. It is no error if the process has
// ended already.
func (l *Lab) OwnProcess(pid int) error {
	p, err := identify(pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.note("process", p.String())
}

// OnClose makes Close call f before it removes anything. The last f is called
// first.
func (l *Lab) OnClose(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

// Close ends every process in the lab, without ceremony, and removes the lab's
// namespaces and files. It returns when they are gone. Further calls do
// nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	hosts, daemons, closers := l.hosts, l.daemons, l.closers
	l.record.Close()
	l.mu.Unlock()

	for _, f := range slices.Backward(closers) {
		f()
	}
	err := l.keeper.release()
	for _, h := range hosts {
		h.close()
	}
	if err != nil {
		return fmt.Errorf("close lab %s: %w", l.id, err)
	}
	for _, d := range daemons {
		<-d.Done()
	}
	return nil
}
