package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
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

func (f *fake) Starting(ctx context.Context, source, name string) error {
	return f.note(ctx, fabric.VM{}, "%s of %s starting", name, source)
}

func (f *fake) Ended(ctx context.Context, source, name string) error {
	return f.note(ctx, fabric.VM{}, "%s of %s ended", name, source)
}

func (f *fake) Describe(ctx context.Context, name string) (fabric.VM, fabric.Network, error) {
	return guest, network, f.note(ctx, fabric.VM{}, "%s described", name)
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

func (f *fake) Moves(ctx context.Context, vm string) ([]fabric.Move, error) {
	return []fabric.Move{{VM: vm, Outcome: "moved"}}, f.note(ctx, fabric.VM{}, "moves of %q", vm)
}

func (f *fake) Drain(ctx context.Context) error { return f.note(ctx, fabric.VM{}, "drain") }
func (f *fake) Advertisements(ctx context.Context, p netip.Prefix) ([]fabric.Advertisement, error) {
	return []fabric.Advertisement{{Peer: "rr1", Address: "10.10.0.11", Sent: true}}, f.note(ctx, fabric.VM{}, "sent %s", p)
}
func (f *fake) Undrain(ctx context.Context) error { return f.note(ctx, fabric.VM{}, "undrain") }
func (f *fake) CheckForwarding(ctx context.Context) ([]fabric.ForwardingFault, error) {
	return []fabric.ForwardingFault{{Family: "IPv4", Text: "in the way"}}, f.note(ctx, fabric.VM{}, "forwarding")
}

func (f *fake) Traffic(ctx context.Context) ([]fabric.Traffic, error) {
	return []fabric.Traffic{{VM: "web", Prefix: allocation.Prefix}}, f.note(ctx, fabric.VM{}, "traffic")
}

func (f *fake) Blackhole(ctx context.Context, a netip.Addr, last time.Duration) (fabric.Blackhole, error) {
	return fabric.Blackhole{VM: "web", Prefix: fabric.HostPrefix(a)}, f.note(ctx, fabric.VM{}, "%s blackholed for %v", a, last)
}

func (f *fake) LiftBlackhole(ctx context.Context, a netip.Addr) error {
	return f.note(ctx, fabric.VM{}, "blackhole of %s lifted", a)
}

func (f *fake) Blackholes(ctx context.Context) ([]fabric.Blackhole, error) {
	return []fabric.Blackhole{{VM: "web"}}, f.note(ctx, fabric.VM{}, "blackholes")
}

func (f *fake) Addresses(ctx context.Context) (fabric.Addresses, error) {
	return fabric.Addresses{Allocations: []fabric.Allocation{allocation}}, f.note(ctx, fabric.VM{}, "addresses")
}

func (f *fake) Allocate(ctx context.Context, vm fabric.VM) ([]fabric.Allocation, error) {
	return []fabric.Allocation{allocation}, f.note(ctx, vm, "%s allocated", vm.Name)
}

func (f *fake) Reserve(ctx context.Context, p netip.Prefix, note string) (fabric.Allocation, error) {
	return allocation, f.note(ctx, fabric.VM{}, "%s reserved for %s", p, note)
}

func (f *fake) Release(ctx context.Context, r fabric.ReleaseRequest) ([]fabric.Allocation, []string, error) {
	return []fabric.Allocation{allocation}, []string{"node9"}, f.note(ctx, fabric.VM{}, "%s of %q released, now %v", r.Prefix, r.Guest, r.Now)
}

func (f *fake) Reassign(ctx context.Context, p netip.Prefix, to string) ([]fabric.Allocation, error) {
	return []fabric.Allocation{allocation}, f.note(ctx, fabric.VM{}, "%s reassigned to %s", p, to)
}

func (f *fake) Nodes(ctx context.Context) ([]string, error) {
	return []string{"node1", "node2"}, f.note(ctx, fabric.VM{}, "nodes")
}

func (f *fake) ListNode(ctx context.Context, node, after string) (fabric.PortPage, error) {
	return fabric.PortPage{Ports: []fabric.PortEntry{{VM: "db", Kind: fabric.Tap, State: fabric.Wired, Node: node}}, Next: "db"}, f.note(ctx, fabric.VM{}, "list of %s after %s", node, after)
}

func (f *fake) Explain(ctx context.Context, a netip.Addr) ([]fabric.Step, error) {
	return []fabric.Step{{Step: "guest", Good: true, Text: "web"}}, f.note(ctx, fabric.VM{}, "%s explained", a)
}

func (f *fake) Import(ctx context.Context, write bool) (fabric.Import, error) {
	return fabric.Import{Guests: 2, Known: 3}, f.note(ctx, fabric.VM{}, "imported %v", write)
}

func (f *fake) AdoptRegistry(ctx context.Context, really bool) (fabric.Adoption, error) {
	return fabric.Adoption{Adopted: really}, f.note(ctx, fabric.VM{}, "registry adopted: %v", really)
}

var allocation = fabric.Allocation{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Pool: "public4", State: fabric.Allocated, Guest: "libvirt a", VM: "web", Dynamic: true}

var guest = fabric.VM{Name: "web", UUID: "aaaaaaaa-0000-4000-8000-000000000001", Origin: "libvirt", NICs: []fabric.NIC{{
	Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
	Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/56")},
	Kind:      fabric.Adopt, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, Queues: 2, MTU: 9000,
}}}

var network = fabric.Network{
	Gateway: fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.DefaultMAC},
	DNS:     []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Search: []string{"example.net"}, MTU: 1400,
}

