package hooks

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// fake is an agent that writes down what it was asked. err, when set, answers
// every op.
type fake struct {
	mu    sync.Mutex
	asked []string
	vms   []fabric.VM
	err   func(ctx context.Context) error
}

func (f *fake) note(ctx context.Context, vm fabric.VM, format string, args ...any) error {
	f.mu.Lock()
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
	f.vms = append(f.vms, vm)
	f.mu.Unlock()
	if f.err != nil {
		return f.err(ctx)
	}
	return nil
}

func (f *fake) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.asked...)
}

func (f *fake) Apply(ctx context.Context, vm fabric.VM, s fabric.State) error {
	return f.note(ctx, vm, "%s %v", vm.Name, s)
}

func (f *fake) Started(ctx context.Context, vm fabric.VM) error {
	return f.note(ctx, vm, "%s started", vm.Name)
}

func (f *fake) Withdraw(ctx context.Context, vm string) error {
	return f.note(ctx, fabric.VM{}, "%s withdrawn", vm)
}

func (f *fake) Expect(ctx context.Context, vm string) error {
	return f.note(ctx, fabric.VM{}, "%s expected", vm)
}

func (f *fake) List(ctx context.Context) ([]fabric.PortEntry, error) {
	return []fabric.PortEntry{{
		VM: "web", Port: "web_net0", Kind: fabric.Tap, State: fabric.Live,
		Addresses: guest.NICs[0].Addresses, Routes: guest.NICs[0].Routes,
	}}, f.note(ctx, fabric.VM{}, "list")
}

func (f *fake) Status(ctx context.Context) (fabric.Status, error) {
	return fabric.Status{Cluster: "msk1", Node: "node1", Ports: 2}, f.note(ctx, fabric.VM{}, "status")
}

func (f *fake) Drain(ctx context.Context) error { return f.note(ctx, fabric.VM{}, "drain") }

var guest = fabric.VM{Name: "web", UUID: "aaaaaaaa-0000-4000-8000-000000000001", Origin: "libvirt", NICs: []fabric.NIC{{
	Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
	Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/56")},
	Kind:      fabric.Adopt, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, Queues: 2, MTU: 9000,
}}}

// serve runs an agent on a socket of its own until the test ends.
func serve(t *testing.T, agent Agent) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "agent.sock")
	serveOn(t, socket, agent)
	return socket
}

// serveOn gives a function that stops the agent and tells Serve's error.
func serveOn(t *testing.T, socket string, agent Agent) (stop func() error) {
	t.Helper()
	l, err := Listen(socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, agent, nil) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { assert.NoError(t, stop()) })
	return stop
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestOps(t *testing.T) {
	named := fabric.VM{Name: "web"}
	for op, want := range map[Op]struct {
		vm    fabric.VM
		asked string
		got   fabric.VM
	}{
		Wire:     {guest, "web wired", guest},
		Live:     {guest, "web live", guest},
		Started:  {guest, "web started", guest},
		Withdraw: {named, "web withdrawn", fabric.VM{}},
		Remove:   {named, "web absent", named},
		Expect:   {named, "web expected", fabric.VM{}},
		List:     {fabric.VM{}, "list", fabric.VM{}},
		Status:   {fabric.VM{}, "status", fabric.VM{}},
		Drain:    {fabric.VM{}, "drain", fabric.VM{}},
	} {
		t.Run(string(op), func(t *testing.T) {
			agent := &fake{}
			reply, err := Call(within(t, time.Minute), serve(t, agent), Request{Op: op, VM: want.vm})
			require.NoError(t, err)
			assert.Equal(t, []string{want.asked}, agent.all())
			assert.Equal(t, []fabric.VM{want.got}, agent.vms)
			assert.Equal(t, Version, reply.V)
			assert.True(t, reply.OK)
			assert.Equal(t, op == List, len(reply.Ports) == 1)
			assert.Equal(t, op == Status, reply.Status != nil)
		})
	}
}

func TestListOfNothingIsNotNull(t *testing.T) {
	b, err := encode(Reply{Ports: []fabric.PortEntry{}})
	require.NoError(t, err)
	assert.Contains(t, string(b), `"ports":[]`)
}

