package conformance

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// Mover has the controls for the laws of guests that move.
type Mover struct {
	Other fabric.Node                          // another node, a neighbour in both families
	Hear  func(t *testing.T, port fabric.Port) // makes the guest of a port send a frame
	// Say makes the guest of a port, which has carrier, send a packet from an
	// address.
	Say   func(t *testing.T, port fabric.Port, from netip.Addr)
	Quiet time.Duration // how long nothing may be heard; 0: 100 ms
}

// moverLaws are the laws of incoming ports and of diversions.
var moverLaws = []law{
	{"an incoming port becomes an ordinary one", dataplaneIncoming},
	{"an incoming port is adopted and repaired", dataplaneIncomingRepair},
	{"diversions are listed until they are returned", moverDiverts},
	{"a family without a next hop keeps the others from nothing", moverFamilies},
	{"a guest that arrives is heard once", moverHears},
	{"a guest that is listened for is silent until it is heard", moverListens},
	{"what is recorded is a port", moverRecords},
}

func needMover(t *testing.T, c Controls) {
	t.Helper()
	need(t, c.Mover != nil, "Mover")
}

func incoming(p fabric.Port) fabric.Port {
	p.Incoming, p.Queue = true, 5000
	return p
}

func dataplaneIncoming(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	for name, receives := range map[string][]string{
		"v4":     {"203.0.113.10"},
		"v6":     {"2001:db8:100::10"},
		"routed": {"203.0.113.10", "203.0.113.11", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64"},
	} {
		t.Run(name, func(t *testing.T) {
			p := port("web", 0, c.made(), receives...)
			unknown := incoming(p)
			unknown.NIC.MAC = fabric.MAC{}
			for _, state := range []fabric.Port{incoming(p), incoming(p), p, p, incoming(p), unknown, p} {
				require.NoError(t, d.Put(t.Context(), state))
				requirePorts(t, d, state)
			}
			// An event and the guest's first frame can cause these two calls
			// without an Actual between them.
			for range 10 {
				require.NoError(t, d.Put(t.Context(), incoming(p)))
				require.NoError(t, d.Put(t.Context(), p))
			}
			requirePorts(t, d, p)
			require.NoError(t, d.Put(t.Context(), incoming(p)))
			require.NoError(t, d.Remove(t.Context(), p.Name))
			requirePorts(t, d)
		})
	}
}

func dataplaneIncomingRepair(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	need(t, c.Again != nil && c.DelRoute != nil, "Again, DelRoute")
	p := incoming(port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64"))
	require.NoError(t, d.Put(t.Context(), p))
	for _, r := range p.NIC.Prefixes() {
		rest(t, d.Changed(), func() {})
		c.DelRoute(t, p.Name, r)
		signalled(t, d.Changed(), "route "+r.String()+" deleted")
		eventually(t, "Actual shows it", func() bool {
			is, there := faults(t, d, p.Name)
			return there && len(is) > 0
		})
		require.NoError(t, d.Put(t.Context(), p))
		requirePorts(t, d, p)
	}
	second := c.Again(t)
	got, err := second.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, got, 1)
	assert.NotEmpty(t, got[0].Faults, "not put since the start")
	assert.ElementsMatch(t, p.NIC.Prefixes(), got[0].NIC.Prefixes())
	require.NoError(t, second.Put(t.Context(), p))
	requirePorts(t, second, p)
	p.Incoming = false
	third := c.Again(t)
	require.NoError(t, third.Put(t.Context(), p), "it arrived while nobody looked")
	requirePorts(t, third, p)
}

func moverDiverts(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	requireDiverted(t, d)
	require.NoError(t, d.Return(t.Context()))
	require.NoError(t, d.Return(t.Context(), netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")), "absence is success")
	a := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")
	b := port("web", 1, c.made(), "203.0.113.11", "2001:db8:100::11")
	all := append(a.NIC.Prefixes(), b.NIC.Prefixes()...)
	require.NoError(t, d.Put(t.Context(), a))
	require.NoError(t, d.Put(t.Context(), b))
	for range 2 {
		before := time.Now()
		done, err := d.Divert(t.Context(), []fabric.Port{a, b}, c.Mover.Other)
		require.NoError(t, err)
		assert.Zero(t, done.Resent, "nothing is recorded")
		assert.False(t, done.At.Before(before) || done.Done.Before(done.At))
		requireDiverted(t, d, all...)
		requirePorts(t, d, a, b)
	}
	require.NoError(t, d.Return(t.Context(), b.NIC.Prefixes()...))
	requireDiverted(t, d, a.NIC.Prefixes()...)
	_, err := d.Divert(t.Context(), []fabric.Port{b}, c.Mover.Other)
	require.NoError(t, err)
	require.NoError(t, d.Remove(t.Context(), a.Name, b.Name))
	requireDiverted(t, d, all...)
	if c.Again != nil {
		d = c.Again(t)
		requireDiverted(t, d, all...)
	}
	require.NoError(t, d.Return(t.Context(), all...))
	requireDiverted(t, d)
}

func requireDiverted(t *testing.T, d fabric.Dataplane, want ...netip.Prefix) {
	t.Helper()
	got, err := d.Diverted(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, want, got)
}

func moverFamilies(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")
	require.NoError(t, d.Put(t.Context(), p))
	for _, v4 := range []bool{true, false} {
		other := c.Mover.Other
		if v4 {
			other.Address6 = netip.Addr{}
		} else {
			other.Address = netip.Addr{}
		}
		_, err := d.Divert(t.Context(), []fabric.Port{p}, other)
		require.Error(t, err)
		assert.Contains(t, err.Error(), other.Name)
		have := slices.DeleteFunc(p.NIC.Prefixes(), func(r netip.Prefix) bool { return r.Addr().Is4() != v4 })
		requireDiverted(t, d, have...)
		require.NoError(t, d.Return(t.Context(), have...))
	}
}

func moverHears(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	need(t, c.Mover.Hear != nil, "Hear")
	silent := func(why string) {
		t.Helper()
		nothingHeard(t, d, c, why)
	}
	heard := func(names ...string) {
		t.Helper()
		var got []string
		for range names {
			select {
			case name := <-d.Heard():
				got = append(got, name)
			case <-time.After(patience):
				require.FailNow(t, "nothing was heard")
			}
		}
		require.ElementsMatch(t, names, got)
	}
	a := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
	b := port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	require.NoError(t, d.Put(t.Context(), a))
	c.Mover.Hear(t, a)
	silent("the port is not incoming")
	require.NoError(t, d.Put(t.Context(), incoming(a)))
	require.NoError(t, d.Put(t.Context(), incoming(b)))
	silent("no guest runs")
	c.Mover.Hear(t, a)
	c.Mover.Hear(t, a)
	c.Mover.Hear(t, b)
	heard(a.Name, b.Name)
	require.NoError(t, d.Put(t.Context(), incoming(a)))
	c.Mover.Hear(t, a)
	silent("it was heard")
	require.NoError(t, d.Put(t.Context(), a))
	c.Mover.Hear(t, a)
	silent("it has arrived")
	require.NoError(t, d.Put(t.Context(), incoming(a)))
	c.Mover.Hear(t, a)
	heard(a.Name)
	require.NoError(t, d.Remove(t.Context(), a.Name))
	require.NoError(t, d.Put(t.Context(), incoming(a)))
	silent("no guest runs")
	c.Mover.Hear(t, a)
	heard(a.Name)
}

func nothingHeard(t *testing.T, d fabric.Dataplane, c Controls, why string) {
	t.Helper()
	select {
	case name := <-d.Heard():
		require.Fail(t, name+" was heard", why)
	case <-time.After(cmp.Or(c.Mover.Quiet, 100*time.Millisecond)):
	}
}

func moverListens(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	need(t, c.Mover.Say != nil && c.SetCarrier != nil && c.Again != nil, "Say, SetCarrier, Again")
	look := func(d fabric.Dataplane) (silent, carrier bool) {
		t.Helper()
		ports, err := d.Actual(t.Context())
		require.NoError(t, err)
		require.Len(t, ports, 1)
		return ports[0].Silent, ports[0].Carrier
	}
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")
	p.Listen = true
	require.NoError(t, d.Put(t.Context(), p))
	begins := func() {
		t.Helper()
		c.SetCarrier(t, p.Name, false)
		eventually(t, "it has no carrier", func() bool {
			silent, carrier := look(d)
			return !carrier && !silent
		})
		c.SetCarrier(t, p.Name, true)
		eventually(t, "it is silent", func() bool {
			silent, _ := look(d)
			return silent
		})
	}
	for _, from := range []string{"203.0.113.10", "2001:db8:100::10", "198.51.100.3", "2001:db8:200::3"} {
		begins()
		for _, other := range []string{"fe80::5054:ff:fe00:1", "169.254.7.7", "203.0.113.11", "2001:db8:100::11"} {
			c.Mover.Say(t, p, netip.MustParseAddr(other))
		}
		nothingHeard(t, d, c, "the address is not the guest's")
		require.NoError(t, d.Put(t.Context(), p))
		silent, _ := look(d)
		assert.True(t, silent, "none of its addresses was heard yet")
		for range 2 {
			c.Mover.Say(t, p, netip.MustParseAddr(from))
		}
		select {
		case name := <-d.Heard():
			require.Equal(t, p.Name, name)
		case <-time.After(patience):
			require.FailNow(t, from+" was not heard")
		}
		silent, _ = look(d)
		assert.False(t, silent)
		nothingHeard(t, d, c, "it was heard")
		require.NoError(t, d.Put(t.Context(), p))
		silent, _ = look(d)
		assert.False(t, silent, "it was heard")
	}

	begins()
	rest(t, d.Changed(), func() {})
	eventually(t, "one that says nothing is not waited for for ever", func() bool {
		silent, _ := look(d)
		return !silent
	})
	signalled(t, d.Changed(), "it is not waited for any more")
	c.Mover.Say(t, p, p.NIC.Addresses[0])
	nothingHeard(t, d, c, "nobody waits for it any more")

	begins()
	second := c.Again(t)
	require.NoError(t, second.Put(t.Context(), p))
	silent, carrier := look(second)
	assert.True(t, carrier)
	assert.False(t, silent, "it was there before")
	require.NoError(t, second.Remove(t.Context(), p.Name))
}

func moverRecords(t *testing.T, d fabric.Dataplane, c Controls) {
	needMover(t, c)
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
	require.ErrorIs(t, d.Record(t.Context(), p.Name, true), os.ErrNotExist)
	require.NoError(t, d.Record(t.Context(), p.Name, false))
	require.NoError(t, d.Put(t.Context(), p))
	for _, record := range []bool{true, true, false, false, true} {
		require.NoError(t, d.Record(t.Context(), p.Name, record))
		requirePorts(t, d, p)
	}
	done, err := d.Divert(t.Context(), []fabric.Port{p}, c.Mover.Other)
	require.NoError(t, err)
	assert.Zero(t, done.Resent, "nothing went into the port")
	require.NoError(t, d.Return(t.Context(), p.NIC.Prefixes()...))
	require.NoError(t, d.Remove(t.Context(), p.Name))
	require.ErrorIs(t, d.Record(t.Context(), p.Name, true), os.ErrNotExist)
}
