package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/attack"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestHostileFrames sends every kind of frame of the attack suite from a tap and from a
// veth, looks that none comes where it must not, and that an honest one like it does. Then
// it takes the packet filter away and sends them all again: what the filter alone stops
// must show itself, or the check could not fail.
func TestHostileFrames(t *testing.T) {
	t.Parallel()
	a := newArena(t, func(*fabric.Cluster) {})
	before := a.routes()
	var probes []*core.Prober
	for _, f := range attack.Families {
		p, err := a.top.Client.Probe(a.attackers[0].cast.Other.Of(f), 5*time.Millisecond)
		require.NoError(t, err)
		probes = append(probes, p)
	}
	began := time.Now()
	wrong := a.attackAll(true)
	t.Logf("%d kinds of frames in %v", len(attack.Kinds()), time.Since(began).Round(time.Millisecond))
	assert.Empty(t, wrong, "%s", strings.Join(wrong, "\n"))
	assert.Equal(t, before, a.routes(), "what the core gateway routes")
	for _, p := range probes {
		r := p.Stop()
		assert.Zero(t, r.Lost, "packets of the other guest: %+v", r)
		assert.Positive(t, r.Received)
	}
	st := a.agents["node1"].status()
	assert.Empty(t, st.Problems)

	a.disarm()
	wrong = a.attackAll(false)
	assert.Empty(t, wrong, "%s", strings.Join(wrong, "\n"))
}

// routes lists those of the core gateway to guests.
func (a *arena) routes() (list []string) {
	a.t.Helper()
	r4, err := a.top.Core.Routes4()
	require.NoError(a.t, err)
	r6, err := a.top.Core.Routes6()
	require.NoError(a.t, err)
	for _, r := range append(r4, r6...) {
		list = append(list, r.String())
	}
	return list
}

// withdrawSome takes two addresses from each attacker, which has just sent from them, and
// returns when the core gateway has heard of it.
func (a *arena) withdrawSome() {
	a.t.Helper()
	for _, by := range a.attackers {
		for _, f := range attack.Families {
			a.passes(by, attack.Kind{Name: "an address that will be withdrawn", Honest: attack.FromGone, At: attack.Underlay}, f, 997)
		}
		by.vm.NICs[0].Addresses = by.vm.NICs[0].Addresses[:2]
		a.agents["node1"].ask(hooks.Live, by.vm)
	}
	a.eventually("withdrawn addresses are routed no more", func() error {
		for _, by := range a.attackers {
			for _, f := range attack.Families {
				if r, ok, err := a.top.Core.Route(fabric.HostPrefix(by.cast.Gone.Of(f))); err != nil || ok {
					return fmt.Errorf("core has %v %w", r, err)
				}
			}
		}
		return nil
	})
}

// disarm stops the agent, which would repair it, and takes the packet filter away.
func (a *arena) disarm() {
	a.t.Helper()
	agent := a.agents["node1"]
	require.NoError(a.t, agent.Signal(syscall.SIGSTOP))
	a.t.Cleanup(func() { _ = agent.Signal(syscall.SIGCONT) })
	for _, family := range []string{"inet", "arp"} {
		_, err := a.node.Run(soon(a.t), "nft", "delete", "table", family, "vmfabric")
		require.NoError(a.t, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.seen)
}

// volley is what one attacker sent of one kind, and what was found of it.
type volley struct {
	kind  attack.Kind
	found attack.Finding
	by    string
}

// attackAll sends every kind from every attacker, and returns what is wrong.
func (a *arena) attackAll(filtered bool) (wrong []string) {
	a.t.Helper()
	var all []volley
	for _, by := range a.attackers {
		for _, f := range attack.Families {
			a.speakTo(by, f)
			all = append(all, a.attackBy(by, f, attack.Kinds(), attack.Marks(), func() []string { return a.kept(by.cast) })...)
		}
	}
	return a.judge(all, filtered)
}

// attackBy sends kinds from an attacker, each with its control, and the marks after them.
// It looks by kept that they change nothing.
func (a *arena) attackBy(by *attacker, f attack.Family, kinds, marks []attack.Kind, kept func() []string) (all []volley) {
	a.t.Helper()
	for number, k := range kinds {
		if !k.Has(f) {
			continue
		}
		v := attack.NewVolley(by.cast, f, number, by.letter, false)
		k.Hostile(v)
		var before []string
		if k.Keeps {
			before = kept()
		}
		a.fire(by, v)
		a.passes(by, k, f, number)
		found := attack.Finding{Family: f, Tokens: v.Tokens}
		if k.Keeps {
			found.Changed = difference(before, kept())
		}
		all = append(all, volley{k, found, by.vm.Name})
	}
	for n, m := range marks {
		a.passes(by, m, f, 990+n)
	}
	return all
}

// judge returns what is wrong with what was seen of volleys.
func (a *arena) judge(all []volley, filtered bool) (wrong []string) {
	a.t.Helper()
	a.drain()
	for _, s := range all {
		for _, w := range s.kind.Judge(s.found, filtered, a.placesOf) {
			wrong = append(wrong, s.by+": "+w)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return append(wrong, a.wrong...)
}

// speakTo has a machine of the underlay send the attacker a datagram, to which it may
// answer.
func (a *arena) speakTo(by *attacker, f attack.Family) {
	a.t.Helper()
	const question = 989
	v := attack.NewVolley(by.cast, f, question, by.letter, true)
	token := v.Token()
	a.eventually("a datagram of the underlay arrives", func() error {
		err := a.lab.Host("neighbor").Do(func() error {
			c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(by.cast.Neighbor.Of(f), 4001)),
				net.UDPAddrFromAddrPort(netip.AddrPortFrom(by.cast.Self.Of(f), 4000)))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(token)
			return err
		})
		if err == nil && a.placesOf(string(token))&attack.Answer == 0 {
			err = fmt.Errorf("%s did not have it", by.vm.Name)
		}
		return err
	})
}
