package nodes_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

const bound = 20 * time.Second // for what must happen

func notice() fabric.Notice {
	return fabric.Notice{Kind: fabric.Claimed, VM: "web", Prefixes: []netip.Prefix{
		netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128"),
	}, Epoch: 7}
}

func end(c fabric.Cluster, n fabric.Node) *nodes.Nodes {
	return nodes.New(nodes.Config{Cluster: c, Node: n})
}

// held counts the questions that it answers.
type held struct {
	mu   sync.Mutex
	from []fabric.Node
}

func (h *held) answer(_ context.Context, from fabric.Node, _ fabric.Notice) fabric.Answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.from = append(h.from, from)
	return fabric.Answer{Held: true}
}

func (h *held) callers() []fabric.Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]fabric.Node{}, h.from...)
}

// serve has an agent answer until stop is called, or the test ends.
func serve(t testing.TB, n *nodes.Nodes, answer func(context.Context, fabric.Node, fabric.Notice) fabric.Answer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx, answer) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			assert.NoError(t, err)
		case <-time.After(bound):
			assert.Fail(t, "Serve does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// listening serves for node1 of a cluster, and waits until it can be called.
func listening(t testing.TB, c fabric.Cluster) (*nodes.Nodes, *held, func()) {
	one, h := end(c, c.Nodes[0]), &held{}
	stop := serve(t, one, h.answer)
	heard(t, c.Nodes[0])
	two := end(c, c.Nodes[1])
	require.Eventually(t, func() bool {
		_, err := two.Ask(context.Background(), "node1", notice())
		return err == nil
	}, bound, 10*time.Millisecond)
	h.mu.Lock()
	h.from = nil
	h.mu.Unlock()
	return one, h, stop
}

// heard waits until a node listens on all of its addresses.
func heard(t testing.TB, n fabric.Node) {
	for _, a := range []netip.Addr{n.Address, n.Address6} {
		require.Eventually(t, func() bool {
			if !a.IsValid() {
				return true
			}
			conn, err := dial(a, a, 255)
			if err == nil {
				conn.Close()
			}
			return err == nil
		}, bound, 10*time.Millisecond)
	}
}

// dial calls from one address to the agents' port of another, with a TTL. It gives a call
// up early whose packets may be dropped, as they have passed a router.
func dial(from, to netip.Addr, ttl int) (net.Conn, error) {
	wait := bound
	if ttl < 255 {
		wait = time.Second
	}
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: wait,
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			c.Control(func(fd uintptr) {
				if from.Is4() {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl)
				} else {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
				}
			})
			return err
		},
	}
	return d.Dial("tcp", netip.AddrPortFrom(to, fabric.DefaultAgentPort).String())
}

// line gives the next line of a connection, "" where it is closed.
func line(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(bound))
	text, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !assert.NotErrorIs(t, err, os.ErrDeadlineExceeded) {
		t.FailNow()
	}
	return text
}

// Without a key, whoever is not named is a stranger.
func TestStrangersAreHungUpOn(t *testing.T) {
	for _, secret := range []string{"", "a secret"} {
		t.Run(fmt.Sprintf("keyed=%v", secret != ""), func(t *testing.T) { strangersAreHungUpOn(t, secret) })
	}
}

func strangersAreHungUpOn(t *testing.T, secret string) {
	c := cluster(true, true, secret)
	one, h, _ := listening(t, c)
	before := one.Refused()
	own := []netip.Addr{c.Nodes[0].Address, c.Nodes[0].Address6}
	others := slices.Concat(strangers, own, []netip.Addr{core.Underlay4(30), core.Underlay6(30), core.Underlay4(reflectorHost)})
	for _, from := range others {
		conn, err := dial(from, c.Nodes[0].Source(from), 255)
		require.NoError(t, err)
		text := line(t, conn)
		conn.Close()
		if secret != "" && (from == core.Underlay4(30) || from == core.Underlay6(30)) {
			assert.Contains(t, text, `"node":"node1"`, from)
			before--
		} else {
			assert.Empty(t, text, from)
		}
	}
	assert.Equal(t, before+uint64(len(others)), one.Refused())
	for _, from := range strangers[2:] {
		stray := fabric.Node{Name: "stray", Address: from}
		if from.Is6() {
			stray = fabric.Node{Name: "stray", Address6: from}
		}
		_, err := end(c, stray).Ask(t.Context(), "node1", notice())
		require.ErrorContains(t, err, "closed the connection without a word: it takes none of this node's addresses ("+from.String()+") for a node's")
	}
	assert.Empty(t, h.callers())
	assert.Empty(t, one.Diagnose(t.Context()))
}

