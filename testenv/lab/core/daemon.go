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

// stopBound is how long a daemon may take to end after SIGTERM.
const stopBound = 5 * time.Second

// Daemon is a program that runs in a host. The lab's Close kills it.
type Daemon struct {
	name string
	host *Host
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of cmd.Wait; read it after done
}

// StartDaemon starts cmd in the host. Its output is appended to a log in
// [Host.Dir], which has the daemon's name; the caller must not set the output of
// cmd.
func (h *Host) StartDaemon(name string, cmd *exec.Cmd) (*Daemon, error) {
	return h.StartDaemonBy(name, cmd, h.Start)
}

// StartDaemonBy is [Host.StartDaemon] with a start function of the caller's, which
// may start the daemon in further namespaces.
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

// adopt makes the lab own a daemon: Close kills it.
func (l *Lab) adopt(d *Daemon) error {
	if err := l.OwnProcess(d.Pid()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.daemons = append(l.daemons, d)
	return nil
}

// Name returns the name under which the daemon was started.
func (d *Daemon) Name() string { return d.name }

// Host returns the host that the daemon runs in.
func (d *Daemon) Host() *Host { return d.host }

// Pid returns the number of the daemon's process, also when it has ended.
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

// Wait waits for the daemon's end and returns the error of exec.Cmd.Wait.
func (d *Daemon) Wait() error {
	<-d.done
	return d.err
}

// Signal sends the daemon a signal. The error is os.ErrProcessDone if it has ended.
func (d *Daemon) Signal(sig os.Signal) error { return d.cmd.Process.Signal(sig) }

// Stop asks the daemon to end (SIGTERM) and waits until it has. After five seconds
// it kills the daemon. It is no error if the daemon has ended already.
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
// Processes that the daemon started go on.
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

// LogPath returns the file that the daemon writes to. Daemons of one name on one
// host append to the same log, one after the other.
func (d *Daemon) LogPath() string { return d.log }

// Log returns the daemon's log so far.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// state describes whether the daemon runs, or how it ended.
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

// failure is the error of a wait for a daemon: that it ended, or else err. It ends
// with the end of the daemon's log.
func (d *Daemon) failure(err error) error {
	if !d.Running() {
		err = fmt.Errorf("it ended (%s)", d.state())
	}
	return fmt.Errorf("%s on %s: %w; its log ends: %s", d.name, d.host.name, err, oneline.Words(Tail(d.Log(), 5)))
}
