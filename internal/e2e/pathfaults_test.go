package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// impair puts an impairment between hosts and the underlay, until the returned function
// is called.
func (s *system) impair(by core.Impairment, hosts ...*core.Host) (heal func()) {
	s.t.Helper()
	var undo []func() error
	for _, h := range hosts {
		u, err := s.lab.Impair(h, by)
		require.NoError(s.t, err)
		undo = append(undo, u)
	}
	return func() {
		for _, u := range undo {
			require.NoError(s.t, u())
		}
	}
}

// cut keeps a host and others from each other, until the returned function is called. A
// port of theirs can be named; zero: all that they say.
func (s *system) cut(h *core.Host, port uint16, others ...*core.Host) (heal func()) {
	s.t.Helper()
	rules := "table inet cut {\n"
	for chain, words := range map[string][2]string{"input": {"saddr", "sport"}, "output": {"daddr", "dport"}} {
		rules += fmt.Sprintf("chain %s { type filter hook %[1]s priority -400;\n", chain)
		for _, o := range others {
			match := ""
			if port != 0 {
				match = fmt.Sprintf(" tcp %s %d", words[1], port)
			}
			rules += fmt.Sprintf("ip %s %s%s drop\nip6 %[1]s %[4]s%[3]s drop\n", words[0], o.Addr4(), match, o.Addr6())
		}
		rules += "}\n"
	}
	nft := func(text string) {
		s.t.Helper()
		_, err := h.Run(soon(s.t), "nft", text)
		require.NoError(s.t, err)
	}
	nft(rules + "}")
	return func() { nft("delete table inet cut") }
}

// TestFaultsOfThePaths: the paths between nodes, reflectors and the registry lose and delay
// what is sent, drop large packets, and are cut.
func TestFaultsOfThePaths(t *testing.T) {
	t.Parallel()
	o := underFaults(t, options{nodes: 2, noAgent: true, change: ofEtcd})
	rr1, rr2 := o.top.Reflectors["rr1"], o.top.Reflectors["rr2"]
	o.startEtcd(rr1)
	for n, node := range []string{"node1", "node2"} {
		o.agents[node].start()
		o.agents[node].established()
		o.adds(node, veth("web"+node, fmt.Sprintf("203.0.113.%d", 10+n), fmt.Sprintf("2001:db8:100::%x", 10+n)))
	}
	node1, node2 := o.top.Nodes["node1"], o.top.Nodes["node2"]

	o.suffers("loss and delay", func() time.Time {
		heal := o.impair(core.Impairment{Loss: 0.05, Delay: 200 * time.Millisecond}, rr1, rr2)
		o.comesAndGoes("node1", "slow")
		time.Sleep(whole(time.Minute, 4*time.Second))
		heal()
		return time.Now()
	})
	o.suffers("large packets are lost", func() time.Time {
		heal := o.impair(core.Impairment{MTU: 1300}, node1)
		o.manyComeAndGo("node1", 20)
		heal()
		return time.Now()
	})
	o.suffers("node and node are cut", func() time.Time {
		heal := o.cut(node1, 0, node2)
		o.comesAndGoes("node1", "alone")
		time.Sleep(whole(time.Minute, 2*time.Second))
		heal()
		return time.Now()
	})
	o.suffers("node and registry are cut", func() time.Time {
		heal := o.cut(node1, 2379, rr1)
		o.comesAndGoes("node1", "unregistered")
		o.agents["node1"].complains("registry")
		time.Sleep(whole(time.Minute, 0))
		heal()
		return time.Now()
	})
	o.suffers("node and a reflector are cut", func() time.Time {
		heal := o.cut(node1, 0, rr2)
		o.agents["node1"].complains("session with rr2")
		o.comesAndGoes("node1", "halved")
		time.Sleep(whole(time.Minute, 0))
		heal()
		return time.Now()
	})
	o.suffers("node and reflectors are cut", func() time.Time {
		heal := o.cut(node1, 0, rr1, rr2)
		o.nobodyHas(o.guests["node1"][0].Prefixes()...)
		time.Sleep(whole(time.Minute, 0))
		heal()
		return time.Now()
	})
}

// manyComeAndGo starts so many guests at once that what a reflector is told of them does not
// fit a packet, and ends them.
func (o *ordeal) manyComeAndGo(node string, count int) {
	o.t.Helper()
	var all []netip.Prefix
	for _, op := range []hooks.Op{hooks.Live, hooks.Remove} {
		for i := range count {
			vm := veth(fmt.Sprint("m", i), fmt.Sprintf("203.0.113.%d", 100+i), fmt.Sprintf("2001:db8:100::%x", 0x100+i))
			vm.NICs[0].Kind = fabric.Tap
			if op == hooks.Live {
				all = append(all, vm.Prefixes()...)
			}
			o.agents[node].ask(op, vm)
		}
		if op == hooks.Live {
			o.coreHas(o.top.Nodes[node], all...)
			require.NoError(o.t, o.rr["rr1"].Kill())
			o.startReflector("rr1")
			o.agents[node].established()
			o.eventually("the reflector has them all", func() error {
				routes, err := o.rr["rr1"].Routes(soon(o.t))
				if err == nil && len(routes) < 2*count {
					err = fmt.Errorf("it has %d", len(routes))
				}
				return err
			})
		}
	}
	o.nobodyHas(all...)
}