func TestErrorsTravel(t *testing.T) {
	for name, c := range map[string]struct {
		err     error
		text    string
		refused bool
	}{
		"refused": {fmt.Errorf("guest web refused: %w", refusal{"<b> is in no pool"}), "guest web refused: <b> is in no pool", true},
		"plain":   {errors.New("port web_net0: no such device"), "port web_net0: no such device", false},
		"joined":  {errors.Join(errors.New("one"), errors.New("two")), "one; two", false},
	} {
		t.Run(name, func(t *testing.T) {
			socket := serve(t, &fake{err: func(context.Context) error { return c.err }})
			for _, op := range []Op{Wire, Started, Withdraw, List, Drain} {
				reply, err := Call(within(t, time.Minute), socket, Request{Op: op, VM: guest})
				assert.EqualError(t, err, c.text)
				assert.Equal(t, c.refused, errors.Is(err, fabric.ErrRefused))
				assert.False(t, reply.OK)
			}
			reply, err := Call(within(t, time.Minute), socket, Request{Op: Status})
			assert.EqualError(t, err, c.text)
			require.NotNil(t, reply.Status, "what is known comes with the error")
			assert.Equal(t, "node1", reply.Status.Node)
		})
	}
}

type refusal struct{ text string }

func (r refusal) Error() string        { return r.text }
func (r refusal) Is(target error) bool { return target == fabric.ErrRefused }

func TestManyAtATime(t *testing.T) {
	const many = 100
	var arrived sync.WaitGroup
	arrived.Add(many)
	agent := &fake{err: func(context.Context) error {
		arrived.Done()
		arrived.Wait() // none is answered before all are there
		return nil
	}}
	socket := serve(t, agent)
	var calls sync.WaitGroup
	for i := range many {
		calls.Go(func() {
			_, err := Call(within(t, time.Minute), socket, Request{Op: Remove, VM: fabric.VM{Name: fmt.Sprint("vm", i)}})
			assert.NoError(t, err)
		})
	}
	calls.Wait()
	assert.Len(t, agent.all(), many)
}

// talk sends lines over a connection of its own and gives the replies.
func talk(t *testing.T, socket, lines string) (replies []Reply) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	go func() {
		io.WriteString(conn, lines)
		conn.(*net.UnixConn).CloseWrite()
	}()
	for d := json.NewDecoder(conn); ; {
		var r Reply
		if err := d.Decode(&r); err != nil {
			return replies
		}
		replies = append(replies, r)
	}
}

func TestLines(t *testing.T) {
	const list = `{"v":1,"op":"list"}` + "\n"
	for name, c := range map[string]struct {
		lines string
		want  []string // an error each, "" for ok
		asked int
	}{
		"in order":      {`{"v":1,"op":"drain"}` + "\n" + `{"v":1,"op":"nonsense"}` + "\n" + list, []string{"", `op "nonsense" is not known; send one of wire, live, started, withdraw, remove, expect, list, status, drain, or upgrade the agent`, ""}, 2},
		"newer":         {`{"v":2,"op":"summon","spell":true}` + "\n", []string{"the hook speaks version 2 of the line, this agent 1; upgrade the agent"}, 0},
		"no version":    {`{"op":"list"}` + "\n", []string{`the request has no version; send "v":1`}, 0},
		"not JSON":      {"list\n", []string{`the request cannot be read (invalid character 'l' looking for beginning of value); send one line such as {"v":1,"op":"list"}`}, 0},
		"two in a line": {strings.TrimSpace(list) + list, []string{`the request cannot be read (invalid character '{' after top-level value); send one line such as {"v":1,"op":"list"}`}, 0},
		"unknown key":   {`{"v":1,"op":"wire","vm":{"name":"web","nics":[{"adresses":["::2"]}]}}` + "\n", []string{`the request cannot be read (json: unknown field "adresses"); send one line such as {"v":1,"op":"list"}`}, 0},
		"no guest":      {`{"v":1,"op":"remove"}` + "\n", []string{`op "remove" without a guest; send "vm":{"name":...} with it`}, 0},
		"too long":      {list + strings.Repeat("x", maxRequest+1) + "\n" + list, []string{"", "the request is longer than 4194304 bytes; end it with a newline, or give the guest fewer addresses"}, 1},
		"half a line":   {list + `{"v":1,"op":"drain"}`, []string{""}, 1},
		"nothing":       {"", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			agent := &fake{}
			var got []string
			for _, r := range talk(t, serve(t, agent), c.lines) {
				assert.Equal(t, Version, r.V)
				assert.Equal(t, r.Error == "", r.OK)
				got = append(got, r.Error)
			}
			assert.Equal(t, c.want, got)
			assert.Len(t, agent.all(), c.asked)
		})
	}
}

