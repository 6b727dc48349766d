package render_test

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestRouterAccepted: the daemons take every golden file, and those of a large
// cluster.
func TestRouterAccepted(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	all := renderings(t)
	many := nodes(200)
	for _, name := range []string{"rr1", "core1", "node200"} {
		for _, f := range []render.Format{render.BIRD, render.FRR} {
			all = append(all, rendering{"200 nodes", many, f, name})
		}
	}
	for _, r := range all {
		if r.format == render.Junos {
			continue
		}
		t.Run(r.file(), func(t *testing.T) {
			text, err := render.Router(r.c, r.format, r.name)
			require.NoError(t, err)
			assert.NoError(t, render.CheckRouter(t.Context(), r.format, text))
		})
	}
}

func TestRouterManyNodes(t *testing.T) {
	c := nodes(200)
	for f, named := range map[render.Format]string{
		render.BIRD: `(?m)^protocol bgp 'node_node\d+' from node \{ .*neighbor 10\.20\.\d+\.\d+ as 64512; \}$`,
		render.FRR:  `(?m)^ neighbor 10\.20\.\d+\.\d+ peer-group NODES$`,
	} {
		text, err := render.Router(c, f, "rr1")
		require.NoError(t, err)
		assert.Len(t, regexp.MustCompile(named).FindAllString(text, -1), 200, f)
		for _, r := range []string{"range 10.20.0.0/24", "range 10.20.1.0/24"} {
			assert.Equal(t, 1, strings.Count(text, r), r)
		}
	}
	for _, f := range []render.Format{render.BIRD, render.FRR} {
		for _, name := range []string{"core1", "node7"} {
			one, err := render.Router(nodes(7), f, name)
			require.NoError(t, err)
			all, err := render.Router(c, f, name)
			require.NoError(t, err)
			assert.Equal(t, one, all, "%s of %s does not grow with the nodes", f, name)
		}
	}
}

// TestRouterRejected: what a daemon says of a text that it does not take.
func TestRouterRejected(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	for f, want := range map[render.Format]string{
		render.BIRD: "bird: line 2:1 syntax error, unexpected CF_SYM_UNDEFINED",
		render.FRR:  "line 2: % Unknown command[4]: nonsense",
	} {
		assert.EqualError(t, render.CheckRouter(t.Context(), f, "\nnonsense\n"), want)
	}
	assert.ErrorContains(t, render.CheckRouter(t.Context(), render.Junos, ""), "commit check")
}

func TestRouterRefuses(t *testing.T) {
	change := func(f func(c *fabric.Cluster)) fabric.Cluster {
		c := everything()
		f(&c)
		return c
	}
	for _, tt := range []struct {
		name   string
		c      fabric.Cluster
		format render.Format
		who    string
		want   string
	}{
		{"unknown format", everything(), "ios", "rr1", `format "ios" is not one of bird, frr, junos, etcd`},
		{"format of guests", everything(), render.Netplan, "rr1", `format "netplan" is not one of bird, frr, junos, etcd`},
		{"nobody", everything(), render.BIRD, "x", `"x" is no reflector, core gateway or node of cluster msk1; it has rr1, rr2, rr6, core1, edge, core6, node1, node-2.example`},
		{"of two kinds", change(func(c *fabric.Cluster) { c.Nodes[0].Name = "rr1" }), render.BIRD, "rr1", `"rr1" is the name of several (reflector, node); say which with --role`},
		{"no pools", change(func(c *fabric.Cluster) { c.Pools = nil }), render.BIRD, "rr1", "pools: missing; name at least one prefix whose addresses guests may have"},
		{"a name that breaks out", change(func(c *fabric.Cluster) { c.Nodes[0].Name = "a'; }" }), render.BIRD, "rr1", `nodes[0].name: "a'; }" is not a node name; use 1 to 32 letters, digits, '.', '_' and '-'`},
		{"no community", change(func(c *fabric.Cluster) { c.Communities = nil }), render.FRR, "rr1", `community: missing; the routers recognise the guests' routes by it, for example "64512:100"`},
		{
			"reflector in another AS", change(func(c *fabric.Cluster) { c.Reflectors[1].ASN = 64513 }), render.BIRD, "rr1",
			"reflector rr2 has AS number 64513 and the cluster 64512: routes are reflected inside of one AS (RFC 4456); leave its asn out",
		},
		{"junos reflector", everything(), render.Junos, "rr1", "reflector rr1: junos is for core gateways; render bird or frr for a reflector"},
		{"junos node", everything(), render.Junos, "node1", "node node1: junos is for core gateways; render bird or frr for a node"},
		{
			"no family in common, core", change(func(c *fabric.Cluster) { c.Reflectors = c.Reflectors[:1] }), render.FRR, "core6",
			"core gateway core6: its address fd00:10:10::1 has its family in common with no reflector (reflector rr1 (10.10.0.11)); give both ends an address of one family",
		},
		{
			"no family in common, reflector", change(func(c *fabric.Cluster) { c.Core = c.Core[2:] }), render.BIRD, "rr1",
			"reflector rr1: its address 10.10.0.11 has its family in common with no core gateway (core gateway core6 (fd00:10:10::1)); give both ends an address of one family",
		},
		{
			"reflector on a node", change(func(c *fabric.Cluster) { c.Reflectors[0].Address = addr("10.10.0.21") }), render.BIRD, "rr1",
			"reflector rr1: 10.10.0.21 is the address of node node1 too, and BGP knows speakers by their address; give the reflector another one, on the same machine or not",
		},
		{
			"a node with a reflector", change(func(c *fabric.Cluster) { c.Reflectors[0].Address = addr("10.10.0.21") }), render.BIRD, "node1",
			"node node1: 10.10.0.21 is the address of reflector rr1 too, and BGP knows speakers by their address; give the reflector another one, on the same machine or not",
		},
		{
			"reflector on a core gateway", change(func(c *fabric.Cluster) { c.Reflectors[0].Address = addr("10.10.0.1") }), render.FRR, "rr1",
			"reflector rr1: 10.10.0.1 is the address of core gateway core1 too, and BGP knows speakers by their address; give the reflector another one, on the same machine or not",
		},
		{
			"quote in BIRD", change(func(c *fabric.Cluster) { c.Reflectors[0].Password = `a"b` }), render.BIRD, "rr1",
			`reflector rr1: the password of reflector rr1: it has a '"', which BIRD's strings cannot hold; choose another`,
		},
		{
			"space in FRR", change(func(c *fabric.Cluster) { c.Reflectors[1].Password = "a b" }), render.FRR, "core1",
			"core gateway core1: the password of reflector rr2: it has a space, where FRR separates words; choose another",
		},
		{
			"Cyrillic in Junos", change(func(c *fabric.Cluster) { c.Reflectors[1].Password = "пароль" }), render.Junos, "core1",
			"core gateway core1: the password of reflector rr2: it has other characters than those of ASCII, which Junos does not take; choose another",
		},
		{
			"a line end", change(func(c *fabric.Cluster) { c.Reflectors[0].Password = "a\nb" }), render.BIRD, "node1",
			"node node1: the password of reflector rr1: it has a control character, which no router's configuration can hold; choose another",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, err := render.Router(tt.c, tt.format, tt.who)
			assert.EqualError(t, err, tt.want)
			assert.Empty(t, text)
		})
	}
}

