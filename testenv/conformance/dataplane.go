package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// Controls has the functions that the dataplane's suite needs beside the dataplane.
type Controls struct {
	// Again returns a second dataplane over the same links, as after a restart; the
	// suite does not use the first any more.
	Again func(t *testing.T) fabric.Dataplane
	// Kinds are the kinds of port that the dataplane can make here; nil means all.
	// Adopt needs Breaker.AddLink.
	Kinds []fabric.Kind
	Mover *Mover // nil: the suite leaves out the laws of guests that move
	Guest *Guest // nil: the suite leaves out what guests are told
	Breaker
}

// Breaker does things to links behind the dataplane's back. All of them may
// return before the dataplane notices.
type Breaker struct {
	AddLink    func(t *testing.T, name string)      // makes a link without the fabric's mark, up
	HasForeign func(t *testing.T, name string) bool // reports whether there is a link of that name as AddLink made it
	DelLink    func(t *testing.T, name string)
	SetDown    func(t *testing.T, name string)
	DelAddress func(t *testing.T, port string, gateway netip.Addr)
	DelRoute   func(t *testing.T, port string, p netip.Prefix)
	SetCarrier func(t *testing.T, port string, up bool) // opens and closes the other end
}

// ClusterName is the cluster of the ports that the suites put.
const ClusterName = "conf1"

var gateway = fabric.Gateway{
	IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.DefaultMAC,
}

// port builds a port: addresses first, then prefixes.
func port(vm string, index int, kind fabric.Kind, receives ...string) fabric.Port {
	nic := fabric.NIC{Kind: kind, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, byte(index + 1)}}
	for _, r := range receives {
		if p, err := netip.ParsePrefix(r); err == nil {
			nic.Routes = append(nic.Routes, p)
		} else {
			nic.Addresses = append(nic.Addresses, netip.MustParseAddr(r))
		}
	}
	return fabric.Port{
		Name: fabric.PortName(vm, index), Cluster: ClusterName, VM: vm, Index: index, NIC: nic, Gateway: gateway,
	}
}

// law is a property of every dataplane.
type law struct {
	name string
	hold func(*testing.T, fabric.Dataplane, Controls)
}

// Dataplane runs the laws of [fabric.Dataplane] as subtests. Each call of start
// makes a dataplane without ports, which lives until its t ends.
func Dataplane(t *testing.T, start func(t *testing.T) (fabric.Dataplane, Controls)) {
	for _, law := range append([]law{
		{"starts without ports", dataplaneEmpty},
		{"every kind and family", dataplaneKinds},
		{"Put is idempotent", dataplaneIdempotent},
		{"Remove of what is absent succeeds", dataplaneRemoveAbsent},
		{"foreign links stay untouched", dataplaneForeign},
		{"an adopted link is waited for and given back", dataplaneAdopt},
		{"another guest's port is refused", dataplaneOtherGuest},
		{"a second instance adopts", dataplaneAgain},
		{"outside interference is seen and repaired", dataplaneRepair},
		{"wake-ups are coalesced and come to rest", dataplaneCoalesced},
		{"carrier is told", dataplaneCarrier},
		{"different ports at the same time", dataplaneConcurrent},
		{"any state is reached from any other", dataplaneWalk},
	}, slices.Concat(guestLaws, moverLaws)...) {
		t.Run(law.name, func(t *testing.T) {
			d, c := start(t)
			if c.Kinds == nil {
				c.Kinds = []fabric.Kind{fabric.Tap, fabric.Veth, fabric.Adopt}
			}
			law.hold(t, d, c)
		})
	}
}

// need skips a law whose controls are missing.
func need(t *testing.T, have bool, what string) {
	t.Helper()
	if !have {
		t.Skip("no control: " + what)
	}
}

// made returns the kind of the ports for laws that hold for each kind alike.
func (c Controls) made() fabric.Kind {
	if slices.Contains(c.Kinds, fabric.Tap) {
		return fabric.Tap
	}
	return fabric.Veth
}

