package routingd_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/fabric/routingd"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// elsewhere is the configuration of a BIRD that announces the guest from another node, as
// one does where a guest has just begun to run.
func elsewhere(c fabric.Cluster, node fabric.Node) string {
	return fmt.Sprintf(`log stderr all;
router id %[1]s;
protocol device { }
protocol static guest4 { ipv4; route %[2]s blackhole; }
protocol static guest6 { ipv6; route %[3]s blackhole; }
filter fresh { bgp_local_pref = 200; bgp_community.add((64512,100)); bgp_large_community.add((64512,1,100)); accept; }
protocol bgp to_rr1 {
	local %[1]s as %[4]d; direct; neighbor %[5]s as %[4]d;
	connect delay time 1; connect retry time 1; error wait time 1, 5;
	ipv4 { import none; export filter fresh; next hop address %[1]s; };
	ipv6 { import none; export filter fresh; next hop address %[6]s; };
}
`, node.Address, guest[0], guest[1], c.ASN, c.Reflectors[0].Address, node.Address6)
}

// TestReceived asks daemons with the configuration that is rendered for a node what a
// reflector has sent them, in clusters whose nodes learn routes and in others.
func TestReceived(t *testing.T) {
	for _, kind := range []string{"bird", "frr"} {
		for _, eastWest := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, east_west %v", kind, eastWest), func(t *testing.T) {
				t.Parallel()
				labtest.Need(t, "bird", kind)
				c := core.SmallCluster(2)
				c.Reflectors, c.EastWest = c.Reflectors[:1], eastWest
				_, top := labtest.Build(t, c)
				text, err := render.Router(c, render.BIRD, "rr1")
				require.NoError(t, err)
				start := func(h *core.Host, conf string) *routers.Bird {
					d, err := routers.StartBird(t.Context(), h, strings.Replace(conf, "log syslog all;", "log stderr all;", 1))
					require.NoError(t, err)
					return d
				}
				start(top.Reflectors["rr1"], text)
				node := top.Nodes["node1"]
				text, err = render.Router(c, render.Format(kind), "node1")
				require.NoError(t, err)
				s := on(t, node, func() (*routingd.Speaker, error) {
					if kind == "bird" {
						start(node, text)
						return bird.New(t.Context(), bird.Config{Cluster: c, Node: c.Nodes[0], Socket: filepath.Join(node.Dir(), "bird.ctl")})
					}
					d, err := routers.StartFRR(t.Context(), node, text)
					require.NoError(t, err)
					return frr.New(t.Context(), frr.Config{Cluster: c, Node: c.Nodes[0], Client: d.Client()})
				})
				has := func(want ...fabric.ReceivedRoute) {
					t.Helper()
					var got []fabric.ReceivedRoute
					var err error
					defer func() { assert.ElementsMatch(t, want, got) }()
					require.NoError(t, core.Until(labtest.Soon(t), func() error {
						if got, err = s.Received(t.Context(), guest...); err == nil && len(got) != len(want) {
							err = fmt.Errorf("%v", got)
						}
						return err
					}))
				}
				has()
				other := start(top.Nodes["node2"], elsewhere(c, c.Nodes[1]))
				four := fabric.ReceivedRoute{Prefix: guest[0], Via: c.Nodes[1].Address, Peer: "rr1"}
				six := fabric.ReceivedRoute{Prefix: guest[1], Via: c.Nodes[1].Address6, Peer: "rr1"}
				has(four, six)
				_, err = other.Query(t.Context(), "disable guest4")
				require.NoError(t, err)
				has(six)
				_, err = other.Query(t.Context(), "disable guest6")
				require.NoError(t, err)
				has()
				none, err := s.Received(t.Context(), netip.MustParsePrefix("203.0.113.11/32"))
				require.NoError(t, err)
				assert.Empty(t, none)
			})
		}
	}
}
