package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
)

// child is the process of a plugin, as go-plugin uses it. go-plugin's own kind
// would survive an agent that is killed, get the signals of the agent's terminal,
// and count as running as long as any process holds its standard output.
type child struct {
	cmd    *exec.Cmd
	stdin  *os.File // the agent's end
	hello  io.Reader
	out    *transcript
	exited chan struct{} // closed when the process has ended
	ended  error         // how it ended; valid after exited is closed

	mu     sync.Mutex
	pid    int   // 0 before it is started
	gone   bool  // another process may have its number
	doomed bool  // kill it once it is started
	failed error // why it was not started
}

var _ runner.Runner = (*child)(nil)

// drain is how long the children of an ended plugin may go on writing to its
// output. After that the rest in a pipe is read: up to mostLeft, which no pipe
// holds by default.
const (
	drain    = 500 * time.Millisecond
	mostLeft = 1 << 20
)

func newChild(cmd *exec.Cmd, log *slog.Logger) *child {
	return &child{cmd: cmd, out: &transcript{log: log}, exited: make(chan struct{})}
}

// Start implements [runner.Runner].
func (c *child) Start(context.Context) error {
	var ours, its [3]*os.File
	var err error
	closeAll := func(files [3]*os.File) {
		for _, f := range files {
			f.Close() // a nil *os.File does no harm
		}
	}
	its[0], ours[0], err = os.Pipe()
	for i := 1; i <= 2 && err == nil; i++ {
		ours[i], its[i], err = os.Pipe()
	}
	if err == nil {
		c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = its[0], its[1], its[2]
		// Its own process group: Ctrl-C at the agent's terminal is only for the
		// agent.
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		started := make(chan error)
		go c.live(started)
		err = <-started
	}
	closeAll(its)
	if err != nil {
		closeAll(ours)
		return err
	}
	hello, say := io.Pipe()
	c.stdin, c.hello = ours[0], hello
	c.out.readers.Go(func() { c.out.readStdout(&output{f: ours[1]}, say) })
	c.out.readers.Go(func() { c.out.readStderr(&output{f: ours[2]}) })
	go func() {
		<-c.exited
		_ = ours[1].SetReadDeadline(time.Now().Add(drain))
		_ = ours[2].SetReadDeadline(time.Now().Add(drain))
		c.out.readers.Wait()
		closeAll(ours)
	}()
	return nil
}

// live starts the process and waits for its end. The kernel sends Pdeathsig when
// the thread ends that started the process, not when its process ends, so this
// goroutine keeps its thread until then.
func (c *child) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.cmd.Start()
	c.mu.Lock()
	if c.failed = err; err == nil {
		c.pid = c.cmd.Process.Pid
	}
	doomed := c.doomed
	c.mu.Unlock()
	if doomed {
		c.kill()
	}
	started <- err
	if err != nil {
		return
	}
	for { // as long as it is a zombie, no other process gets its number
		if err := unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.ended = c.cmd.Wait()
	close(c.exited)
}

// settled returns when the process has ended and all of its output was read; at
// once if the process was not started.
func (c *child) settled() {
	c.mu.Lock()
	started := c.pid != 0
	c.mu.Unlock()
	if started {
		<-c.exited
		c.out.readers.Wait()
	}
}

// exitReason says how the process ended.
func (c *child) exitReason() string {
	c.out.readers.Wait() // for its last lines
	how := "it ended"
	if c.ended != nil {
		how = "it died: " + c.ended.Error()
	}
	if _, last := c.out.lines(); last != "" {
		how += fmt.Sprintf(", saying %.200q", last)
	}
	return how
}

// hasExited reports whether the process has ended, or does within d.
func (c *child) hasExited(d time.Duration) bool {
	select {
	case <-c.exited:
		return true
	case <-time.After(d):
		return false
	}
}

// kill kills the process, and the processes of its group.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doomed = true; c.pid != 0 && !c.gone {
		_ = unix.Kill(-c.pid, unix.SIGKILL)
	}
}

// closeStdin closes the plugin's standard input, which tells it to end. The kernel
// does the same however this process ends.
func (c *child) closeStdin() { c.stdin.Close() }

// Wait implements [runner.AttachedRunner].
func (c *child) Wait(context.Context) error { <-c.exited; return c.ended }

// Kill implements [runner.AttachedRunner].
func (c *child) Kill(context.Context) error { c.kill(); return nil }

// Diagnose implements [runner.Runner].
func (c *child) Diagnose(context.Context) string { return "" }

// Stdout implements [runner.Runner]: the line of the handshake.
func (c *child) Stdout() io.ReadCloser { return io.NopCloser(c.hello) }

// Stderr implements [runner.Runner]: nothing, child reads it itself.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements [runner.Runner].
func (c *child) Name() string { return c.cmd.Path }

// ID implements [runner.AttachedRunner]. It is never empty: otherwise go-plugin
// leaves the directory of the socket behind when the start fails.
func (c *child) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strconv.Itoa(c.pid)
}

// PluginToHost implements [runner.AddrTranslator]. Any user of the machine can
// connect to a TCP port.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" {
		return "", "", errNetwork
	}
	return network, address, nil
}

// HostToPlugin implements [runner.AddrTranslator].
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