// Without an underlay in the file, nodes call from around the nodes' addresses.
func TestRangesByDefault(t *testing.T) {
	c := cluster(true, true, "a secret")
	c.Underlay = nil
	_, h, _ := listening(t, c)
	for _, n := range []fabric.Node{node("node30", 30, true, false), node("node31", 31, false, true)} {
		_, err := end(c, n).Ask(t.Context(), "node1", notice())
		require.NoError(t, err)
	}
	assert.Len(t, h.callers(), 2)
	for _, from := range strangers {
		conn, err := dial(from, c.Nodes[0].Source(from), 255)
		require.NoError(t, err)
		assert.Empty(t, line(t, conn), from)
		conn.Close()
	}
}

// TestHopLimit: what came through a router does not reach the listener.
func TestHopLimit(t *testing.T) {
	c := cluster(true, true, "")
	listening(t, c)
	for _, from := range []netip.Addr{c.Nodes[1].Address, c.Nodes[1].Address6} {
		for ttl, near := range map[int]bool{255: true, 254: false, 64: false} {
			conn, err := dial(from, c.Nodes[0].Source(from), ttl)
			if near {
				require.NoError(t, err)
				assert.NotEmpty(t, line(t, conn))
				conn.Close()
				continue
			}
			var timeout net.Error
			assert.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%s with %d: %v", from, ttl, err)
		}
	}
	for _, a := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), core.Underlay4(35), core.Underlay6(35)} {
		_, err := dial(c.Nodes[1].Source(a), a, 255)
		assert.ErrorIs(t, err, syscall.ECONNREFUSED, "%s is not the node's", a)
	}
}

