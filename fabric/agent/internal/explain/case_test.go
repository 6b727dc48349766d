package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

func pools() *fabric.Cluster {
	return &fabric.Cluster{Name: "msk1", Pools: []fabric.Pool{
		{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24"), Exclude: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/32")}},
		{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Reserve: []fabric.Reservation{{Prefix: netip.MustParsePrefix("2001:db8:100::9/128"), Note: "vpn"}}},
	}}
}

func TestAllocationOfAPool(t *testing.T) {
	a := fabric.Allocation{Prefix: netip.MustParsePrefix("2001:db8:100::/64"), Pool: "own6", State: fabric.Allocated, VM: "web", Guest: "attached web", Node: "node1", Dynamic: true}
	assert.Contains(t, allocationText(a), ", given by pool own6")
	a.Pool = ""
	assert.Contains(t, allocationText(a), ", given by a pool that is not in the cluster file any more")
	a.Dynamic = false
	assert.Contains(t, allocationText(a), ", named by its description")
}

// The words of what disagrees, by what is wrong.
var words = map[string]string{
	"two guests":       "has it too, beside",
	"runs twice":       "is live there and on",
	"gave way":         "and gave way to",
	"unrecorded":       "has no allocation of it",
	"another's":        "the registry has it for guest",
	"elsewhere":        "by the registry guest web is on ",
	"reserved":         "it is reserved (printer), and",
	"at rest":          "gave it back, so that it rests",
	"port of nobody":   "and no such guest there has it",
	"no port":          "and no port of its kernel",
	"announced":        "and has no guest with it",
	"announced, wired": "does not run there; restart",
	"stray route":      "which is no node of the cluster",
	"route to silence": "whose agent does not say",
	"route to nobody":  "and announces it to nobody",
}