// requirePorts checks that the dataplane has exactly these ports, as they were put.
func requirePorts(t *testing.T, d fabric.Dataplane, want ...fabric.Port) {
	t.Helper()
	got, err := d.Actual(t.Context())
	require.NoError(t, err)
	type seen struct {
		Name, Cluster, VM string
		Index             int
		Kind              fabric.Kind
		Receives          []string
		Faults            []string
	}
	receives := func(n fabric.NIC) (sorted []string) {
		for _, p := range n.Prefixes() {
			sorted = append(sorted, p.String())
		}
		slices.Sort(sorted)
		return sorted
	}
	var wants, gots []seen
	for _, p := range want {
		wants = append(wants, seen{p.Name, p.Cluster, p.VM, p.Index, p.NIC.Kind, receives(p.NIC), nil})
	}
	for _, p := range got {
		gots = append(gots, seen{p.Name, p.Cluster, p.VM, p.Index, p.NIC.Kind, receives(p.NIC), append([]string(nil), p.Faults...)})
	}
	require.ElementsMatch(t, wants, gots)
}

// putAdopt puts a port whose link was made a moment ago: the dataplane may not know
// the link yet.
func putAdopt(t *testing.T, d fabric.Dataplane, p fabric.Port) {
	t.Helper()
	eventually(t, "the link of "+p.Name+" is taken over", func() bool {
		err := d.Put(t.Context(), p)
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(t, err)
		}
		return err == nil
	})
}

// faults returns the faults of a port; ok is false if the port is not there.
func faults(t *testing.T, d fabric.Dataplane, name string) (faults []string, ok bool) {
	t.Helper()
	got, err := d.Actual(t.Context())
	require.NoError(t, err)
	for _, p := range got {
		if p.Name == name {
			return p.Faults, true
		}
	}
	return nil, false
}

func dataplaneEmpty(t *testing.T, d fabric.Dataplane, _ Controls) {
	requirePorts(t, d)
	assert.Zero(t, rest(t, d.Changed(), func() {}))
}