// Who says that it is somebody must be there.
func TestPosing(t *testing.T) {
	c := cluster(true, true, "a secret")
	c.Routed = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:200::/40")}
	one, h, _ := listening(t, c)
	for _, tt := range []struct {
		name string
		node fabric.Node
		want string
	}{
		{"a node's name", node("node2", 30, true, false), "10.10.0.30 says that it is node node2, which has 10.10.0.22 and fd00:10:10::22 in the cluster file of node1"},
		{"a node's name, IPv6", node("node2", 30, false, true), "fd00:10:10::30 says that it is node node2"},
		{"a node's address", node("node30", 22, true, false), "10.10.0.22 says that it is node node30, and has the address of node node2"},
		{"a node's IPv6 address", node("node30", 22, false, true), "fd00:10:10::22 says that it is node node30, and has the address of node node2"},
		{"no name", node("a b", 30, true, false), `"a b" is not a node name`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := end(c, tt.node).Ask(t.Context(), "node1", notice())
			require.ErrorContains(t, err, tt.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	assert.Empty(t, h.callers())
	assert.Equal(t, []string{"node2", "node3"}, one.Names())
	problems := strings.Join(one.Diagnose(t.Context()), "\n")
	assert.Contains(t, problems, "10.10.0.30")
	assert.Contains(t, problems, "node node2: fd00:10:10::22 says that it is node node30")

	_, err := end(c, c.Nodes[1]).Ask(t.Context(), "node1", notice())
	require.NoError(t, err, "the true one")
	assert.Equal(t, c.Nodes[1:2], h.callers())
	assert.NotContains(t, strings.Join(one.Diagnose(t.Context()), "\n"), "node node2: ")
}

// An address that a node found itself is known once it answers there.
func TestAddressThatTheFileLacks(t *testing.T) {
	for _, secret := range []string{"", "a secret"} {
		for _, tt := range []struct {
			name      string
			four, six bool // what the file has
		}{{"IPv6", true, false}, {"IPv4", false, true}} {
			t.Run(fmt.Sprintf("%s/keyed=%v", tt.name, secret != ""), func(t *testing.T) {
				c := cluster(tt.four, tt.six, secret)
				one, two := end(c, node("node1", 21, true, true)), end(c, node("node2", 22, true, true))
				h := &held{}
				serve(t, one, h.answer)
				serve(t, two, h.answer)
				last := func() fabric.Node {
					if _, err := two.Ask(t.Context(), "node1", notice()); err != nil {
						return fabric.Node{}
					}
					all := h.callers()
					return all[len(all)-1]
				}
				require.Eventually(t, func() bool { return last() != fabric.Node{} }, bound, 10*time.Millisecond)
				assert.Contains(t, []fabric.Node{c.Nodes[1], node("node2", 22, true, true)}, h.callers()[0])
				require.Eventually(t, func() bool { return last() == node("node2", 22, true, true) }, bound, 10*time.Millisecond)
				assert.Equal(t, []string{"node2", "node3"}, one.Names())
			})
		}
	}
}

func TestNewcomers(t *testing.T) {
	c := cluster(true, true, "a secret")
	one, h, _ := listening(t, c)
	first, renamed := node("node30", 30, true, true), node("node31", 30, true, true)
	for _, n := range []fabric.Node{first, renamed} {
		_, err := end(c, n).Ask(t.Context(), "node1", notice())
		require.NoError(t, err)
		assert.Equal(t, []string{"node2", "node3", n.Name}, one.Names(), "a node has one name")
	}
	_, err := end(c, node("node31", 32, true, true)).Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "10.10.0.32 says that it is node node31, which called from 10.10.0.30 a moment ago")
	_, err = end(c, node("node32", 33, true, false)).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	_, err = end(c, fabric.Node{Name: "node31", Address: core.Underlay4(30), Address6: core.Underlay6(33)}).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	for _, from := range h.callers() {
		assert.False(t, from.Address6.IsValid(), "%v: nothing answers there", from)
	}
	_, err = end(c, fabric.Node{Name: "node33", Address: core.Underlay4(33), Address6: core.Underlay6(30)}).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	// It has called from there.
	six := fabric.Node{Name: "node31", Address6: core.Underlay6(30)}
	_, err = end(c, six).Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "which called from 10.10.0.30 a moment ago", "it does not say that it is there")
	six.Address = core.Underlay4(30)
	onlySix := c
	onlySix.Nodes = slices.Clone(c.Nodes)
	onlySix.Nodes[0].Address = netip.Addr{}
	_, err = end(onlySix, six).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	all := h.callers()
	assert.Equal(t, six, all[len(all)-1])
	_, err = end(c, fabric.Node{Name: "node34", Address: core.Underlay4(34), Address6: core.Underlay6(30)}).Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "node node34 says that it has fd00:10:10::30, which is node node31's")
}

// told waits until a node's end says what is wanted; nothing where that is empty.
func told(t *testing.T, n *nodes.Nodes, want string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		if all := strings.Join(n.Diagnose(t.Context()), "\n"); want == "" {
			assert.Empty(c, all)
		} else {
			assert.Contains(c, all, want)
		}
	}, bound, 10*time.Millisecond)
}

// met has two nodes serve, and waits until each has greeted the other.
func met(t *testing.T, c fabric.Cluster) (one *nodes.Nodes, stop func()) {
	one, two := end(c, c.Nodes[0]), end(c, c.Nodes[1])
	var answered atomic.Int32
	answer := func(context.Context, fabric.Node, fabric.Notice) fabric.Answer {
		answered.Add(1)
		return fabric.Answer{}
	}
	serve(t, one, answer)
	stop = serve(t, two, answer)
	for _, ask := range []struct {
		from *nodes.Nodes
		to   string
	}{{one, "node2"}, {two, "node1"}} {
		require.Eventually(t, func() bool {
			_, err := ask.from.Ask(t.Context(), ask.to, notice())
			return err == nil
		}, bound, 10*time.Millisecond)
	}
	require.GreaterOrEqual(t, answered.Load(), int32(2))
	return one, stop
}