// wrong lists what the lines say that disagrees, and checks that each line is one of
// those.
func wrong(t *testing.T, lines []fabric.Step) (found []string) {
	t.Helper()
	for _, l := range lines {
		if l.Step != fabric.Disagreement {
			continue
		}
		require.False(t, l.Good)
		n := 0
		for what, w := range words {
			if strings.Contains(l.Text, w) {
				n++
				found = append(found, what)
			}
		}
		require.Equal(t, 1, n, l.Text)
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// The guests that a node may have, by what they are.
func guests() map[string]*fabric.FoundGuest {
	web := fabric.FoundGuest{VM: "web", Guest: "libvirt 1", State: fabric.Live, Epoch: fabric.RegistryEpoch + 7}
	all := map[string]*fabric.FoundGuest{"none": nil}
	add := func(name string, change func(*fabric.FoundGuest)) {
		g := web
		change(&g)
		all[name] = &g
	}
	add("live", func(*fabric.FoundGuest) {})
	add("wired", func(g *fabric.FoundGuest) { g.State = fabric.Wired })
	add("moving", func(g *fabric.FoundGuest) { g.Moving = true })
	add("arriving", func(g *fabric.FoundGuest) { g.State, g.Moving = fabric.Wired, true })
	add("lost", func(g *fabric.FoundGuest) { g.Lost = "node2" })
	add("other", func(g *fabric.FoundGuest) { g.VM, g.Guest = "db", "libvirt 2" })
	return all
}

// The answers of a registry.
func registries(a netip.Addr) map[string]*Registry {
	alloc := func(change func(*fabric.Allocation)) *Registry {
		x := fabric.Allocation{Prefix: fabric.HostPrefix(a), Pool: "public", State: fabric.Allocated, Guest: "libvirt 1", VM: "web", Node: "node1", Since: noon}
		change(&x)
		return &Registry{Shared: true, Allocations: []fabric.Allocation{x}}
	}
	return map[string]*Registry{
		"none":      nil,
		"fails":     {Shared: true, Error: "registry: etcd does not answer"},
		"nothing":   {Shared: true},
		"node1":     alloc(func(*fabric.Allocation) {}),
		"node9":     alloc(func(x *fabric.Allocation) { x.Node = "node9" }),
		"same":      alloc(func(x *fabric.Allocation) { x.Epoch = fabric.RegistryEpoch + 7 }),
		"earlier":   alloc(func(x *fabric.Allocation) { x.Epoch = fabric.RegistryEpoch + 6 }),
		"its own":   alloc(func(x *fabric.Allocation) { x.Epoch = 1 }),
		"another's": alloc(func(x *fabric.Allocation) { x.Guest, x.VM = "libvirt 3", "mx" }),
		"reserved": alloc(func(x *fabric.Allocation) {
			x.State, x.Guest, x.VM, x.Note = fabric.Reserved, "", "", "printer"
		}),
		"at rest": alloc(func(x *fabric.Allocation) { x.State, x.Until = fabric.Quarantined, noon.Add(time.Hour) }),
	}
}

// combination is what the parties say in one case of the table.
type combination struct {
	registry  string
	one, two  string // the guests of node1 and of node2
	announces bool   // node1
	port      bool   // node1's kernel has a port of web's
	route     string // of a reflector, as node2 knows it: via node1, node3, or a stranger
	silent    bool   // node3
}

// expected says independently of the code what is wrong in a combination.
func (c combination) expected() (all []string) {
	add := func(is bool, what string) {
		if is {
			all = append(all, what)
		}
	}
	here := func(g string) bool { return g != "none" }
	runs := func(g string) bool { return g == "live" || g == "moving" || g == "other" || g == "lost" }
	is := guests()
	if here(c.one) && here(c.two) {
		different := (c.one == "other") != (c.two == "other")
		add(different, "two guests")
		moves := strings.Contains("moving arriving", c.one) || strings.Contains("moving arriving", c.two)
		if !different && !moves && runs(c.one) && runs(c.two) {
			if c.one == "lost" || c.two == "lost" {
				add(true, "gave way")
			} else {
				add(true, "runs twice")
			}
		}
	}
	main := c.one
	order := map[string]int{"none": 0, "wired": 1, "arriving": 1, "lost": 2, "live": 3, "moving": 3, "other": 3}
	mainNode := "node1"
	if order[c.two] > order[c.one] {
		main, mainNode = c.two, "node2"
	}
	if here(main) {
		other := main == "other"
		add(c.registry == "nothing", "unrecorded")
		add(c.registry == "reserved", "reserved")
		add(c.registry == "at rest", "at rest")
		of := map[string]string{"node1": "node1", "node9": "node9", "same": "node1", "earlier": "node1", "its own": "node1"}[c.registry] // the owner of web
		add(c.registry == "another's" || other && of != "", "another's")
		add(main == "live" && of != "" && (of != mainNode || c.registry == "earlier"), "elsewhere")
	}
	add(c.port && (c.one == "none" || c.one == "other"), "port of nobody")
	add((c.one == "live" || c.one == "lost") && !c.port || c.one == "other", "no port")
	add(is[c.two] != nil && (c.two == "live" || c.two == "lost" || c.two == "other"), "no port") // node2's kernel has none
	add(c.announces && c.one == "none", "announced")
	add(c.announces && c.one == "wired", "announced, wired")
	add(c.route == "stranger", "stray route")
	add(c.route == "node3" && c.silent, "route to silence")
	add(c.route == "node3" && !c.silent, "route to nobody")
	add(c.route == "node1" && c.one == "none" && !c.announces, "route to nobody")
	slices.Sort(all)
	return slices.Compact(all)
}

func (c combination) of(a netip.Addr) Case {
	is := Case{Address: a, Cluster: pools(), Registry: registries(a)[c.registry]}
	one := fabric.Finding{Node: "node1", Guest: guests()[c.one], Announced: c.announces}
	if c.announces {
		one.Sent = []string{"rr1", "rr2"}
	}
	if c.port {
		one.Ports = []fabric.FoundPort{{Port: "web_net0", VM: "web"}}
	}
	two := fabric.Finding{Node: "node2", Guest: guests()[c.two]}
	switch c.route {
	case "stranger":
		two.Routes = []fabric.FoundRoute{{Reflector: "rr1", Via: netip.MustParseAddr("10.10.0.99")}}
	case "node1", "node3":
		two.Routes = []fabric.FoundRoute{{Reflector: "rr1", Node: c.route}}
	}
	is.Findings = []fabric.Finding{one, two}
	if c.silent {
		is.Silent = []Silence{{"node3", "no answer"}}
	} else {
		is.Findings = append(is.Findings, fabric.Finding{Node: "node3"})
	}
	return is
}

// TestEveryCombination of what the parties may say names what disagrees, and nothing
// else.
func TestEveryCombination(t *testing.T) {
	seen, cases := map[string]bool{}, 0
	for _, a := range []netip.Addr{four, six} {
		for registry := range registries(a) {
			for one := range guests() {
				for two := range guests() {
					for bits := range 1 << 3 {
						for _, route := range []string{"", "node1", "node3", "stranger"} {
							c := combination{registry: registry, one: one, two: two, announces: bits&1 > 0, port: bits&2 > 0, silent: bits&4 > 0, route: route}
							lines := c.of(a).Lines()
							got := wrong(t, lines)
							require.Equal(t, append([]string{}, c.expected()...), append([]string{}, got...), "%+v", c)
							checkFrame(t, c, lines)
							for _, w := range got {
								seen[w] = true
							}
							cases++
						}
					}
				}
			}
		}
	}
	assert.Equal(t, 2*11*7*7*8*4, cases)
	for what := range words {
		assert.True(t, seen[what], "no combination has %s", what)
	}
}

// checkFrame checks the lines around what disagrees.
func checkFrame(t *testing.T, c combination, lines []fabric.Step) {
	t.Helper()
	byStep := map[string]fabric.Step{}
	for _, l := range lines {
		byStep[l.Step] = l
	}
	require.True(t, byStep["pool"].Good)
	someone := c.one != "none" || c.two != "none"
	_, owned := byStep["owner"]
	require.Equal(t, someone, owned)
	missing, isMissing := byStep["guest"]
	require.Equal(t, !someone, isMissing)
	require.False(t, missing.Good)
	_, failed := byStep["registry"]
	require.Equal(t, c.registry == "fails", failed)
	silent, told := byStep["node node3"]
	require.Equal(t, c.silent, told)
	require.Equal(t, c.silent && someone, silent.Good)
}

func texts(lines []fabric.Step) (all []string) {
	for _, l := range lines {
		all = append(all, fmt.Sprintf("%v %s: %s", l.Good, l.Step, l.Text))
	}
	return all
}

// TestTheLines as people read them.
func TestTheLines(t *testing.T) {
	c := combination{registry: "another's", one: "none", two: "live", announces: true, route: "stranger", silent: true}.of(four)
	c.Findings[1].Ports = []fabric.FoundPort{{Port: "web_net0", VM: "web"}}
	c.Findings[1].Guest.Acquired = noon
	c.Findings[1].Steps = []fabric.Step{{Step: "guest", Good: true, Text: "web on node2", Node: "node2"}}
	assert.Equal(t, []string{
		"true pool: public4 (203.0.113.0/24)",
		"true allocation: guest mx (libvirt 3) on node1, since 2026-11-30 12:00:00, named by its description",
		"true guest: web on node2",
		"true owner: guest web (libvirt 1) on node2, epoch 17592186044423, has had it since 2026-11-30 12:00:00",
		"false disagreement: the registry has it for guest mx (libvirt 3) on node1, and guest web (libvirt 1) on node2 has it; give one of the two another address",
		"false disagreement: node1 announces it to rr1, rr2, and has no guest with it; restart the agent there",
		"false disagreement: rr1 has a route to it via 10.10.0.99, which is no node of the cluster; see what announces it there",
		"true node node3: no answer; what it has is not known",
	}, texts(c.Lines()))

	c = combination{registry: "node1", one: "none", two: "none", announces: true, silent: true}.of(six)
	assert.Equal(t, []string{
		"true pool: public6 (2001:db8:100::/48)",
		"true allocation: guest web (libvirt 1) on node1, since 2026-11-30 12:00:00, named by its description",
		"false guest: guest web, whose it is, runs nowhere; start it; node node3 may have it, and does not say",
		"false disagreement: node1 announces it to rr1, rr2, and has no guest with it, nor has another node that answers; restart the agent there",
		"false node node3: no answer; what it has is not known",
	}, texts(c.Lines()))

	for a, want := range map[string]string{
		"192.0.2.1":       "false pool: it is in no pool of cluster msk1; no guest may have it",
		"203.0.113.0":     "false pool: pool public4 excludes it; no guest may have it",
		"2001:db8:100::9": "true pool: public6 (2001:db8:100::/48), reserved by the cluster file (vpn)",
	} {
		assert.Equal(t, want, texts(Case{Address: netip.MustParseAddr(a), Cluster: pools()}.Lines())[0])
	}
}

// TestRegistriesOfTheirOwn: that of the guest's node counts, and another one disagrees
// that gives the address to another guest.
func TestRegistriesOfTheirOwn(t *testing.T) {
	for _, a := range []netip.Addr{four, six} {
		c := combination{one: "none", two: "live"}.of(a)
		c.Findings[1].Ports = []fabric.FoundPort{{Port: "web_net0", VM: "web"}}
		c.Registry = &Registry{}
		assert.Empty(t, wrong(t, c.Lines()), "its node's registry does not answer")
		c.Findings[1].OwnRegistry = true
		assert.Equal(t, []string{"unrecorded"}, wrong(t, c.Lines()))
		c.Findings[1].Allocations = registries(a)["node1"].Allocations
		c.Findings[1].Allocations[0].Node = "node2"
		assert.Empty(t, wrong(t, c.Lines()))
		c.Findings[0].OwnRegistry, c.Findings[0].Allocations = true, registries(a)["node9"].Allocations
		assert.Empty(t, wrong(t, c.Lines()), "it is the same guest")
		c.Findings[0].Allocations = registries(a)["another's"].Allocations
		lines := c.Lines()
		require.Len(t, lines, 5)
		assert.Equal(t, "the registry of node1 has it for guest mx (libvirt 3), and guest web (libvirt 1) on node2 has it; release it there, or give one of the two another address", lines[4].Text)
	}
}

// TestLatestClaim: of two nodes that have the guest, the one that began to run it later
// explains it.
func TestLatestClaim(t *testing.T) {
	c := combination{one: "live", two: "live", port: true}.of(four)
	c.Findings[1].Guest.Epoch++
	lines := c.Lines()
	assert.Contains(t, lines[1].Text, "on node2, epoch 17592186044424")
	assert.Equal(t, "guest web (libvirt 1) on node1 is live there and on node2; stop it on one of the two", lines[2].Text)
}

// TestFlaws: what a node could not find out is said, and nothing is concluded from it.
func TestFlaws(t *testing.T) {
	c := combination{registry: "node1", one: "live", two: "none"}.of(six)
	assert.Equal(t, []string{"no port"}, wrong(t, c.Lines()))
	c.Findings[0].Flaws = []string{"its kernel: it does not answer"}
	lines := c.Lines()
	assert.Empty(t, wrong(t, lines))
	assert.Equal(t, fabric.Step{Step: "node node1", Text: "its kernel: it does not answer", Node: "node1"}, lines[len(lines)-1])
}

// TestRoutedAddress needs no pool, and has the allocation of the prefix that it is in.
func TestRoutedAddress(t *testing.T) {
	for a, prefix := range map[string]string{"192.0.2.1": "192.0.2.0/29", "2001:db8:200::1": "2001:db8:200::/64"} {
		c := combination{registry: "same", one: "live", two: "none", port: true}.of(netip.MustParseAddr(a))
		c.Findings[0].Guest.Routed = true
		c.Registry.Allocations[0].Prefix = netip.MustParsePrefix(prefix)
		lines := c.Lines()
		for _, l := range lines {
			assert.True(t, l.Good, l)
		}
		assert.Contains(t, lines[1].Text, prefix+", guest web (libvirt 1) on node1")
		c.Registry.Allocations = nil
		assert.Equal(t, []string{"unrecorded"}, wrong(t, c.Lines()))
	}
}