func TestRouterRole(t *testing.T) {
	c := everything()
	c.Nodes[0].Name = "rr1"
	for role, title := range map[render.Role]string{render.Reflector: "Route reflector rr1 (10.10.0.11)", render.Node: "Node rr1 (10.10.0.21)"} {
		text, err := render.RouterAs(c, render.BIRD, "rr1", role)
		require.NoError(t, err)
		assert.Contains(t, text, title)
		assert.Contains(t, text, "vmfabric render bird --for rr1 --role "+string(role)+" --check")
	}
	_, err := render.RouterAs(c, render.BIRD, "rr1", render.Core)
	assert.ErrorContains(t, err, `core gateway "rr1" is not in cluster msk1`)
	_, err = render.RouterAs(c, render.BIRD, "rr1", "router")
	assert.EqualError(t, err, `role "router" is not one of reflector, core, node`)
}

// TestRouterIPv6Alone: a cluster without IPv4 has a router id all the same, and
// takes no IPv4 from anybody.
func TestRouterIPv6Alone(t *testing.T) {
	c := everything()
	c.Pools, c.Routed = c.Pools[4:], c.Routed[2:]
	c.Reflectors, c.Core = c.Reflectors[2:], c.Core[2:]
	for i := range c.Nodes {
		c.Nodes[i].Address = netip.Addr{}
	}
	for f, want := range map[render.Format][]string{
		render.BIRD: {"return false; # the cluster has no IPv4 for guests", "router id " + fabric.RouterID(netip.Addr{}, addr("fd00:10:10::13")).String()},
		render.FRR:  {"ip prefix-list GUESTS4 seq 5 deny any"},
	} {
		for _, name := range []string{"rr6", "core6", "node1"} {
			text, err := render.Router(c, f, name)
			require.NoError(t, err)
			assert.Contains(t, text, want[0])
			if name == "rr6" {
				assert.Contains(t, text, want[len(want)-1])
			}
			if labtestHas(t, f) {
				assert.NoError(t, render.CheckRouter(t.Context(), f, text))
			}
		}
	}
}

// labtestHas reports whether the daemon of a format is here.
func labtestHas(t *testing.T, f render.Format) bool {
	err := render.CheckRouter(t.Context(), f, "")
	return err == nil || !strings.Contains(err.Error(), "is not on this machine")
}