// TestAgentThatEnds: an agent that ends is named long before its node is greeted
// again in its turn, for the end of its connection tells; and no more once another
// one is there.
func TestAgentThatEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real, in a network namespace")
	}
	for name, c := range map[string]fabric.Cluster{"IPv4": cluster(true, false, "a secret"), "IPv6": cluster(false, true, "a secret")} {
		t.Run(name, func(t *testing.T) {
			one, stop := met(t, c)
			told(t, one, "")
			stop()
			told(t, one, "no agent listens there")
			serve(t, end(c, c.Nodes[1]), (&held{}).answer)
			told(t, one, "")
		})
	}
}

// TestKeyIsMended: two nodes with different keys say so, and neither does soon
// after one of them was given the right key.
func TestKeyIsMended(t *testing.T) {
	right, wrong := cluster(true, true, ""), cluster(true, true, "")
	right.Key, wrong.Key = "the key of the cluster", "the key of another"
	one, two := end(right, right.Nodes[0]), end(wrong, right.Nodes[1])
	serve(t, one, (&held{}).answer)
	stop := serve(t, two, (&held{}).answer)
	const differ = "the cluster's keys are not the same on both nodes"
	told(t, one, differ)
	told(t, two, differ)
	stop()
	two = end(right, right.Nodes[1])
	serve(t, two, (&held{}).answer)
	told(t, one, "")
	told(t, two, "")
}

func TestPasswords(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real, in a network namespace")
	}
	none, right, wrong := cluster(true, true, ""), cluster(true, true, "a secret"), cluster(true, true, "another")
	half, name := cluster(true, true, "a secret"), cluster(true, true, "a secret")
	half.Reflectors[1].Password = ""
	name.Name = "spb2"
	shuffled := cluster(true, true, "a secret")
	shuffled.Reflectors[0], shuffled.Reflectors[1] = shuffled.Reflectors[1], shuffled.Reflectors[0]
	const differ = "node node1: the passwords for the reflectors are not the same on both nodes; give all nodes the same cluster file and password files, and restart their agents"
	keyed, otherKey := cluster(true, true, "a secret"), cluster(true, true, "a secret")
	keyed.Key, otherKey.Key = "the key of the cluster", "the key of another"
	other := cluster(true, true, "another")
	other.Key = keyed.Key
	const differKey = "node node1: the cluster's keys are not the same on both nodes; give all nodes the same cluster file and key file, and restart their agents"
	for _, tt := range []struct {
		name        string
		there, here fabric.Cluster
		want, back  string // what each says of the other
	}{
		{"another", right, wrong, differ, "the passwords for the reflectors are not the same on both nodes"},
		{"one is missing", right, half, differ, "the passwords for the reflectors are not the same on both nodes"},
		{"none here", right, none, "node node1: it has passwords for the reflectors, this node none; give all nodes the same", "it has no passwords for the reflectors, this node has"},
		{"none there", none, right, "node node1: it has no passwords for the reflectors, this node has; give all nodes the same", "it has passwords for the reflectors, this node none"},
		{"another cluster", right, name, `node node1: what answers there is of cluster "lab", this node of spb2`, `what answers there is of cluster "spb2"`},
		{"the same in another order", right, shuffled, "", ""},
		{"another key file", keyed, otherKey, differKey, "the cluster's keys are not the same on both nodes"},
		{"no key file here", keyed, right, "node node1: it has a key_file in its cluster file, this node none; give all nodes the same cluster file and key file", "this node has a key_file in its cluster file, and it has none"},
		{"no key file there", right, keyed, "node node1: this node has a key_file in its cluster file, and it has none, or an agent that is too old for one; give all nodes the same", "it has a key_file in its cluster file, this node none"},
		{"nothing here", keyed, none, "node node1: it has a key_file in its cluster file, this node none", "this node has a key_file in its cluster file, and it has none"},
		{"a key file and other passwords", keyed, other, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, h, _ := listening(t, tt.there)
			two := end(tt.here, tt.here.Nodes[1])
			answer, err := two.Ask(t.Context(), "node1", notice())
			if tt.want == "" {
				require.NoError(t, err)
				require.True(t, answer.Held)
				return
			}
			require.ErrorContains(t, err, tt.want)
			assert.Equal(t, []string{err.Error()}, two.Diagnose(t.Context()))
			assert.Empty(t, h.callers())

			// Nothing that the other side says shows who it is: this one asks itself.
			stop := serve(t, two, h.answer)
			require.Eventually(t, func() bool {
				one.Ask(t.Context(), "node2", notice())
				return len(one.Diagnose(t.Context())) == 1
			}, bound, 10*time.Millisecond)
			assert.Contains(t, one.Diagnose(t.Context())[0], "node node2: "+tt.back)
			assert.Empty(t, h.callers())
			stop()

			mended := end(tt.there, tt.there.Nodes[1])
			serve(t, mended, h.answer)
			require.Eventually(t, func() bool { _, err := one.Ask(t.Context(), "node2", notice()); return err == nil }, bound, 10*time.Millisecond)
			_, err = mended.Ask(t.Context(), "node1", notice())
			require.NoError(t, err, "once it is mended")
			assert.Empty(t, one.Diagnose(t.Context()))
		})
	}
}

