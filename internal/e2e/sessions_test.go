package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// everySpeaker has a node of each speaker.
var everySpeaker = map[string]string{"node2": "bird", "node3": "frr"}

// TestReflectorsWithoutAFamily has two reflectors that take one family only from
// the nodes. What is not there is said, of each node and each address, and what
// is there is well.
func TestReflectorsWithoutAFamily(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		family fabric.Family
		rr     string
	}{{fabric.IPv6, "bird"}, {fabric.IPv4, "bird"}, {fabric.IPv6, "frr"}, {fabric.IPv4, "frr"}} {
		t.Run(fmt.Sprint(tc.rr, " without ", tc.family), func(t *testing.T) {
			t.Parallel()
			channel := regexp.MustCompile(`(?s)\n\t` + string(tc.family) + ` \{\n.*?\n\t\};`)
			s := start(t, options{nodes: 3, rr: tc.rr, speakers: everySpeaker, edit: func(name, conf string) string {
				if !strings.HasPrefix(name, "rr") {
					return conf
				}
				if tc.rr == "frr" {
					return withoutFRRFamily(t, conf, tc.family)
				}
				before, after, ok := strings.Cut(conf, "template bgp node")
				at := channel.FindStringIndex(after)
				require.True(t, ok && at != nil, conf)
				return before + "template bgp node" + after[:at[0]] + after[at[1]:]
			}})
			for n, node := range []string{"node1", "node2", "node3"} {
				a := s.agents[node]
				vm := veth("web"+node, fmt.Sprintf("203.0.113.%d", 10+n), fmt.Sprintf("2001:db8:100::%d", 10+n))
				s.run(node, vm)
				good, bad := vm.NICs[0].Addresses[0], vm.NICs[0].Addresses[1]
				if tc.family == fabric.IPv4 {
					good, bad = bad, good
				}
				s.coreHas(s.top.Nodes[node], netip.PrefixFrom(good, good.BitLen()))

				out, errs, code := a.cli("status", "--json")
				assert.Equal(t, 1, code, "%s %s", out, errs)
				st := decode[fabric.Status](t, out)
				assert.False(t, st.Healthy)
				for i, rr := range []string{"rr1", "rr2"} {
					assert.True(t, slices.ContainsFunc(st.Problems, func(p string) bool {
						return strings.HasPrefix(p, fmt.Sprintf("%s takes no %s:", rr, tc.family))
					}), "%s: %s", node, st.Problems)
					assert.NotContains(t, st.Sessions[i].Families, tc.family)
					assert.Len(t, st.Sessions[i].Families, 1, node)
				}
				s.eventually(fmt.Sprint(node, " has sent ", good), func() error {
					if out, errs, code := a.cli("why", good.String()); code != 0 {
						return fmt.Errorf("%s %s", out, errs)
					}
					return nil
				})
				out, _, code = a.cli("why", bad.String())
				assert.Equal(t, 1, code, out)
				for _, rr := range []string{"rr1", "rr2"} {
					assert.Regexp(t, fmt.Sprintf("MISSING reflector %s: .*takes no %s", rr, tc.family), out, node)
				}
			}
		})
	}
}

// withoutFRRFamily has the nodes' group of an FRR not activated in a family.
func withoutFRRFamily(t *testing.T, conf string, f fabric.Family) string {
	t.Helper()
	before, after, ok := strings.Cut(conf, " address-family "+string(f)+" unicast")
	require.True(t, ok, conf)
	block, rest, ok := strings.Cut(after, "exit-address-family")
	require.True(t, ok, conf)
	var kept []string
	dropped := false
	for line := range strings.Lines(block) {
		if strings.Contains(line, "NODE") {
			dropped = true
			continue
		}
		kept = append(kept, line)
	}
	require.True(t, dropped, conf)
	return before + " address-family " + string(f) + " unicast" + strings.Join(kept, "") + "exit-address-family" + rest
}

