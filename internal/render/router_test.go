package render_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

// everything is a cluster with all that the file can say.
func everything() fabric.Cluster {
	return fabric.Cluster{
		Name: "msk1", ASN: 64512,
		Communities: []fabric.Community{{A: 64512, B: 100}, {A: 64512, B: 200}, {Large: true, A: 64512, B: 1, C: 100}},
		Gateway:     gateway,
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: prefix("203.0.113.0/24"), Exclude: []netip.Prefix{prefix("203.0.113.0/32"), prefix("203.0.113.248/29")}},
			{Name: "one4", Prefix: prefix("198.51.100.200/32")},
			{Name: "odd4", Prefixes: []netip.Prefix{prefix("192.0.2.128/26")}, Ranges: []fabric.AddressRange{{First: addr("192.0.2.10"), Last: addr("192.0.2.21")}}},
			{Name: "own4", Prefix: prefix("192.0.2.64/27"), PerGuest: 29},
			{Name: "public6", Prefix: prefix("2001:db8:100::/48"), Exclude: []netip.Prefix{prefix("2001:db8:100:ffff::/64")}},
			{Name: "own6", Prefix: prefix("2001:db8:300::/48"), Prefixes: []netip.Prefix{prefix("2001:db8:400:5::/64")}, PerGuest: 64},
		},
		Routed: []netip.Prefix{prefix("198.51.100.0/25"), prefix("198.51.100.201/32"), prefix("2001:db8:200::/40")},
		Reflectors: []fabric.RR{
			{Name: "rr1", Address: addr("10.10.0.11"), Password: "s3cret", GTSM: true, BFD: true},
			{Name: "rr2", Address: addr("10.10.0.12"), Password: "!other#'\\", Port: 1790},
			{Name: "rr6", Address: addr("fd00:10:10::13")},
		},
		Core: []fabric.Core{
			{Name: "core1", Address: addr("10.10.0.1"), BFD: true},
			{Name: "edge", Address: addr("10.10.0.2"), ASN: 64496},
			{Name: "core6", Address: addr("fd00:10:10::1")},
		},
		Nodes: []fabric.Node{
			{Name: "node1", Address: addr("10.10.0.21"), Address6: addr("fd00:10:10::21")},
			{Name: "node-2.example", Address: addr("10.10.0.22"), Address6: addr("fd00:10:10::22")},
		},
		Timers:      fabric.Timers{Hold: 30 * time.Second, ConnectRetry: 5 * time.Second, Restart: 90 * time.Second, LongLived: time.Hour},
		MaxPrefixes: 500,
	}.WithDefaults()
}

func eastWest(c fabric.Cluster) fabric.Cluster {
	c.EastWest = true
	return c
}

// sample is the cluster file that everybody knows.
func sample(t testing.TB) fabric.Cluster {
	c, err := clusterfile.Load(labtest.Own(t, "../../fabric/clusterfile/testdata/cluster.yaml"))
	require.NoError(t, err)
	return c
}

// nodes is a cluster with that many.
func nodes(n int) fabric.Cluster {
	c := everything()
	c.Reflectors, c.Core = c.Reflectors[:1], c.Core[:1]
	c.Nodes = nil
	for i := range n {
		c.Nodes = append(c.Nodes, fabric.Node{
			Name: fmt.Sprintf("node%d", i+1), Address: addr(fmt.Sprintf("10.20.%d.%d", i/100, i%100+1)), Address6: addr(fmt.Sprintf("fd00:20::%x", i+1)),
		})
	}
	return c
}

// rendering is one of the golden files.
type rendering struct {
	cluster string
	c       fabric.Cluster
	format  render.Format
	name    string
}

func (r rendering) file() string {
	return filepath.Join("testdata", "router", fmt.Sprintf("%s-%s.%s", r.cluster, r.name, r.format))
}

// renderings are all of them.
func renderings(t testing.TB) []rendering {
	var all []rendering
	add := func(cluster string, c fabric.Cluster, names ...string) {
		for _, name := range names {
			role, err := render.RoleOf(c, name)
			require.NoError(t, err)
			for _, f := range []render.Format{render.BIRD, render.FRR, render.Junos} {
				if f != render.Junos || role == render.Core {
					all = append(all, rendering{cluster, c, f, name})
				}
			}
		}
	}
	add("everything", everything(), "rr1", "rr2", "rr6", "core1", "edge", "core6", "node1")
	add("east-west", eastWest(everything()), "rr1", "node1")
	add("sample", sample(t), "rr1", "core1", "node1")
	add("one-node", nodes(1), "rr1", "core1", "node1")
	return all
}

func TestRouterGolden(t *testing.T) {
	for _, r := range renderings(t) {
		t.Run(r.file(), func(t *testing.T) {
			text, err := render.Router(r.c, r.format, r.name)
			require.NoError(t, err)
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(r.file()), 0o755))
				require.NoError(t, os.WriteFile(r.file(), []byte(text), 0o644))
			}
			want, err := os.ReadFile(r.file())
			require.NoError(t, err)
			assert.Equal(t, string(want), text)

			again, err := render.Router(r.c, r.format, r.name)
			require.NoError(t, err)
			assert.Equal(t, text, again)
		})
	}
}