// post is between two agents, and may read and change what passes.
type post struct {
	lines  chan string // that passed, both ways
	change atomic.Pointer[func(string) string]
	stop   func()
}

// between forwards what comes for an address at one port to another, as if it
// came from another node.
func between(t *testing.T, at netip.Addr, port uint16, from netip.Addr) *post {
	l, err := net.Listen("tcp", netip.AddrPortFrom(at, port).String())
	require.NoError(t, err)
	p := &post{lines: make(chan string, 1000)}
	var all sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer to.Close()
		for r := bufio.NewReader(from); ; {
			text, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if change := p.change.Load(); change != nil {
				text = (*change)(text)
			}
			p.lines <- text
			io.WriteString(to, text)
		}
	}
	all.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := dial(from, at, 255)
			if err != nil {
				a.Close()
				continue
			}
			all.Go(func() { pass(a, b) })
			all.Go(func() { pass(b, a) })
		}
	})
	p.stop = func() { l.Close(); all.Wait() }
	t.Cleanup(p.stop)
	return p
}

// TestMiddle: whoever is between two agents with passwords can stop what they
// say, and neither change nor repeat it.
func TestMiddle(t *testing.T) {
	c := cluster(true, false, "a secret")
	_, h, stop := listening(t, c)
	t.Cleanup(stop) // before what is between waits for its connections
	around := c
	around.AgentPort = fabric.DefaultAgentPort + 1
	p := between(t, c.Nodes[0].Address, around.AgentPort, c.Nodes[1].Address)
	t.Cleanup(stop)
	ask := func() (fabric.Answer, error) {
		// A new end each time, on a connection of its own.
		two := end(around, c.Nodes[1])
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		defer two.Serve(ctx, h.answer) // which ends at once, and closes it
		return two.Ask(t.Context(), "node1", notice())
	}
	answer, err := ask()
	require.NoError(t, err)
	require.True(t, answer.Held)
	recorded := []string{<-p.lines, <-p.lines, <-p.lines}
	require.Len(t, h.callers(), 1)

	for _, swap := range [][2]string{{`"held":true`, `"held":false`}, {`"vm":"web"`, `"vm":"wab"`}, {"203.0.113.10", "203.0.113.11"}, {`"nonce":"`, `"nonce":"A`}} {
		change := func(s string) string { return strings.Replace(s, swap[0], swap[1], 1) }
		p.change.Store(&change)
		_, err = ask()
		require.ErrorContains(t, err, "the passwords for the reflectors are not the same on both nodes", swap)
	}
	// Taken off, they are missed.
	change := func(s string) string {
		if i := strings.Index(s, `"body"`); i > 0 {
			return "{" + s[i:]
		}
		return s
	}
	p.change.Store(&change)
	_, err = ask()
	require.Error(t, err)
	before := len(h.callers())

	// What was recorded is worth nothing, to either side.
	repeat := func(s string) string {
		switch {
		case strings.Contains(s, `"keyed"`):
			return recorded[0]
		case strings.Contains(s, `"answer"`), strings.Contains(s, `"error"`):
			return recorded[2]
		}
		return s
	}
	p.change.Store(&repeat)
	_, err = ask()
	require.ErrorContains(t, err, "the passwords for the reflectors are not the same on both nodes")
	conn, err := dial(c.Nodes[1].Address, c.Nodes[0].Address, 255)
	require.NoError(t, err)
	defer conn.Close()
	require.NotEmpty(t, line(t, conn))
	_, err = io.WriteString(conn, recorded[1])
	require.NoError(t, err)
	assert.Contains(t, line(t, conn), "the passwords for the reflectors are not the same on both nodes")
	assert.Len(t, h.callers(), before, "nothing of that was answered")
}

