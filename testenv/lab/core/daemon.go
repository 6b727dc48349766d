package core

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/internal/oneline"
)

// stopBound is how long a daemon may take to end when asked to.
const stopBound = 5 * time.Second

// Daemon is a program that runs in a host. The lab's Close kills it.
type Daemon struct {
	name string
	host *Host
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of cmd.Wait; to be read after done
}

// StartDaemon starts cmd in the host. What it writes is appended to a log in
// [Host.Dir] that is called after the name; the output of cmd must not be set.
func (h *Host) StartDaemon(name string, cmd *exec.Cmd) (*Daemon, error) {
	return h.StartDaemonBy(name, cmd, h.Start)
}

// StartDaemonBy is [Host.StartDaemon] for a daemon that start starts, in the host
// and perhaps in other namespaces besides.
func (h *Host) StartDaemonBy(name string, cmd *exec.Cmd, start func(*exec.Cmd) error) (*Daemon, error) {
	d := &Daemon{name: name, host: h, cmd: cmd, done: make(chan struct{}), log: filepath.Join(h.dir, name+".log")}
	log, err := os.OpenFile(d.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	if err := h.lab.adopt(d); err != nil {
		_ = d.Kill()
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	return d, nil
}

// adopt records a daemon.
func (l *Lab) adopt(d *Daemon) error {
	if err := l.OwnProcess(d.Pid()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.daemons = append(l.daemons, d)
	return nil
}

// Name gives the name under which the daemon was started.
func (d *Daemon) Name() string { return d.name }

// Host gives the host that the daemon runs in.
func (d *Daemon) Host() *Host { return d.host }

// Pid gives the number of the daemon's process, also when it has ended.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Done is closed when the daemon has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Running reports whether the daemon has not ended.
func (d *Daemon) Running() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// Wait waits for the daemon's end and gives what exec.Cmd.Wait gave.
func (d *Daemon) Wait() error {
	<-d.done
	return d.err
}

// Signal sends the daemon a signal. One that has ended is os.ErrProcessDone.
func (d *Daemon) Signal(sig os.Signal) error { return d.cmd.Process.Signal(sig) }

// Stop asks the daemon to end (SIGTERM) and waits until it has; one that has
// not after five seconds is killed. One that has ended already is no error.
func (d *Daemon) Stop() error {
	if err := d.Signal(syscall.SIGTERM); err != nil {
		return d.gone(err)
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(stopBound):
		return d.Kill()
	}
}

// Kill ends the daemon without warning (SIGKILL) and waits until it has ended.
// What it started itself goes on.
func (d *Daemon) Kill() error {
	if err := d.Signal(syscall.SIGKILL); err != nil {
		return d.gone(err)
	}
	<-d.done
	return nil
}

func (d *Daemon) gone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		<-d.done
		return nil
	}
	return fmt.Errorf("stop %s on %s: %w", d.name, d.host.name, err)
}

// LogPath gives the file that the daemon writes to. Daemons of one name on one
// host, one after the other, append to the same.
func (d *Daemon) LogPath() string { return d.log }

// Log gives what the daemon wrote so far.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// state says whether the daemon runs, or how it ended.
func (d *Daemon) state() string {
	if d.Running() {
		return "running"
	}
	return d.cmd.ProcessState.String()
}

// Until is [Until], but ends with the daemon. Its error ends with the end of the
// daemon's log.
func (d *Daemon) Until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := Until(ctx, f); err != nil {
		return d.failure(err)
	}
	return nil
}

// failure is the error for a daemon that is not what its user waits for, with
// the end of its log.
func (d *Daemon) failure(err error) error {
	if !d.Running() {
		err = fmt.Errorf("it ended (%s)", d.state())
	}
	return fmt.Errorf("%s on %s: %w; its log ends: %s", d.name, d.host.name, err, oneline.Words(Tail(d.Log(), 5)))
}