// serve runs an agent on a socket of its own until the test ends.
var _ Agent = (*agent.Agent)(nil)

func serve(t *testing.T, agent Agent) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "agent.sock")
	serveOn(t, socket, agent)
	return socket
}

func serveOn(t *testing.T, socket string, agent Agent) {
	t.Helper()
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, agent, nil) }()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
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
		Starting: {fabric.VM{Name: "shop_web", Origin: "lxd"}, "shop_web of lxd starting", fabric.VM{}},
		Ended:    {fabric.VM{Name: "shop_web", Origin: "lxd"}, "shop_web of lxd ended", fabric.VM{}},
		Describe: {named, "web described", fabric.VM{}},
		List:     {fabric.VM{}, "list", fabric.VM{}},
		Status:   {fabric.VM{}, "status", fabric.VM{}},
		Moves:    {named, `moves of "web"`, fabric.VM{}},
		Sent:     {fabric.VM{}, "sent 203.0.113.10/32", fabric.VM{}},
		Drain:    {fabric.VM{}, "drain", fabric.VM{}},
		Undrain:  {fabric.VM{}, "undrain", fabric.VM{}},

		Forwarding: {fabric.VM{}, "forwarding", fabric.VM{}},
		Addresses:  {fabric.VM{}, "addresses", fabric.VM{}},
		Allocate:   {guest, "web allocated", guest},
		Reserve:    {fabric.VM{}, "203.0.113.10/32 reserved for a printer", fabric.VM{}},
		Release:    {fabric.VM{}, `203.0.113.10/32 of "libvirt a" released, now true`, fabric.VM{}},
		Reassign:   {named, "203.0.113.10/32 reassigned to web", fabric.VM{}},
		Nodes:      {fabric.VM{}, "nodes", fabric.VM{}},
		Explain:    {fabric.VM{}, "203.0.113.10 explained", fabric.VM{}},
		Import:     {fabric.VM{}, "imported true", fabric.VM{}},

		AdoptRegistry: {fabric.VM{}, "registry adopted: true", fabric.VM{}},

		Traffic:    {fabric.VM{}, "traffic", fabric.VM{}},
		Blackhole:  {fabric.VM{}, "203.0.113.10 blackholed for 10m0s", fabric.VM{}},
		Lift:       {fabric.VM{}, "blackhole of 203.0.113.10 lifted", fabric.VM{}},
		Blackholes: {fabric.VM{}, "blackholes", fabric.VM{}},
	} {
		t.Run(string(op), func(t *testing.T) {
			agent := &fake{}
			req := Request{Op: op, VM: want.vm}
			switch op {
			case Release:
				req.Guest, req.Now = "libvirt a", true
				fallthrough
			case Reserve, Sent, Reassign, Explain, Blackhole, Lift:
				req.For = map[bool]time.Duration{true: 10 * time.Minute}[op == Blackhole]
				if op == Reserve {
					req.Note = "a printer"
				}
				req.Prefix = netip.MustParsePrefix("203.0.113.10/32")
			case Import, AdoptRegistry:
				req.Write = true
			}
			reply, err := Call(within(t, time.Minute), serve(t, agent), req)
			require.NoError(t, err)
			assert.Equal(t, []string{want.asked}, agent.all())
			assert.Equal(t, []fabric.VM{want.got}, agent.vms)
			assert.Equal(t, Version, reply.V)
			assert.True(t, reply.OK)
			assert.Equal(t, op == List, len(reply.Ports) == 1)
			if op == Describe {
				assert.Equal(t, &Guest{guest, network}, reply.Guest)
			} else {
				assert.Nil(t, reply.Guest)
			}
			assert.Equal(t, op == Status, reply.Status != nil)
			repliesTo(t, op, reply)
		})
	}
}

// repliesTo holds for a reply that has what its op asks for, and nothing else.
func repliesTo(t *testing.T, op Op, reply Reply) {
	t.Helper()
	assert.Equal(t, op == AdoptRegistry, reply.Adoption != nil)
	assert.Equal(t, op == Moves, len(reply.Moves) == 1)
	assert.Equal(t, op == Sent, len(reply.Advertisements) == 1)
	assert.Equal(t, op == Forwarding, len(reply.Forwarding) == 1)
	if op == Addresses {
		assert.Equal(t, []fabric.Allocation{allocation}, reply.Addresses.Allocations)
	} else {
		assert.Nil(t, reply.Addresses)
	}
	assert.Equal(t, slices.Contains([]Op{Allocate, Reserve, Release, Reassign}, op), len(reply.Allocations) == 1)
	assert.Equal(t, op == Nodes, len(reply.Nodes) == 2)
	assert.Equal(t, op == Release, slices.Equal(reply.Nodes, []string{"node9"}))
	assert.Equal(t, op == Explain, len(reply.Steps) == 1)
	assert.Equal(t, op == Import, reply.Import != nil)
	assert.Equal(t, op == Traffic, len(reply.Traffic) == 1)
	assert.Equal(t, op == Blackhole || op == Blackholes, len(reply.Blackholes) == 1)
}