// pipes is a listener whose connections are in memory, so that time may be
// that of a synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func TestSilentClientIsDropped(t *testing.T) {
	for name, half := range map[string]string{"silent": "", "slow": `{"v":1,`} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, agent := newPipes(), &fake{}
				ctx, cancel := context.WithCancel(t.Context())
				go Serve(ctx, l, agent, nil)
				defer cancel()
				conn, began := l.dial(), time.Now()
				_, err := io.WriteString(conn, half)
				require.NoError(t, err)
				_, err = conn.Read(make([]byte, 1))
				assert.ErrorIs(t, err, io.EOF)
				assert.Equal(t, idle, time.Since(began))
				assert.Empty(t, agent.all())
			})
		})
	}
}

func TestEndWhileInFlight(t *testing.T) {
	for name, c := range map[string]struct {
		takes, ends time.Duration
		err         string
	}{
		"finishes":  {2 * time.Second, 2 * time.Second, ""},
		"cancelled": {time.Minute, grace, "context canceled; the agent was stopped meanwhile, ask again when it is up"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				agent := &fake{err: func(ctx context.Context) error {
					select {
					case <-time.After(c.takes):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- Serve(ctx, l, agent, nil) }()
				silent, conn := l.dial(), l.dial()
				_, err := io.WriteString(conn, `{"v":1,"op":"drain"}`+"\n")
				require.NoError(t, err)
				synctest.Wait()
				began := time.Now()
				cancel()

				_, err = silent.Read(make([]byte, 1))
				assert.ErrorIs(t, err, io.EOF)
				assert.Zero(t, time.Since(began), "who asks nothing does not hold the agent up")
				var reply Reply
				require.NoError(t, json.NewDecoder(conn).Decode(&reply))
				assert.Equal(t, c.err, reply.Error)
				assert.NoError(t, <-done)
				assert.Equal(t, c.ends, time.Since(began))
			})
		})
	}
}

func TestServeTellsABrokenListener(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "agent.sock"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	assert.ErrorIs(t, Serve(t.Context(), l, &fake{}, slog.New(slog.DiscardHandler)), net.ErrClosed)
}

func TestListen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "vmfabric", "agent.sock")
	l, err := Listen(socket)
	require.NoError(t, err)
	info, err := os.Lstat(socket)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())
	assert.Equal(t, socket, l.Addr().String())
	require.NoError(t, l.Close())
	assert.NoFileExists(t, socket)
	assert.NoError(t, l.Close())

	l, err = Listen(socket)
	require.NoError(t, err, "the lock file that stays is no hindrance")
	require.NoError(t, l.Close())
}

// The mode must be right from bind on: with a wide umask, nobody may see it
// otherwise even for a moment.
func TestModeFromTheStart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	stop, watched := make(chan struct{}), make(chan []os.FileMode)
	go func() {
		var seen []os.FileMode
		for stopped := false; !stopped; {
			select {
			case <-stop:
				stopped = true // after one more look, at the socket that stays
			default:
			}
			if info, err := os.Lstat(socket); err == nil && (len(seen) == 0 || seen[len(seen)-1] != info.Mode()) {
				seen = append(seen, info.Mode())
			}
		}
		watched <- seen
	}()
	for range 50 {
		l, err := Listen(socket)
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
	l, err := Listen(socket)
	require.NoError(t, err)
	defer l.Close()
	close(stop)
	assert.Equal(t, []os.FileMode{os.ModeSocket | 0o600}, <-watched)
}