func dataplaneKinds(t *testing.T, d fabric.Dataplane, c Controls) {
	for _, kind := range c.Kinds {
		for name, receives := range map[string][]string{
			"v4":         {"203.0.113.10"},
			"v6":         {"2001:db8:100::10"},
			"dual":       {"203.0.113.10", "2001:db8:100::10"},
			"several":    {"203.0.113.10", "203.0.113.11", "2001:db8:100::10", "2001:db8:100::11"},
			"routed":     {"203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "198.51.100.8/29", "2001:db8:200::/64"},
			"host route": {"203.0.113.10", "2001:db8:100::10", "198.51.100.1/32", "2001:db8:200::1/128"},
		} {
			t.Run(fmt.Sprint(kind, " ", name), func(t *testing.T) {
				p := port("web", 0, kind, receives...)
				if kind == fabric.Adopt {
					need(t, c.AddLink != nil, "AddLink")
					c.AddLink(t, p.Name)
					putAdopt(t, d, p)
				}
				require.NoError(t, d.Put(t.Context(), p))
				requirePorts(t, d, p)
				require.NoError(t, d.Remove(t.Context(), p.Name))
				requirePorts(t, d)
				if kind == fabric.Adopt && c.DelLink != nil {
					c.DelLink(t, p.Name)
				}
			})
		}
	}
	t.Run("several NICs", func(t *testing.T) {
		a := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
		b := port("web", 1, c.made(), "203.0.113.11", "2001:db8:100::11")
		require.NoError(t, d.Put(t.Context(), a))
		require.NoError(t, d.Put(t.Context(), b))
		requirePorts(t, d, a, b)
		require.NoError(t, d.Remove(t.Context(), a.Name, b.Name))
		requirePorts(t, d)
	})
	t.Run("a name that is no link name", func(t *testing.T) {
		p := port("Мой сервер: 1", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
		require.NoError(t, d.Put(t.Context(), p))
		requirePorts(t, d, p)
		require.NoError(t, d.Remove(t.Context(), p.Name))
		requirePorts(t, d)
	})
}

func dataplaneIdempotent(t *testing.T, d fabric.Dataplane, c Controls) {
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29")
	for range 5 {
		require.NoError(t, d.Put(t.Context(), p))
		requirePorts(t, d, p)
	}
	rest(t, d.Changed(), func() { require.NoError(t, d.Put(t.Context(), p)) })
	requirePorts(t, d, p)
}

func dataplaneRemoveAbsent(t *testing.T, d fabric.Dataplane, c Controls) {
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
	require.NoError(t, d.Remove(t.Context()))
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
	require.NoError(t, d.Put(t.Context(), p))
	require.NoError(t, d.Remove(t.Context(), "db_net0", p.Name, "mail_net0"), "absent ones among them")
	require.NoError(t, d.Remove(t.Context(), p.Name), "once more")
	requirePorts(t, d)
	require.NoError(t, d.Put(t.Context(), p))
	requirePorts(t, d, p)
}

func dataplaneForeign(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.AddLink != nil && c.HasForeign != nil, "AddLink, HasForeign")
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
	c.AddLink(t, p.Name)
	for range 2 {
		err := d.Put(t.Context(), p)
		require.ErrorIs(t, err, fabric.ErrForeign)
		require.ErrorContains(t, err, p.Name)
		requirePorts(t, d)
	}
	require.NoError(t, d.Remove(t.Context(), p.Name), "what is not ours is absent")
	require.True(t, c.HasForeign(t, p.Name), "the link was touched")
	other := port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	require.NoError(t, d.Put(t.Context(), other))
	requirePorts(t, d, other)
	if c.DelLink != nil {
		c.DelLink(t, p.Name)
		eventually(t, "Put once the link is gone", func() bool { return d.Put(t.Context(), p) == nil })
		requirePorts(t, d, other, p)
	}
}

func dataplaneAdopt(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.AddLink != nil && c.HasForeign != nil && slices.Contains(c.Kinds, fabric.Adopt), "AddLink, HasForeign, kind adopt")
	p := port("web", 0, fabric.Adopt, "203.0.113.10", "2001:db8:100::10", "2001:db8:200::/64")
	require.ErrorIs(t, d.Put(t.Context(), p), os.ErrNotExist)
	requirePorts(t, d)
	rest(t, d.Changed(), func() {})

	c.AddLink(t, p.Name)
	signalled(t, d.Changed(), "the link to adopt appeared")
	putAdopt(t, d, p)
	requirePorts(t, d, p)

	require.NoError(t, d.Remove(t.Context(), p.Name))
	requirePorts(t, d)
	require.True(t, c.HasForeign(t, p.Name), "the link is its owner's to remove, and carries no mark any more")

	require.NoError(t, d.Put(t.Context(), p))
	if c.DelLink != nil {
		c.DelLink(t, p.Name)
		signalled(t, d.Changed(), "the adopted link went away")
		eventually(t, "the adopted link is not listed any more", func() bool {
			_, there := faults(t, d, p.Name)
			return !there
		})
		require.NoError(t, d.Remove(t.Context(), p.Name))
	}
}

func dataplaneOtherGuest(t *testing.T, d fabric.Dataplane, c Controls) {
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
	require.NoError(t, d.Put(t.Context(), p))
	rival := port("mail", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	rival.Name = p.Name // as of two VM names that shorten alike
	require.ErrorIs(t, d.Put(t.Context(), rival), fabric.ErrForeign)
	requirePorts(t, d, p)
}

func dataplaneAgain(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.Again != nil, "Again")
	a := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")
	b := port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	if c.AddLink != nil && slices.Contains(c.Kinds, fabric.Adopt) {
		b.NIC.Kind = fabric.Adopt
		c.AddLink(t, b.Name)
	}
	require.NoError(t, d.Put(t.Context(), a))
	putAdopt(t, d, b)

	second := c.Again(t)
	for _, p := range []fabric.Port{a, b} {
		was, there := faults(t, second, p.Name)
		require.True(t, there, "%s is in the kernel", p.Name)
		assert.NotEmpty(t, was, "%s was not put since the start", p.Name)
	}
	require.NoError(t, second.Put(t.Context(), a))
	require.NoError(t, second.Put(t.Context(), b))
	requirePorts(t, second, a, b)

	third := c.Again(t)
	require.NoError(t, third.Remove(t.Context(), a.Name), "what this instance did not put")
	require.NoError(t, third.Put(t.Context(), b))
	requirePorts(t, third, b)
}

