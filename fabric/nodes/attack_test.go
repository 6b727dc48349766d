package nodes_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// crowd gives addresses of the nodes' network that are no node's, half of each
// family, which this machine has until the test ends.
func crowd(t testing.TB, count int) (all []netip.Addr) {
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	for i := range count / 2 {
		for _, a := range []netip.Addr{core.Underlay4(byte(100 + i)), core.Underlay6(byte(100 + i))} {
			require.NoError(t, add(lo, a))
			t.Cleanup(func() {
				addr, _ := netlink.ParseAddr(fabric.HostPrefix(a).String())
				assert.NoError(t, netlink.AddrDel(lo, addr))
			})
			all = append(all, a)
		}
	}
	// The kernel makes the routes to new IPv6 addresses in its own time.
	for _, a := range all {
		require.Eventually(t, func() bool {
			_, err := dial(a, a, 255)
			return errors.Is(err, syscall.ECONNREFUSED)
		}, bound, 10*time.Millisecond)
	}
	return all
}

// written counts the lines of a log.
type written struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func (w *written) Enabled(context.Context, slog.Level) bool { return true }

func (w *written) Handle(_ context.Context, r slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Level >= slog.LevelInfo {
		w.lines = append(w.lines, r.Message)
	}
	return nil
}

func (w *written) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

// TestCrowd: whatever others have open, each call of a node is answered, and a
// new node with the key gets in; nor is the log filled.
func TestCrowd(t *testing.T) {
	for _, secret := range []string{"", "a secret"} {
		t.Run(fmt.Sprintf("keyed=%v", secret != ""), func(t *testing.T) {
			c := cluster(true, true, secret)
			log := &written{}
			one, two := nodes.New(nodes.Config{Cluster: c, Node: c.Nodes[0], Logger: slog.New(log)}), end(c, c.Nodes[1])
			h := &held{}
			serve(t, one, h.answer)
			serve(t, two, h.answer)
			heard(t, c.Nodes[0])
			heard(t, c.Nodes[1])
			require.Eventually(t, func() bool {
				_, err := two.Ask(t.Context(), "node1", notice())
				return err == nil
			}, bound, 10*time.Millisecond)
			const each = 32
			var open []net.Conn
			defer func() {
				for _, conn := range open {
					conn.Close()
				}
			}()
			asked := 0
			for _, from := range crowd(t, 32) {
				for range each {
					conn, err := dial(from, c.Nodes[0].Source(from), 255)
					require.NoError(t, err)
					open = append(open, conn)
				}
				for range 4 {
					require.NoError(t, call(t, c, c.Nodes[1]), "call %d of a node", asked)
					asked++
				}
			}
			assert.Greater(t, one.Refused(), uint64(each*28-64))
			assert.Equal(t, 128, asked)
			// Nor do other programs of a node keep its agent out.
			for range 3 * each {
				for _, from := range []netip.Addr{c.Nodes[1].Address, c.Nodes[1].Address6} {
					conn, err := dial(from, c.Nodes[0].Source(from), 255)
					require.NoError(t, err)
					open = append(open, conn)
				}
				require.NoError(t, call(t, c, c.Nodes[1]))
			}
			assert.Empty(t, one.Diagnose(t.Context()))
			assert.LessOrEqual(t, len(log.all()), 10, "%q", log.all())
			err := call(t, c, node("node30", 30, true, true))
			if secret == "" {
				require.ErrorContains(t, err, "name this node in its cluster file, or give the cluster a key_file")
			} else {
				require.NoError(t, err, "a new node displaces the oldest stranger")
			}
		})
	}
}