// TestLines are lines of others than this version of the agent.
func TestLines(t *testing.T) {
	c := cluster(true, true, "")
	one, h, _ := listening(t, c)
	const good = `{"body":{"v":1,"to":"node1","nonce":"n","from":{"name":"node2","address":"10.10.0.22","address6":"fd00:10:10::22"},"notice":{"kind":"claimed","vm":"web","prefixes":["203.0.113.10/32","2001:db8:100::10/128"]}}}`
	for _, tt := range []struct{ name, old, new, want string }{
		{"as it is", "", "", `{"body":{"v":1,"answer":{"held":true}}}`},
		{"newer", `"v":1`, `"v":2`, "the agent of node2 speaks version 2 of the agents' line, that of node1 1; upgrade node1"},
		{"newer, with a key of its own", `"v":1`, `"v":2,"x":{}`, "the agent of node2 speaks version 2"},
		{"no version", `"v":1,`, ``, "without a version"},
		{"unknown key", `"v":1`, `"v":1,"x":{}`, `unknown field \"x\"`},
		{"unknown key of the notice", `"vm"`, `"urgent":true,"vm"`, `unknown field \"urgent\"`},
		{"unknown kind", "claimed", "evacuated", `notice \"evacuated\" is not known; there are arriving, arrived, cancelled, claimed, released, acquiring, describing, forgotten, listing, explaining, comparing, upgrade the agent if it is newer`},
		{"for another node", `"to":"node1"`, `"to":"node3"`, `node2 asked for \"node3\" and reached node1`},
		{"no prefix", "203.0.113.10/32", "203.0.113.10", "cannot read"},
		{"with bits", "203.0.113.10/32", "203.0.113.10/24", `\"203.0.113.10/24\" (number 0) is not a guest's prefix`},
		{"no guest", `"vm":"web"`, `"vm":""`, "the VM has no name"},
		{"of this node itself", `"name":"node2"`, `"name":"node1"`, "10.10.0.22 says that it is node node1, which is at 10.10.0.21 and fd00:10:10::21; give one of the two another name"},
		{"not JSON", good, "GET / HTTP/1.1", "cannot be read"},
		{"a MAC where there is none", `{"body"`, `{"mac":"AAAA","body"`, "the cluster's keys are not the same"},
		{"a greeting", `,"notice":{"kind":"claimed","vm":"web","prefixes":["203.0.113.10/32","2001:db8:100::10/128"]}`, "", `{"body":{"v":1,"answer":{"held":false}}}`},
		{"an address of the wrong family", `"address6":"fd00:10:10::22"`, `"address6":"10.10.0.22"`, "which are not an IPv4 and an IPv6 address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := dial(c.Nodes[1].Address, c.Nodes[0].Address, 255)
			require.NoError(t, err)
			defer conn.Close()
			require.NotEmpty(t, line(t, conn))
			_, err = io.WriteString(conn, strings.Replace(good, tt.old, tt.new, 1)+"\n")
			require.NoError(t, err)
			assert.Contains(t, line(t, conn), tt.want)
		})
	}
	assert.Len(t, h.callers(), 1)
	assert.Empty(t, one.Diagnose(t.Context()), "any program there can say that")

	conn, err := dial(c.Nodes[1].Address, c.Nodes[0].Address, 255)
	require.NoError(t, err)
	defer conn.Close()
	require.NotEmpty(t, line(t, conn))
	go io.WriteString(conn, `{"body":"`+strings.Repeat("x", 5<<20))
	assert.Contains(t, line(t, conn), "a first line of more than 4096 bytes")

	conn, err = dial(c.Nodes[1].Address6, c.Nodes[0].Address6, 255)
	require.NoError(t, err)
	defer conn.Close()
	require.NotEmpty(t, line(t, conn))
	_, err = io.WriteString(conn, good+"\n")
	require.NoError(t, err)
	require.Contains(t, line(t, conn), "answer")
	go io.WriteString(conn, `{"body":"`+strings.Repeat("x", 5<<20))
	assert.Contains(t, line(t, conn), "a line of more than 4194304 bytes")
}