// TestNotificationsAreTold: what ended a session is in the health of the node,
// whoever speaks for it, in place of a guess.
func TestNotificationsAreTold(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 3, speakers: everySpeaker})
	nodes := []string{"node1", "node2", "node3"}
	for n, node := range nodes {
		s.run(node, veth("web"+node, fmt.Sprintf("203.0.113.%d", 10+n), fmt.Sprintf("203.0.113.%d", 20+n), fmt.Sprintf("2001:db8:100::%d", 10+n)))
		s.coreHas(s.top.Nodes[node], netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/32", 20+n)))
	}
	says := func(rr string, words ...string) {
		t.Helper()
		for _, node := range nodes {
			s.eventually(fmt.Sprint(node, " says of ", rr, " ", words), func() error {
				out, _, code := s.agents[node].cli("status")
				i := slices.IndexFunc(strings.Split(out, "\n"), func(line string) bool {
					return strings.Contains(line, "! session with "+rr) && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
				})
				if i < 0 || code != 1 {
					return fmt.Errorf("exit %d: %s", code, out)
				}
				return nil
			})
			n := slices.Index(nodes, node)
			out, _, code := s.agents[node].cli("why", fmt.Sprintf("2001:db8:100::%d", 10+n))
			assert.Equal(t, 1, code, out)
			for _, w := range words {
				assert.Regexp(t, "MISSING reflector "+rr+": .*"+regexp.QuoteMeta(w), out, node)
			}
		}
	}
	well := func() {
		t.Helper()
		for _, node := range nodes {
			s.eventually(node+" is well", func() error {
				if p := s.agents[node].status().Problems; len(p) > 0 {
					return fmt.Errorf("%q", p)
				}
				return nil
			})
		}
	}
	rr1, rr2 := s.rr["rr1"].(*routers.Bird), s.rr["rr2"].(*routers.Bird)

	for _, node := range nodes {
		_, err := rr1.Query(soon(t), fmt.Sprintf("disable 'node_%s' \"planned \u202ework\"", node))
		require.NoError(t, err)
	}
	says("rr1", "Cease, Administrative Shutdown (6/2)", `"planned \u202ework"`, "enable the session there again")
	for _, node := range nodes {
		_, err := rr1.Query(soon(t), fmt.Sprintf("enable 'node_%s'", node))
		require.NoError(t, err)
	}
	well()
	out, _, _ := s.agents["node1"].cli("status")
	assert.Regexp(t, `reflector rr1 .* last NOTIFICATION received .* ago: Cease, Administrative Shutdown`, out, "it is history")

	conf, err := render.Router(s.cluster, render.BIRD, "rr2")
	require.NoError(t, err)
	limit := regexp.MustCompile(`import limit \d+ action block`)
	require.Regexp(t, limit, conf)
	require.NoError(t, rr2.Configure(soon(t), logging(limit.ReplaceAllString(conf, "import limit 1 action disable"))))
	says("rr2", "Cease, Maximum Number of Prefixes Reached (6/1)", "max_prefixes")
	require.NoError(t, rr2.Configure(soon(t), logging(conf)))
	for _, node := range nodes {
		_, err := rr2.Query(soon(t), fmt.Sprintf("enable 'node_%s'", node))
		require.NoError(t, err)
	}
	well()

	other := s.cluster
	other.ASN, other.Reflectors = 64999, slices.Clone(s.cluster.Reflectors)
	for i := range other.Reflectors {
		other.Reflectors[i].ASN = other.ASN
	}
	wrong, err := render.Router(other, render.BIRD, "rr2")
	require.NoError(t, err)
	require.NoError(t, rr2.Configure(soon(t), logging(wrong)))
	says("rr2", "OPEN Message Error, Bad Peer AS (2/2)", "AS numbers")
	require.NoError(t, rr2.Configure(soon(t), logging(conf)))
	well()
}

// logging has a rendered BIRD log where the lab shows it.
func logging(conf string) string {
	return strings.Replace(conf, "log syslog all;", "log stderr all; debug protocols { states, events };", 1)
}