// TestNonsense: nothing that is said without the key makes a node look ill, from
// whichever address it comes.
func TestNonsense(t *testing.T) {
	for _, secret := range []string{"", "a secret"} {
		t.Run(fmt.Sprintf("keyed=%v", secret != ""), func(t *testing.T) {
			c := cluster(true, true, secret)
			one, two := end(c, c.Nodes[0]), end(c, c.Nodes[1])
			h := &held{}
			serve(t, one, h.answer)
			serve(t, two, h.answer)
			heard(t, c.Nodes[0])
			heard(t, c.Nodes[1])
			require.Eventually(t, func() bool {
				_, err := two.Ask(t.Context(), "node1", notice())
				return err == nil
			}, bound, 10*time.Millisecond)
			answered := len(h.callers())
			from := []netip.Addr{c.Nodes[1].Address, c.Nodes[1].Address6}
			if secret != "" {
				from = append(from, core.Underlay4(30), core.Underlay6(30))
			}
			for _, a := range from {
				for _, text := range []string{
					"GET / HTTP/1.1", "", "{}", "null", `{"body":{"v":1,"to":"node1"}}`, `{"mac":"AAAA","body":{"v":2}}`,
					`{"body":{"v":1,"to":"node1","nonce":"n","from":{"name":"nobody","address":"10.10.0.22","address6":"fd00:10:10::22"},"notice":{"kind":"claimed","vm":"web","prefixes":["203.0.113.10/32"]}}}`,
					strings.Repeat("x", 1<<20),
				} {
					before := one.Refused()
					conn, err := dial(a, c.Nodes[0].Source(a), 255)
					require.NoError(t, err)
					conn.SetDeadline(time.Now().Add(bound))
					lines := bufio.NewReader(conn)
					_, err = lines.ReadString('\n')
					require.NoError(t, err)
					go io.WriteString(conn, text+"\n")
					reply, err := lines.ReadString('\n')
					require.NoError(t, err, "%.80q", text)
					assert.Contains(t, reply, `"error":"`)
					assert.Greater(t, one.Refused(), before, "%.80q", text)
					conn.Close()
				}
			}
			assert.Len(t, h.callers(), answered, "nothing of that was answered")
			assert.Empty(t, one.Diagnose(t.Context()))
			_, err := one.Ask(t.Context(), "node2", notice())
			require.NoError(t, err)
			assert.Empty(t, one.Diagnose(t.Context()))
		})
	}
}