// TestListOfAnotherNode is a part of it, after a guest.
func TestListOfAnotherNode(t *testing.T) {
	agent := &fake{}
	reply, err := Call(within(t, time.Minute), serve(t, agent), Request{Op: List, Node: "node2", After: "a"})
	require.NoError(t, err)
	assert.Equal(t, []string{"list of node2 after a"}, agent.all())
	assert.Equal(t, "node2", reply.Ports[0].Node)
	assert.Equal(t, "db", reply.Next)
}

// TestServeStatus: what has no guests tells its status, and refuses the rest.
func TestServeStatus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "reflector.sock")
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	agent := &fake{}
	go func() { done <- ServeStatus(ctx, l, "reflector rr1", agent, nil) }()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	reply, err := Call(within(t, time.Minute), socket, Request{Op: Status})
	require.NoError(t, err)
	assert.Equal(t, "msk1", reply.Status.Cluster)
	for _, op := range append(append([]Op{}, guestOps...), List, Moves, Drain, Undrain, Forwarding) {
		_, err := Call(within(t, time.Minute), socket, Request{Op: op, VM: guest, Prefix: allocation.Prefix})
		require.ErrorIs(t, err, fabric.ErrRefused)
		assert.EqualError(t, err, fmt.Sprintf("op %q refused: this is reflector rr1, not an agent, and has no guests; ask the agent of a node, on its own socket", op))
	}
	assert.Equal(t, []string{"status"}, agent.all())
}

func TestErrorsTravel(t *testing.T) {
	for name, c := range map[string]struct {
		err     error
		text    string
		refused bool
	}{
		"refused": {fmt.Errorf("guest web refused: %w", refusal{"<b> is in no pool"}), "guest web refused: <b> is in no pool", true},
		"plain":   {errors.New("port web_net0: no such device"), "port web_net0: no such device", false},
		"cannot":  {fmt.Errorf("speaker: %w", errors.ErrUnsupported), "speaker: unsupported operation", false},
		"joined":  {errors.Join(errors.New("one"), errors.New("two")), "one; two", false},
	} {
		t.Run(name, func(t *testing.T) {
			socket := serve(t, &fake{err: func(context.Context) error { return c.err }})
			for _, op := range []Op{Wire, Started, Withdraw, List, Drain} {
				reply, err := Call(within(t, time.Minute), socket, Request{Op: op, VM: guest})
				assert.EqualError(t, err, c.text)
				assert.Equal(t, c.refused, errors.Is(err, fabric.ErrRefused))
				assert.Equal(t, errors.Is(c.err, errors.ErrUnsupported), errors.Is(err, errors.ErrUnsupported))
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

func (r refusal) Error() string { return r.text }

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
		"in order":      {`{"v":1,"op":"drain"}` + "\n" + `{"v":1,"op":"nonsense"}` + "\n" + list, []string{"", `op "nonsense" is not known; send one of wire, live, started, withdraw, remove, expect, starting, ended, describe, allocate, reassign, list, status, moves, sent, drain, undrain, forwarding, addresses, reserve, release, nodes, explain, import, adopt-registry, traffic, blackhole, lift, blackholes, or upgrade the agent`, ""}, 2},
		"newer":         {`{"v":2,"op":"summon","spell":true}` + "\n", []string{"the hook speaks version 2 of the line, this agent 1; upgrade the agent"}, 0},
		"no version":    {`{"op":"list"}` + "\n", []string{`the request has no version; send "v":1`}, 0},
		"not JSON":      {"list\n", []string{`the request cannot be read (invalid character 'l' looking for beginning of value); send one line such as {"v":1,"op":"list"}`}, 0},
		"a list":        {"[]\n", []string{`the request cannot be read (it is a list, where an object belongs); send one line such as {"v":1,"op":"list"}`}, 0},
		"a text":        {`"x"` + "\n", []string{`the request cannot be read (it is a text, where an object belongs); send one line such as {"v":1,"op":"list"}`}, 0},
		"a wrong value": {`{"v":1,"op":"wire","vm":{"name":7}}` + "\n", []string{`the request cannot be read ("vm.name" is a number, where a text belongs); send one line such as {"v":1,"op":"list"}`}, 0},
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

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

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
	l, err := Listen(t.Context(), filepath.Join(t.TempDir(), "agent.sock"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	assert.ErrorIs(t, Serve(t.Context(), l, &fake{}, slog.New(slog.DiscardHandler)), net.ErrClosed)
}