// nasty are passwords that mean something in one language or another.
var nasty = []string{
	`s3cret`, `!`, `#`, `!bang`, `#hash`, `a!b#c`, `a b`, ` `, ` lead`, `trail `, `two  spaces`, `a|b`, `|`, `"`, `"quoted"`, `a"b`, `\`, `\"`, `\\`, `end\`,
	`'`, `'single'`, `?what`, `a?b`, `{`, `}`, `{brace}`, `;`, `a;b`, `"; } protocol static { ipv4; route 0.0.0.0/0 blackhole; } #`, `/* c */`, `*/`, `//`, `(a)`,
	`[x]`, `<y>`, `$HOME`, "`id`", `%s%n`, `{{.Password}}`, `~`, `0`, `8 x`, `encrypted`, `пароль`, "\u2028", "\u00a0", "\x7f", "tab\tbed", "a\nb", "a\r", "\x00", "\xff\xfe",
	`,.:/=+*&^@_-`, strings.Repeat("x", 80), strings.Repeat(`"`, 80), strings.Repeat(`\`, 80),
}

// TestRouterPasswords: what is not refused is taken by the daemon.
func TestRouterPasswords(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	c := everything()
	taken := map[render.Format]int{}
	for _, password := range nasty {
		for _, f := range []render.Format{render.BIRD, render.FRR, render.Junos} {
			c.Reflectors[0].Password = password
			text, err := render.Router(c, f, "core1")
			if err != nil {
				assert.NotContains(t, err.Error(), "\n")
				continue
			}
			taken[f]++
			if f != render.Junos {
				assert.NoError(t, render.CheckRouter(t.Context(), f, text), "%s: %q", f, password)
			}
		}
	}
	for f, n := range taken {
		assert.Greater(t, n, len(nasty)/2, f)
	}
}

// shape is what must be the same whatever the words in a text are.
type shape struct{ lines, open, closed, semicolons, words int }

var quoted = regexp.MustCompile(`"(\\.|[^"\\])*"`)

// shapeOf measures a text without its strings, which BIRD ends at the next
// quote and Junos at one without a backslash, and FRR does not have.
func shapeOf(f render.Format, text string) shape {
	switch f {
	case render.BIRD:
		text = regexp.MustCompile(`"[^"]*"|'[^'\n]*' from|#.*`).ReplaceAllString(text, "S")
	case render.Junos:
		text = regexp.MustCompile(`#.*`).ReplaceAllString(quoted.ReplaceAllString(text, "S"), "C")
	case render.FRR:
		text = regexp.MustCompile(`(?m)^ *!.*`).ReplaceAllString(text, "!")
		text = regexp.MustCompile(`(?m)( password) \S+$`).ReplaceAllString(text, "$1 S")
	}
	return shape{
		strings.Count(text, "\n"), strings.Count(text, "{"), strings.Count(text, "}"), strings.Count(text, ";"), len(strings.Fields(text)),
	}
}

// FuzzRouter changes what comes from outside: the text is refused, or says as
// much as it would with plain words.
func FuzzRouter(f *testing.F) {
	for _, s := range nasty {
		f.Add("node1", "rr1", s, uint32(64512), uint32(100), "203.0.113.0/24")
	}
	for _, s := range []string{"a'b", `a"`, "a b", "a\n}", "x{", "-", "..", "router", strings.Repeat("n", 32)} {
		f.Add(s, s, "secret", uint32(1), uint32(1<<32-1), "2001:db8::/32")
	}
	f.Fuzz(func(t *testing.T, node, rr, password string, a, b uint32, pool string) {
		plain := everything()
		if p, err := netip.ParsePrefix(pool); err == nil {
			plain.Pools = append(plain.Pools[1:], fabric.Pool{Name: "fuzzed", Prefix: p})
		}
		plain.Communities = append(plain.Communities, fabric.Community{A: a & 0xffff, B: b & 0xffff}, fabric.Community{Large: true, A: a, B: b})
		changed := plain
		changed.Nodes = append([]fabric.Node{}, plain.Nodes...)
		changed.Reflectors = append([]fabric.RR{}, plain.Reflectors...)
		changed.Nodes[0].Name, changed.Reflectors[0].Name, changed.Reflectors[0].Password = node, rr, password
		if password == "" {
			plain.Reflectors = append([]fabric.RR{}, plain.Reflectors...)
			plain.Reflectors[0].Password = ""
		}
		for _, format := range []render.Format{render.BIRD, render.FRR, render.Junos} {
			for _, m := range []struct {
				role       render.Role
				name, what string
			}{{render.Reflector, rr, "rr1"}, {render.Core, "core1", "core1"}, {render.Node, node, "node1"}} {
				text, err := render.RouterAs(changed, format, m.name, m.role)
				if err != nil {
					if text != "" {
						t.Fatalf("text with an error: %v", err)
					}
					continue
				}
				want, err := render.RouterAs(plain, format, m.what, m.role)
				if err != nil {
					t.Fatalf("the plain one is refused: %v", err)
				}
				if got, want := shapeOf(format, text), shapeOf(format, want); got != want {
					t.Fatalf("%s %s: %+v instead of %+v:\n%s", format, m.role, got, want, text)
				}
			}
		}
	})
}