// TestOthers are other programs than this version of the agent at a node.
func TestOthers(t *testing.T) {
	c := cluster(true, false, "")
	for _, tt := range []struct{ name, says, want string }{
		{"older", `{"v":0,"cluster":"lab","node":"node1"}`, "it speaks version 0 of the agents' line, this agent 1; upgrade it"},
		{"newer, which wants no more of this version", `{"v":2,"cluster":"lab","node":"node1","nonce":"n","more":1}` + "\n" + `{"body":{"v":2,"error":"too old"}}`, "the agent of node1 speaks version 2 of the agents' line, that of this node 1; upgrade this node"},
		{"another node", `{"v":1,"cluster":"lab","node":"node3"}`, `what answers there is node "node3"; correct the addresses`},
		{"no agent", `SSH-2.0-OpenSSH_9.2`, "what listens there is no agent"},
		{"an answer of nothing", `{"v":1,"cluster":"lab","node":"node1"}` + "\n" + `{"body":{"v":1}}`, "an answer that says nothing"},
		{"an answer with an unknown key", `{"v":1,"cluster":"lab","node":"node1"}` + "\n" + `{"body":{"v":1,"answer":{"held":true,"but":1}}}`, `unknown field "but"`},
		{"an error of many lines", `{"v":1,"cluster":"lab","node":"node1"}` + "\n" + `{"body":{"v":1,"error":"a\nb\u001b[2J"}}`, "node node1: a b [2J"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", netip.AddrPortFrom(c.Nodes[0].Address, fabric.DefaultAgentPort).String())
			require.NoError(t, err)
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				io.WriteString(conn, tt.says+"\n")
				io.Copy(io.Discard, conn)
			}()
			two := end(c, c.Nodes[1])
			_, err = two.Ask(t.Context(), "node1", notice())
			require.ErrorContains(t, err, tt.want)
			assert.Equal(t, []string{err.Error()}, two.Diagnose(t.Context()))
			<-done
		})
	}
	_, err := end(c, c.Nodes[1]).Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "node node1 (10.10.0.21, port 7147): no agent listens there")
	require.ErrorContains(t, err, "start it there")
	six := cluster(false, true, "")
	_, err = end(six, six.Nodes[1]).Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "node node1 (fd00:10:10::21, port 7147): no agent listens there")
	_, err = end(six, c.Nodes[1]).Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "no address of a family that this node has")
	two := end(c, node("node2", absentHost, true, false))
	_, err = two.Ask(t.Context(), "node1", notice())
	require.ErrorContains(t, err, "node node1: cannot be called from 10.10.0.29")
	assert.Empty(t, two.Diagnose(t.Context()), "nodes that are down are no problem")
}

// One family that leads nowhere leaves the other.
func TestOtherFamily(t *testing.T) {
	c := cluster(true, true, "")
	listening(t, c)
	astray := cluster(true, true, "")
	astray.Nodes[0].Address = core.Underlay4(35) // nobody listens there
	answer, err := end(astray, astray.Nodes[1]).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	assert.True(t, answer.Held)
}

// TestBoot: agents start before the machine has its addresses, or while another
// program has the port.
func TestBoot(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	late := node("node1", absentHost, true, true)
	c := cluster(true, true, "")
	c.Nodes[0] = late
	one, h := end(c, late), &held{}
	serve(t, one, h.answer)
	require.Eventually(t, func() bool { return len(one.Diagnose(t.Context())) == 2 }, bound, 10*time.Millisecond)
	assert.Equal(t, "agents of other nodes do not reach this one on 10.10.0.29:7147: bind: cannot assign requested address; give this machine the address, or correct it in the cluster file", one.Diagnose(t.Context())[0])
	assert.Contains(t, one.Diagnose(t.Context())[1], "on [fd00:10:10::29]:7147")

	for _, a := range []netip.Addr{late.Address, late.Address6} {
		// On all addresses of one family.
		other, err := net.Listen(map[bool]string{true: "tcp4", false: "tcp6"}[a.Is4()], fmt.Sprint(":", fabric.DefaultAgentPort))
		require.NoError(t, err)
		require.NoError(t, add(lo, a))
		t.Cleanup(func() {
			addr, _ := netlink.ParseAddr(fabric.HostPrefix(a).String())
			assert.NoError(t, netlink.AddrDel(lo, addr))
		})
		require.Eventually(t, func() bool {
			return strings.Contains(strings.Join(one.Diagnose(t.Context()), "\n"), netip.AddrPortFrom(a, 7147).String()+": bind: address already in use; end what listens there (ss -ltnp sport = :7147)")
		}, bound, 10*time.Millisecond)
		other.Close()
		two := end(c, node("node2", 22, a.Is4(), a.Is6()))
		require.Eventually(t, func() bool {
			_, err := two.Ask(t.Context(), "node1", notice())
			return err == nil
		}, bound, 10*time.Millisecond)
	}
	assert.Empty(t, one.Diagnose(t.Context()))
}