func dataplaneRepair(t *testing.T, d fabric.Dataplane, c Controls) {
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")
	bystander := port("db", 0, c.made(), "203.0.113.11", "2001:db8:100::11")
	require.NoError(t, d.Put(t.Context(), p))
	require.NoError(t, d.Put(t.Context(), bystander))
	type harm struct {
		name string
		do   func(t *testing.T)
	}
	var harms []harm
	if c.DelAddress != nil {
		for _, gw := range []netip.Addr{gateway.IPv4, gateway.IPv6} {
			harms = append(harms, harm{"gateway " + gw.String() + " deleted", func(t *testing.T) { c.DelAddress(t, p.Name, gw) }})
		}
	}
	if c.DelRoute != nil {
		for _, r := range p.NIC.Prefixes() {
			harms = append(harms, harm{"route " + r.String() + " deleted", func(t *testing.T) { c.DelRoute(t, p.Name, r) }})
		}
	}
	if c.SetDown != nil {
		harms = append(harms, harm{"link set down", func(t *testing.T) { c.SetDown(t, p.Name) }})
	}
	if c.DelLink != nil {
		harms = append(harms, harm{"link deleted", func(t *testing.T) { c.DelLink(t, p.Name) }})
	}
	need(t, len(harms) > 0, "DelAddress, DelRoute, SetDown or DelLink")
	for _, h := range harms {
		t.Run(h.name, func(t *testing.T) {
			rest(t, d.Changed(), func() {})
			h.do(t)
			signalled(t, d.Changed(), h.name)
			eventually(t, "Actual shows it", func() bool {
				is, there := faults(t, d, p.Name)
				return !there || len(is) > 0
			})
			require.NoError(t, d.Put(t.Context(), p))
			requirePorts(t, d, p, bystander)
		})
	}
}

func dataplaneCoalesced(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.DelRoute != nil, "DelRoute")
	const count = 20
	var ports []fabric.Port
	for i := range count {
		p := port(fmt.Sprint("g", i), 0, c.made(), fmt.Sprint("203.0.113.", i+10), fmt.Sprint("2001:db8:100::", i+10))
		require.NoError(t, d.Put(t.Context(), p))
		ports = append(ports, p)
	}
	rest(t, d.Changed(), func() {})
	for _, p := range ports {
		for _, r := range p.NIC.Prefixes() {
			c.DelRoute(t, p.Name, r)
		}
	}
	// Nobody has read Changed meanwhile, and the dataplane must not have waited for
	// that.
	eventually(t, "all damage is seen", func() bool {
		got, err := d.Actual(t.Context())
		return err == nil && !slices.ContainsFunc(got, func(p fabric.PortState) bool { return len(p.Faults) == 0 })
	})
	wakeUps := rest(t, d.Changed(), func() {
		for _, p := range ports {
			require.NoError(t, d.Put(t.Context(), p))
		}
	})
	assert.Positive(t, wakeUps)
	assert.Less(t, wakeUps, count, "for %d routes of %d ports", 2*count, count)
	requirePorts(t, d, ports...)
}

func dataplaneCarrier(t *testing.T, d fabric.Dataplane, c Controls) {
	need(t, c.SetCarrier != nil, "SetCarrier")
	p := port("web", 0, c.made(), "203.0.113.10", "2001:db8:100::10")
	require.NoError(t, d.Put(t.Context(), p))
	for _, up := range []bool{true, false, true} {
		rest(t, d.Changed(), func() {})
		before, err := d.Actual(t.Context())
		require.NoError(t, err)
		c.SetCarrier(t, p.Name, up)
		if before[0].Carrier != up {
			signalled(t, d.Changed(), fmt.Sprint("carrier ", up))
		}
		eventually(t, fmt.Sprint("carrier ", up), func() bool {
			got, err := d.Actual(t.Context())
			return err == nil && len(got) == 1 && got[0].Carrier == up && got[0].Lost == !up
		})
		requirePorts(t, d, p)
	}
}

