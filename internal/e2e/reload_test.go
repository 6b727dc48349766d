package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// reload has the agent read the cluster file, and waits until it has.
func (a *agent) reload() {
	a.s.t.Helper()
	read := func() int { return strings.Count(a.Log(), `msg="reload: `) + strings.Count(a.Log(), "msg=reload ") }
	before := read()
	require.NoError(a.s.t, a.Signal(syscall.SIGHUP))
	a.eventually("the file is read", func() error {
		if read() == before {
			return fmt.Errorf("nothing of a reload in the log")
		}
		return nil
	})
}

// pending asks for what of the file the agent does not go by.
func (a *agent) pending() []string {
	a.s.t.Helper()
	return a.ask(hooks.Status, fabric.VM{}).Status.Pending
}

// TestReload changes the cluster file of an agent that runs, under a probe of 1,000
// packets a second.
func TestReload(t *testing.T) {
	t.Parallel()
	more4, more6 := netip.MustParsePrefix("198.18.9.0/24"), netip.MustParsePrefix("2001:db8:300::/48")
	s := start(t, options{nodes: 2, change: func(c *fabric.Cluster) {
		c.Pools = append(c.Pools, fabric.Pool{Name: "more4", Prefix: more4}, fabric.Pool{Name: "more6", Prefix: more6})
	}})
	a, all := s.agents["node1"], s.cluster
	web, db, new := veth("web", "203.0.113.10", "2001:db8:100::10"), veth("db", "203.0.113.11", "2001:db8:100::11"), veth("new", "198.18.9.9", "2001:db8:300::9")
	guest := s.run("node1", web)
	s.run("node1", db)
	s.coreHas(s.top.Nodes["node1"], web.Prefixes()...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	s.reaches(guest.Host, "203.0.113.11", "2001:db8:100::11")
	withdrawn := s.watchWithdrawals()
	var probes []*core.Prober
	for _, address := range web.NICs[0].Addresses {
		p, err := s.top.Client.Probe(address, time.Millisecond)
		require.NoError(t, err)
		probes = append(probes, p)
	}
	begun := a.status().Since

	less := all
	less.Pools = all.Pools[:len(all.Pools)-2]
	s.writeFile("cluster.yaml", less)
	require.Len(t, a.pending(), 1)
	assert.Contains(t, a.pending()[0], "has changed since it was read; systemctl reload vmfabric takes it up")
	a.reload()
	require.Empty(t, a.pending())
	_, err := a.try(hooks.Request{Op: hooks.Live, VM: new})
	require.ErrorContains(t, err, "address 198.18.9.9: outside the pools")

	more := all
	more.Nodes = append(slices.Clone(all.Nodes), fabric.Node{Name: "node9", Address: netip.MustParseAddr("10.10.0.99"), Address6: netip.MustParseAddr("fd00:10:10::99")})
	more.Guests.Isolate = true
	s.writeFile("cluster.yaml", more)
	a.reload()
	require.Empty(t, a.pending())
	s.run("node1", new)
	s.coreHas(s.top.Nodes["node1"], new.Prefixes()...)
	s.reaches(s.top.Client, "198.18.9.9", "2001:db8:300::9")
	reply := a.ask(hooks.Nodes, fabric.VM{})
	assert.Contains(t, reply.Nodes, "node9")
	for _, to := range db.NICs[0].Addresses {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := guest.Ping(ctx, to)
		cancel()
		assert.Error(t, err, "isolated from %s", to)
	}
	s.writeFile("cluster.yaml", all) // a node that does not answer is a problem, as long as it is one
	a.reload()
	s.badReloads(a, all)

	s.reflectorsReload(a, all, web.Prefixes()[0])
	s.reaches(guest.Host, "203.0.113.11", "2001:db8:100::11") // no more isolated

	answered(t, 300, probes...)
	for _, p := range probes {
		r := p.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
	}
	assert.Empty(t, withdrawn(), "the core gateway lost a route")
	assert.Equal(t, begun, a.status().Since, "one agent all the time")
	assert.NotContains(t, a.Log(), "DATA RACE")
}

// badReloads: a mistake changes nothing, and what needs a restart waits for it; both say
// so, and the node is well.
func (s *system) badReloads(a *agent, all fabric.Cluster) {
	s.t.Helper()
	file := s.writeFile("cluster.yaml", all)
	text, err := os.ReadFile(file)
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(file, []byte(strings.Replace(string(text), "asn:", "asm:", 1)), 0o600))
	a.reload()
	require.NotEmpty(s.t, a.pending())
	assert.Contains(s.t, a.pending()[0], "cluster file not taken up, nothing changes: "+file+":")
	assert.Contains(s.t, strings.Join(a.pending(), "\n"), "asm: unknown key; did you mean asn?")
	stdout, _, code := a.cli("status")
	assert.Zero(s.t, code, stdout)
	assert.Contains(s.t, stdout, "  ~ cluster file not taken up, nothing changes: ")

	other := all
	other.ASN, other.Gateway.MAC = all.ASN+1, fabric.MAC{2, 0, 0, 0, 0, 9}
	s.writeFile("cluster.yaml", other)
	a.reload()
	assert.Equal(s.t, []string{
		"asn: changed; it is as it was until the agent is restarted", "gateway: changed; it is as it was until the agent is restarted",
	}, a.pending())
	assert.True(s.t, a.status().Healthy)
}

// reflectorsReload: a reflector goes from the cluster file, and comes again.
func (s *system) reflectorsReload(a *agent, all fabric.Cluster, p netip.Prefix) {
	s.t.Helper()
	one := all
	one.Reflectors = all.Reflectors[1:]
	s.writeFile("cluster.yaml", one)
	a.reload()
	require.Empty(s.t, a.pending())
	a.eventually("the first reflector has lost the node", func() error {
		routes, err := s.rr["rr1"].Routes(soon(s.t))
		if err == nil && slices.ContainsFunc(routes, func(r routers.BGPRoute) bool { return r.Prefix == p }) {
			err = fmt.Errorf("it has the route")
		}
		return err
	})
	assert.Len(s.t, a.status().Sessions, 1)
	s.writeFile("cluster.yaml", all)
	a.reload()
	a.established()
	assert.Len(s.t, a.status().Sessions, 2)
}