func TestSecondAgent(t *testing.T) {
	socket := serve(t, &fake{})
	_, err := Listen(socket)
	assert.EqualError(t, err, "another agent answers on "+socket+"; stop it first, or give --socket")

	require.NoError(t, os.Remove(socket+".lock"))
	_, err = Listen(socket)
	assert.EqualError(t, err, "another agent answers on "+socket+"; stop it first, or give --socket")
	_, err = Call(within(t, time.Minute), socket, Request{Op: List})
	assert.NoError(t, err, "the first still answers")
}

func TestAgentsThatStartTogether(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	for range 50 {
		stale(t, socket)
		won := make(chan *Listener, 8)
		var starts sync.WaitGroup
		for range cap(won) {
			starts.Go(func() {
				if l, err := Listen(socket); err == nil {
					won <- l
				} else {
					assert.ErrorContains(t, err, "another agent answers")
				}
			})
		}
		starts.Wait()
		require.Len(t, won, 1)
		require.NoError(t, (<-won).Close())
	}
}

// stale leaves the socket of an agent that was killed.
func stale(t *testing.T, socket string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.FileExists(t, socket)
}

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

func TestCloseLeavesAnothersSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(socket)
	require.NoError(t, err)
	require.NoError(t, os.Remove(socket))
	stale(t, socket)
	require.NoError(t, l.Close())
	assert.FileExists(t, socket)
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	long := filepath.Join(dir, strings.Repeat("x", 108))
	for socket, want := range map[string]string{
		file:                          "there is a file that is no socket; remove it, or give another --socket",
		filepath.Join(file, "a.sock"): "not a directory; make the folder, or give another --socket",
		long:                          "107 is the most; give a shorter --socket",
	} {
		_, err := Listen(socket)
		assert.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, "socket "+socket)
	}
	assert.FileExists(t, file)
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
	_, err = Listen(socket)
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

// The largest guest that fabric allows fits a line.
func TestLargestGuestFits(t *testing.T) {
	vm := fabric.VM{Name: strings.Repeat("x", fabric.MaxNameBytes), NICs: make([]fabric.NIC, fabric.MaxNICs)}
	long := netip.MustParseAddr("2001:db8:1234:5678:9abc:def0:1234:5678")
	for n := range vm.NICs {
		for range fabric.MaxAddresses {
			vm.NICs[n].Addresses = append(vm.NICs[n].Addresses, long)
			vm.NICs[n].Routes = append(vm.NICs[n].Routes, fabric.HostPrefix(long))
		}
	}
	b, err := encode(Request{V: Version, Op: Wire, VM: vm})
	require.NoError(t, err)
	assert.Less(t, len(b), maxRequest)
	req, err := decode(b)
	require.NoError(t, err)
	assert.Equal(t, vm, req.VM)
}

func FuzzRequest(f *testing.F) {
	for _, req := range []Request{{V: 1, Op: Wire, VM: guest}, {V: 1, Op: List}, {V: 1, Op: Remove, VM: fabric.VM{Name: "web"}}} {
		b, err := encode(req)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte(`{"v":2,"op":"wire","more":[]}`))
	f.Add([]byte(`{"v":1,"op":"wire","vm":{"name":"a","nics":[{"addresses":["fe80::1%eth0",""],"mac":""}]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		req, err := decode(line)
		if err != nil {
			assert.NotContains(t, oneLine(err), "\n")
			return
		}
		assert.Equal(t, Version, req.V)
		b, err := encode(req)
		require.NoError(t, err)
		assert.Equal(t, 1, bytes.Count(b, []byte("\n")))
		again, err := decode(b)
		require.NoError(t, err)
		twice, err := encode(again)
		require.NoError(t, err)
		assert.Equal(t, string(b), string(twice))
	})
}

func BenchmarkLine(b *testing.B) {
	for b.Loop() {
		line, err := encode(Request{V: Version, Op: Wire, VM: guest})
		if err != nil {
			b.Fatal(err)
		}
		if _, err = decode(line); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	socket := filepath.Join(b.TempDir(), "agent.sock")
	l, err := Listen(socket)
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