// TestConnections: their number is bounded, those that say nothing are closed,
// and all are when Serve ends.
func TestConnections(t *testing.T) {
	labtest.EndsItsGoroutines(t)
	c := cluster(true, true, "")
	one, h, stop := listening(t, c)
	var open []net.Conn
	for range 50 {
		conn, err := dial(c.Nodes[2].Address6, c.Nodes[0].Address6, 255)
		require.NoError(t, err)
		require.NotEmpty(t, line(t, conn))
		open = append(open, conn)
	}
	for _, conn := range open[:50-32] {
		assert.Empty(t, line(t, conn), "the oldest give way")
		conn.Close()
	}
	open = open[50-32:]
	two := end(c, c.Nodes[1])
	_, err := two.Ask(t.Context(), "node1", notice())
	require.NoError(t, err, "another node's are counted apart")
	for _, conn := range open[1:] {
		assert.Empty(t, line(t, conn), "no question")
		conn.Close()
	}
	_, err = end(c, c.Nodes[2]).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	open[0].Close()
	assert.Len(t, h.callers(), 2)

	conn, err := dial(c.Nodes[2].Address, c.Nodes[0].Address, 255)
	require.NoError(t, err)
	defer conn.Close()
	stop()
	// What it says to begin with may be there, and nothing follows.
	_, err = io.Copy(io.Discard, conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Empty(t, one.Diagnose(t.Context()))
}

func BenchmarkAsk(b *testing.B) {
	for _, f := range families[:2] {
		for _, secret := range []string{"", "a secret"} {
			b.Run(fmt.Sprintf("%s/keyed=%v", f.name, secret != ""), func(b *testing.B) {
				c := cluster(f.four, f.six, secret)
				listening(b, c)
				two := end(c, c.Nodes[1])
				for b.Loop() {
					if _, err := two.Ask(context.Background(), "node1", notice()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestPacketFilter: a filter between two nodes is told by both, before a guest is
// on its way, until it is gone.
func TestPacketFilter(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real, in a network namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil && os.Getenv(labtest.Variable) != "must" {
		t.Skip("no nft")
	}
	c := cluster(true, true, "")
	c.Key = "the key of the cluster"
	c.Nodes = c.Nodes[:2]
	one, two := end(c, c.Nodes[0]), end(c, c.Nodes[1])
	heal := sync.OnceFunc(cut(t, c, "node1", "node2"))
	defer heal()
	serve(t, one, new(held).answer)
	serve(t, two, new(held).answer)
	for n, other := range map[*nodes.Nodes]string{one: "node node2 (10.10.0.22 and fd00:10:10::22, port 7147): no answer within ", two: "node node1 (10.10.0.21 and fd00:10:10::21, port 7147): no answer within "} {
		require.Eventually(t, func() bool { return len(n.Diagnose(t.Context())) == 1 }, 3*bound, 10*time.Millisecond)
		assert.Contains(t, n.Diagnose(t.Context())[0], other)
		assert.Contains(t, n.Diagnose(t.Context())[0], "no packet filter on either node drops TCP port 7147")
	}
	heal()
	for _, n := range []*nodes.Nodes{one, two} {
		require.Eventually(t, func() bool { return len(n.Diagnose(t.Context())) == 0 }, 3*bound, 10*time.Millisecond)
	}
}