func dataplaneConcurrent(t *testing.T, d fabric.Dataplane, c Controls) {
	var wg sync.WaitGroup
	var want []fabric.Port
	for i := range 8 {
		vm := fmt.Sprint("g", i)
		v4, v6 := fmt.Sprint("203.0.113.", i+10), fmt.Sprint("2001:db8:100::", i+10)
		p := port(vm, 0, c.made(), v4, v6)
		more := port(vm, 0, c.made(), v4, v6, fmt.Sprintf("198.51.100.%d/29", i*8), fmt.Sprintf("2001:db8:200:%d::/64", i))
		want = append(want, more)
		wg.Go(func() {
			for range 5 {
				assert.NoError(t, d.Put(t.Context(), p))
				_, err := d.Actual(t.Context())
				assert.NoError(t, err)
				assert.NoError(t, d.Put(t.Context(), more))
				assert.NoError(t, d.Remove(t.Context(), p.Name))
			}
			assert.NoError(t, d.Put(t.Context(), more))
		})
	}
	wg.Wait()
	requirePorts(t, d, want...)
}

// dataplaneWalk goes through a table of states in random order.
func dataplaneWalk(t *testing.T, d fabric.Dataplane, c Controls) {
	kind := c.made()
	web := func(receives ...string) fabric.Port { return port("web", 0, kind, receives...) }
	web1 := port("web", 1, kind, "203.0.113.21", "2001:db8:100::21")
	db := port("db", 0, kind, "203.0.113.30", "2001:db8:100::30", "2001:db8:300::/64")
	mtu := web("203.0.113.10", "2001:db8:100::10")
	mtu.NIC.MTU = 9000
	box := port("box", 0, kind, "203.0.113.40", "2001:db8:100::40")
	if slices.Contains(c.Kinds, fabric.Veth) {
		box.NIC.Kind = fabric.Veth
	}
	states := map[string][]fabric.Port{
		"nothing":         {},
		"v4 only":         {web("203.0.113.10")},
		"v6 only":         {web("2001:db8:100::10")},
		"dual":            {web("203.0.113.10", "2001:db8:100::10")},
		"other addresses": {web("203.0.113.12", "2001:db8:100::12")},
		"added addresses": {web("203.0.113.10", "203.0.113.12", "2001:db8:100::10", "2001:db8:100::12")},
		"other order":     {web("203.0.113.12", "203.0.113.10", "2001:db8:100::12", "2001:db8:100::10")},
		"routes":          {web("203.0.113.10", "2001:db8:100::10", "198.51.100.0/29", "2001:db8:200::/64")},
		"routes moved":    {web("203.0.113.12", "2001:db8:100::12", "198.51.100.0/29", "2001:db8:200::/64")},
		"other routes":    {web("203.0.113.10", "2001:db8:100::10", "198.51.100.8/29", "2001:db8:201::/64")},
		"MTU":             {mtu},
		"two NICs":        {web("203.0.113.10", "2001:db8:100::10"), web1},
		"second NIC only": {web1},
		"two guests":      {web("203.0.113.10", "2001:db8:100::10"), db},
		"handed over":     {port("db", 0, kind, "203.0.113.10", "2001:db8:100::10")},
		"arriving":        {incoming(web("203.0.113.10", "2001:db8:100::10"))},
		"arriving, more":  {incoming(web("203.0.113.12", "2001:db8:100::12", "198.51.100.0/29", "2001:db8:200::/64")), incoming(web1), db},
		"everything":      {web("203.0.113.10", "2001:db8:100::10", "198.51.100.0/29"), web1, db, box},
	}
	walk(t, states, func(t *testing.T, from, to []fabric.Port) {
		for _, p := range from {
			if !slices.ContainsFunc(to, func(q fabric.Port) bool { return q.Name == p.Name }) {
				require.NoError(t, d.Remove(t.Context(), p.Name))
			}
		}
		for _, p := range to {
			require.NoError(t, d.Put(t.Context(), p))
		}
		requirePorts(t, d, to...)
	})
}

// walk visits states in random order, each twice, beginning with nothing. When a
// step fails, it names the two states and the seed.
func walk[S any](t *testing.T, states map[string]S, step func(t *testing.T, from, to S)) {
	t.Helper()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var names []string
	for name := range states {
		names = append(names, name)
	}
	slices.Sort(names)
	var at S
	from := "nothing"
	for range 2 {
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, to := range names {
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) { step(t, at, states[to]) })
			if t.Failed() {
				t.Fatalf("the walk with seed %d went wrong from %s to %s", seed, from, to)
			}
			at, from = states[to], to
		}
	}
}
