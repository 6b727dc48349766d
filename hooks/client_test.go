package hooks

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestStaleSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	stale(t, socket)
	_, err := Call(within(t, time.Minute), socket, Request{Op: List})
	assert.EqualError(t, err, "no agent answers on "+socket+" (connect: connection refused); start it: systemctl start vmfabric")
	assert.ErrorIs(t, err, ErrNoAgent)

	serveOn(t, socket, &fake{})
	_, err = Call(within(t, time.Minute), socket, Request{Op: List})
	assert.NoError(t, err)
}

func TestNoAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	_, err := Call(within(t, time.Minute), socket, Request{Op: List})
	assert.EqualError(t, err, "no agent answers on "+socket+" (connect: no such file or directory); start it: systemctl start vmfabric")
	assert.ErrorIs(t, err, ErrNoAgent)

	began := time.Now()
	_, err = Client{Socket: socket, Wait: 300 * time.Millisecond}.Call(within(t, time.Minute), Request{Op: List})
	assert.ErrorIs(t, err, ErrNoAgent)
	assert.Greater(t, time.Since(began), 150*time.Millisecond)
}

func TestNotRoot(t *testing.T) {
	err := explain(t.Context(), os.NewSyscallError("connect", syscall.EACCES), "/s", time.Now())
	assert.EqualError(t, err, "the agent on /s listens to root alone (connect: permission denied); run this as root")
	assert.NotErrorIs(t, err, ErrNoAgent)
}

func TestWaitForAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	const late = 250 * time.Millisecond
	began, started := time.Now(), make(chan struct{})
	time.AfterFunc(late, func() { serveOn(t, socket, &fake{}); close(started) })
	_, err := Client{Socket: socket, Wait: time.Minute}.Call(within(t, time.Minute), Request{Op: List})
	<-started
	assert.NoError(t, err)
	assert.GreaterOrEqual(t, time.Since(began), late)
}

// An agent that is killed in the middle of a request is asked again when it is
// back.
func TestAgentKilledInFlight(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	dying, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	once := func(wait time.Duration) error {
		called := make(chan error, 1)
		go func() {
			_, err := Client{Socket: socket, Wait: wait}.Call(within(t, time.Minute), Request{Op: Wire, VM: guest})
			called <- err
		}()
		conn, err := dying.Accept()
		require.NoError(t, err)
		_, err = bufio.NewReader(conn).ReadString('\n')
		require.NoError(t, err)
		if wait > 0 {
			require.NoError(t, dying.Close())
			serveOn(t, socket, &fake{})
		}
		require.NoError(t, conn.Close())
		return <-called
	}
	assert.EqualError(t, once(0), "the agent on "+socket+" went away before it answered (EOF); see its log: journalctl -u vmfabric")
	assert.NoError(t, once(time.Minute))
}

func TestAgentDoesNotAnswer(t *testing.T) {
	release := make(chan struct{})
	socket := serve(t, &fake{err: func(context.Context) error { <-release; return nil }})
	defer close(release)
	_, err := Client{Socket: socket, Wait: time.Minute}.Call(within(t, 200*time.Millisecond), Request{Op: List})
	assert.EqualError(t, err, "the agent on "+socket+" did not answer within 200ms (context deadline exceeded); see its log: journalctl -u vmfabric")
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}

// A full queue of connections is an agent that is busy, not one that is gone.
func TestFullQueue(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}))
	require.NoError(t, syscall.Listen(fd, 0))
	first, err := net.Dial("unix", socket)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	_, err = net.Dial("unix", socket)
	require.ErrorIs(t, err, syscall.EAGAIN)
	_, err = Listen(t.Context(), socket)
	assert.ErrorContains(t, err, "another agent answers")
	_, err = Call(within(t, 200*time.Millisecond), socket, Request{Op: List})
	assert.ErrorContains(t, err, "did not answer within 200ms")

	called := make(chan error, 1)
	go func() {
		_, err := Call(within(t, time.Minute), socket, Request{Op: List})
		called <- err
	}()
	l, err := net.FileListener(file)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, &fake{}, nil) }()
	assert.NoError(t, <-called)
	cancel()
	assert.NoError(t, <-served)
}

func TestOtherReplies(t *testing.T) {
	for name, c := range map[string]struct{ reply, err string }{
		"newer":    {`{"v":2,"ok":true}`, "the agent speaks version 2 of the line, this program 1; upgrade the program"},
		"not JSON": {`hello`, "the reply cannot be read: invalid character 'h' looking for beginning of value"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "agent.sock")
			l, err := net.Listen("unix", socket)
			require.NoError(t, err)
			defer l.Close()
			go func() {
				if conn, err := l.Accept(); err == nil {
					fmt.Fprintln(conn, c.reply)
					io.Copy(io.Discard, conn)
					conn.Close()
				}
			}()
			_, err = Call(within(t, time.Minute), socket, Request{Op: List})
			assert.EqualError(t, err, "agent on "+socket+": "+c.err)
		})
	}
}

func TestRequestTooLarge(t *testing.T) {
	_, err := Call(t.Context(), "unused", Request{Op: Wire, VM: fabric.VM{Name: strings.Repeat("x", maxRequest)}})
	assert.ErrorContains(t, err, "the agent reads at most 4194304, give the guest fewer addresses")
}

func BenchmarkCall(b *testing.B) {
	socket := filepath.Join(b.TempDir(), "agent.sock")
	l, err := Listen(b.Context(), socket)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, &fake{}, nil) }()
	for b.Loop() {
		if _, err := Call(ctx, socket, Request{Op: Wire, VM: guest}); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	require.NoError(b, <-done)
}
