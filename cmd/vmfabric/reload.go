package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// reloader takes a changed cluster file up while the agent runs. It alone changes the
// cluster that the agent and its backends go by, one change at a time.
type reloader struct {
	file string
	load func() (fabric.Cluster, error)
	node string
	now  func() *fabric.Cluster // the cluster that the agent goes by
	take func(fabric.Cluster) error
	log  *slog.Logger

	mu      sync.Mutex
	read    content  // of the file that was read last
	waiting []string // what it says, and the agent does not go by
}

// content tells what a file has from what it had.
type content struct {
	info os.FileInfo // as long as this is the same, the content is, too
	sum  [sha256.Size]byte
}

func contentOf(path string) (v content, err error) {
	if v.info, err = os.Stat(path); err != nil {
		return v, err
	}
	b, err := os.ReadFile(path)
	v.sum = sha256.Sum256(b)
	return v, err
}

// unchanged reports whether a file still has the content of v.
func (v content) unchanged(path string) bool {
	info, err := os.Stat(path)
	if err == nil && v.info != nil && os.SameFile(info, v.info) && info.ModTime().Equal(v.info.ModTime()) && info.Size() == v.info.Size() {
		return true
	}
	is, err := contentOf(path)
	return err == nil && bytes.Equal(is.sum[:], v.sum[:])
}

// hangups gives each SIGHUP of the process, which ends by none from now on, until stop is
// called. One that comes while another waits is the same.
func hangups() (c chan os.Signal, stop func()) {
	c = make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// run reloads at each signal, until ctx ends.
func (r *reloader) run(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		notify(r.log, reloading())
		status := "STATUS="
		if err := r.reload(); err != nil {
			status += oneline.Of(err.Error())
		}
		notify(r.log, daemon.SdNotifyReady+"\n"+status)
	}
}

// reloading tells systemd that a reload begins. A unit of Type=notify-reload (systemd 253)
// needs the time, and one of Type=notify ignores it.
func reloading() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return daemon.SdNotifyReloading
	}
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, t.Nano()/1000)
}

// reload reads the file and takes up what of it can change now. Nothing changes if the
// file has a mistake.
func (r *reloader) reload() error {
	read, _ := contentOf(r.file) // before it is read: a change that comes meanwhile is another one
	next, err := r.load()
	var is fabric.Reload
	if err == nil {
		is, err = r.now().Reload(next, r.node)
	}
	if err != nil {
		err = fmt.Errorf("cluster file not taken up, nothing changes: %w", err)
		r.log.Error("reload", "config", r.file, "err", err)
		r.note(read, strings.Split(err.Error(), "\n"))
		return err
	}
	waiting := is.Waiting
	if len(is.Applied) > 0 {
		if err = r.take(is.Cluster); err != nil {
			err = fmt.Errorf("cluster file taken up in part: %w; reload once more, or restart the agent", err)
			r.log.Error("reload", "config", r.file, "err", err)
			waiting = append(waiting, oneline.Of(err.Error()))
		}
	}
	for _, line := range is.Applied {
		r.log.Info("reload: taken up", "config", r.file, "change", line)
	}
	for _, line := range is.Waiting {
		r.log.Warn("reload: not taken up", "config", r.file, "change", line)
	}
	if len(is.Applied)+len(is.Waiting) == 0 {
		r.log.Info("reload: nothing has changed", "config", r.file)
	}
	r.note(read, waiting)
	return err
}

func (r *reloader) note(read content, waiting []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read, r.waiting = read, waiting
}

// pending lists what the file says and the agent does not go by.
func (r *reloader) pending() []string {
	r.mu.Lock()
	read, waiting := r.read, r.waiting
	r.mu.Unlock()
	if read.unchanged(r.file) {
		return waiting
	}
	return append(waiting[:len(waiting):len(waiting)], fmt.Sprintf("%s has changed since it was read; systemctl reload vmfabric takes it up", r.file))
}

// reloadable is an agent whose status says what of its cluster file is not taken up, and
// what its dataplane notes.
type reloadable struct {
	hooks.Agent
	reloader  *reloader
	dataplane *kernel.Dataplane
}

func (r reloadable) Status(ctx context.Context) (fabric.Status, error) {
	st, err := r.Agent.Status(ctx)
	st.Pending, st.Notes = r.reloader.pending(), r.dataplane.Notes()
	return st, err
}

// take has all parts of an agent go by another cluster, the agent last: what it admits from
// then on is right for all of them.
func (p *agentParts) take(c fabric.Cluster, a *agent.Agent) error {
	config := kernelConfig(&c, p.node)
	config.Accounting = &kernel.Accounting{Internal: c.Internal()} // of no use if it does not count
	errs := []error{p.dataplane.Reconfigure(config)}
	if s, embedded := p.speaker.(*gobgp.Speaker); embedded {
		errs = append(errs, s.Reconfigure(c))
	}
	p.nodes.Reconfigure(c)
	p.registry.reconfigure(c)
	return errors.Join(append(errs, a.Reconfigure(c))...)
}