// TestForgedAddresses: a node with the key, known or new, has no address that is
// somebody else's, whatever it says.
func TestForgedAddresses(t *testing.T) {
	addr := netip.MustParseAddr
	c := cluster(true, true, "a secret")
	c.Gateway = fabric.Gateway{IPv4: addr("10.10.0.254"), IPv6: addr("fd00:10:10::254")}
	c.Reflectors = append(c.Reflectors, fabric.RR{Name: "rr6", Address: core.Underlay6(reflectorHost)})
	c.Core = []fabric.Core{{Name: "core1", Address: core.Underlay4(38)}, {Name: "core6", Address: core.Underlay6(38)}}
	c.Routed = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:200::/40")}
	c.Nodes[1].Address6 = netip.Addr{} // the file does not say
	c.Nodes = append(c.Nodes, fabric.Node{Name: "node4", Address6: core.Underlay6(24)})
	one, h, _ := listening(t, c)
	_, err := end(c, node("node35", 35, true, true)).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	six := c
	six.Nodes = slices.Clone(c.Nodes)
	six.Nodes[0].Address = netip.Addr{} // to be called by IPv6
	_, err = end(six, node("node35", 35, true, true)).Ask(t.Context(), "node1", notice())
	require.NoError(t, err)
	h.mu.Lock()
	h.from = nil
	h.mu.Unlock()

	for _, tt := range []struct{ name, four, six, want string }{
		{"a reflector's", core.Underlay4(reflectorHost).String(), core.Underlay6(reflectorHost).String(), "which is that of reflector rr"},
		{"a core gateway's", core.Underlay4(38).String(), core.Underlay6(38).String(), "which is that of core gateway core"},
		{"the gateway's", "10.10.0.254", "fd00:10:10::254", "which is that of the gateway of all ports"},
		{"loopback", "127.0.0.1", "::1", "which cannot be"},
		{"more of loopback", "127.255.3.4", "::1", "which cannot be"},
		{"none", "0.0.0.0", "::", "which cannot be"},
		{"this network", "0.1.2.3", "::", "which cannot be"},
		{"multicast", "224.0.0.1", "ff02::1", "which cannot be"},
		{"broadcast", "255.255.255.255", "ff05::1:3", "which cannot be"},
		{"reserved", "240.0.0.1", "ff0e::1", "which cannot be"},
		{"link-local", "169.254.1.1", "fe80::1", "which cannot be"},
		{"another node's", "10.10.0.23", "fd00:10:10::23", "which is node node3's"},
		{"this node's", "10.10.0.21", "fd00:10:10::21", "which is node node1's"},
		{"another new node's", "10.10.0.35", "fd00:10:10::35", "which is node node35's"},
		{"a guest's", "203.0.113.10", "2001:db8:100::10", "which is for guests"},
		{"a guest's, that no guest may have", "203.0.113.0", "2001:db8:100::", "which is for guests"},
		{"routed to guests", "198.51.100.9", "2001:db8:200::9", "which is for guests"},
		{"IPv4 in IPv6", "fd00:10:10::30", "::ffff:10.10.0.1", "which are not an IPv4 and an IPv6 address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, liar := range []struct {
				in   fabric.Cluster
				node fabric.Node
			}{
				{c, fabric.Node{Name: "node30", Address: core.Underlay4(30), Address6: addr(tt.six)}},
				{c, fabric.Node{Name: "node2", Address: core.Underlay4(22), Address6: addr(tt.six)}},
				{six, fabric.Node{Name: "node30", Address: addr(tt.four), Address6: core.Underlay6(30)}},
				{six, fabric.Node{Name: "node4", Address: addr(tt.four), Address6: core.Underlay6(24)}},
			} {
				before := one.Refused()
				reply := say(t, liar.in, liar.node)
				assert.Contains(t, reply, tt.want, liar.node)
				assert.Equal(t, before, one.Refused(), "it has the key")
			}
		})
	}
	assert.Empty(t, h.callers())
	assert.NotEmpty(t, one.Diagnose(t.Context()), "it has the key: it is a node with a mistake")

	// What is nobody's counts no more, as long as nobody answers there.
	for _, liar := range []struct {
		in   fabric.Cluster
		node fabric.Node
	}{
		{c, fabric.Node{Name: "node30", Address: core.Underlay4(30), Address6: core.Underlay6(36)}},
		{c, fabric.Node{Name: "node2", Address: core.Underlay4(22), Address6: core.Underlay6(37)}},
		{six, fabric.Node{Name: "node32", Address: core.Underlay4(34), Address6: core.Underlay6(32)}},
	} {
		assert.Contains(t, say(t, liar.in, liar.node), `"held":true`)
		all := h.callers()
		from := all[len(all)-1]
		assert.Equal(t, liar.node.Name, from.Name)
		assert.NotEqual(t, from.Address.IsValid(), from.Address6.IsValid(), "%v has one address", from)
	}
}

// call asks node1 something on a connection for this alone.
func call(t *testing.T, c fabric.Cluster, from fabric.Node) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := end(c, from)
	defer n.Serve(ctx, new(held).answer) // which ends at once, and closes it
	_, err := n.Ask(t.Context(), "node1", notice())
	return err
}

// say asks node1 from a node's own address and gives the answer as it came, for a
// node that may say that it is where it is not.
func say(t *testing.T, c fabric.Cluster, from fabric.Node) string {
	t.Helper()
	at, to := from.Address, c.Nodes[0].Address
	if !to.IsValid() {
		at, to = from.Address6, c.Nodes[0].Address6
	}
	// Only the address that it calls from is bound: the end is one of this machine.
	p := between(t, to, fabric.DefaultAgentPort+1, at)
	defer p.stop()
	around := c
	around.AgentPort = fabric.DefaultAgentPort + 1
	around.Nodes = slices.Clone(c.Nodes)
	around.Nodes[0] = fabric.Node{Name: "node1", Address: to}
	caller := from
	if to.Is6() {
		around.Nodes[0] = fabric.Node{Name: "node1", Address6: to}
	}
	call(t, around, caller)
	var last string
	for len(p.lines) > 0 {
		last = <-p.lines
	}
	return last
}
