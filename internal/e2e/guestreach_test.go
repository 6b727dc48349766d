package e2e

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// connects tells whether a TCP connection is made, which takes no time on a
// way that is open.
func connects(from *core.Host, a netip.Addr, port uint16) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(a, port).String())
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// accept serves a TCP port of a host.
func accept(t *testing.T, h *core.Host, port string) {
	t.Helper()
	l, err := h.Listen("tcp", "[::]:"+port)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello\n")
			_ = c.Close()
		}
	}()
}

// service is one of a machine of the cluster.
type service struct {
	host string
	addr netip.Addr
	port uint16
}

// TestGuestsAreKeptFromTheUnderlay: a guest reaches the Internet and its
// gateway's echo, and of the cluster's machines nothing but what is opened; they
// reach the guest.
func TestGuestsAreKeptFromTheUnderlay(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2})
	node, other, rr1 := s.top.Nodes["node1"], s.top.Nodes["node2"], s.top.Reflectors["rr1"]
	vm := veth("web", "203.0.113.10", "2001:db8:100::10")
	g := s.run("node1", vm)
	s.coreHas(node, vm.Prefixes()...)
	for _, h := range []*core.Host{node, other, s.top.Client, g.Host} {
		accept(t, h, "22")
	}
	metadata := netip.MustParseAddr("169.254.169.254")
	require.NoError(t, s.top.Core.AddAddr("lo", fabric.HostPrefix(metadata)))
	accept(t, s.top.Core, "80")
	for _, a := range []netip.Addr{core.ClientAddr4, core.ClientAddr6} {
		s.eventually("the Internet", func() error { _, err := g.Ping(soon(t), a); return err })
		assert.True(t, connects(g.Host, a, 22), a)
	}
	closed := []service{
		{"rr1", rr1.Addr4(), 179},
		{"rr1", rr1.Addr6(), 179},
		{"core", s.top.Core.Addr4(), 179},
		{"core", s.top.Core.Addr6(), 80},
		{"node1", node.Addr4(), 22},
		{"node1", node.Addr6(), 22},
		{"gateway", s.cluster.Gateway.IPv4, 22},
		{"node2", other.Addr4(), 22},
		{"node2", other.Addr6(), 22},
		{"metadata", metadata, 80},
		{"node1", node.Addr4(), fabric.DefaultAgentPort},
		{"node2", other.Addr4(), fabric.DefaultAgentPort},
	}
	for _, c := range closed {
		assert.False(t, connects(g.Host, c.addr, c.port), c)
	}
	s.reaches(g.Host, "169.254.1.1", "fe80::1%eth0", node.Addr4().String(), node.Addr6().String())
	guestIsReached(s, vm, node, other, rr1)

	// A restart with more in the file opens that, and the agent's port never.
	s.cluster.Guests = fabric.Guests{
		Reach:     []netip.Prefix{fabric.HostPrefix(rr1.Addr4()), fabric.HostPrefix(s.top.Core.Addr6()), fabric.HostPrefix(metadata)},
		NodePorts: []fabric.Service{{Protocol: "tcp", Port: 22}},
	}
	require.Equal(t, s.file, s.writeFile("cluster.yaml", s.cluster))
	a := s.agents["node1"]
	a.restart(a.Stop)
	opened := map[service]bool{closed[0]: true, closed[3]: true, closed[4]: true, closed[5]: true, closed[6]: true}
	for _, c := range closed {
		if opened[c] {
			s.eventually(c.host, func() error {
				conn, err := g.Dial(soon(t), "tcp", netip.AddrPortFrom(c.addr, c.port).String())
				if err != nil {
					return err
				}
				return conn.Close()
			})
			continue
		}
		if c.addr != metadata {
			assert.False(t, connects(g.Host, c.addr, c.port), c)
		}
	}
	mayNotPose(t, a, node)
}

// guestIsReached by machines of the cluster, and so is its own service.
func guestIsReached(s *system, vm fabric.VM, hosts ...*core.Host) {
	s.t.Helper()
	for _, from := range hosts {
		s.reaches(from, "203.0.113.10", "2001:db8:100::10")
		for _, a := range vm.NICs[0].Addresses {
			s.eventually("the guest's own service from "+from.Name(), func() error {
				c, err := from.Dial(soon(s.t), "tcp", netip.AddrPortFrom(a, 22).String())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = io.ReadFull(c, make([]byte, 6))
				return err
			})
		}
	}
}

// mayNotPose: no guest of a node gets a route to the cluster's machines.
func mayNotPose(t *testing.T, a *agent, node *core.Host) {
	t.Helper()
	_, stderr, code := a.cli("attach", "thief", "--address", "203.0.113.11", "--route", "10.10.0.64/28")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "10.10.0.0/24")
	_, stderr, code = a.cli("attach", "thief", "--address", "2001:db8:100::11", "--route", netip.PrefixFrom(node.Addr6(), 64).Masked().String())
	assert.Equal(t, 1, code, stderr)
	assert.Contains(t, stderr, "holds the address of")
}
