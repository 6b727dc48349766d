package nodes_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/nodes"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// families are the underlays that a cluster can have.
var families = []struct {
	name   string
	four   bool
	six    bool
	secret string // the reflectors' password
	key    string
}{
	{"IPv4", true, false, "", ""},
	{"IPv6", false, true, "a secret", ""},
	{"both", true, true, "", "a key of the cluster"},
}

// node gives the node that is host i of the underlay.
func node(name string, i byte, four, six bool) fabric.Node {
	n := fabric.Node{Name: name}
	if four {
		n.Address = core.Underlay4(i)
	}
	if six {
		n.Address6 = core.Underlay6(i)
	}
	return n
}

// cluster gives a cluster of three nodes with one of the families.
func cluster(four, six bool, secret string) fabric.Cluster {
	c := core.SmallCluster(0)
	c.Underlay = []netip.Prefix{core.UnderlayPrefix4, core.UnderlayPrefix6}
	for i := range c.Reflectors {
		c.Reflectors[i].Password = secret
	}
	c.Reflectors[1].Address = core.Underlay4(reflectorHost)
	for i, name := range conformance.NodeNames {
		c.Nodes = append(c.Nodes, node(name, byte(21+i), four, six))
	}
	return c
}

func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real, in a network namespace")
	}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			conformance.Nodes(t, func(*testing.T) ([]fabric.Node, map[string]fabric.Nodes, conformance.NodesControls) {
				c := cluster(f.four, f.six, f.secret)
				c.Key = f.key
				ends := map[string]fabric.Nodes{}
				for _, n := range c.Nodes {
					ends[n.Name] = nodes.New(nodes.Config{Cluster: c, Node: n})
				}
				var controls conformance.NodesControls
				if f.secret+f.key != "" {
					controls.Join = func(_ *testing.T, name string) (fabric.Node, fabric.Nodes) {
						n := node(name, 30, f.four, f.six)
						return n, nodes.New(nodes.Config{Cluster: c, Node: n})
					}
				}
				if _, err := exec.LookPath("nft"); err == nil || os.Getenv(labtest.Variable) == "must" {
					controls.Cut = func(t *testing.T, a, b string) func() { return cut(t, c, a, b) }
				}
				return c.Nodes, ends, controls
			})
		})
	}
}

// cut has packets between two nodes dropped.
func cut(t *testing.T, c fabric.Cluster, a, b string) (heal func()) {
	t.Helper()
	one, err := c.Node(a)
	require.NoError(t, err)
	other, err := c.Node(b)
	require.NoError(t, err)
	rules := "table inet cut { chain in { type filter hook input priority 0;\n"
	for _, pair := range [][2]netip.Addr{
		{one.Address, other.Address}, {other.Address, one.Address}, {one.Address6, other.Address6}, {other.Address6, one.Address6},
	} {
		if pair[0].IsValid() && pair[1].IsValid() {
			family := map[bool]string{true: "ip", false: "ip6"}[pair[0].Is4()]
			rules += fmt.Sprintf("%[1]s saddr %[2]s %[1]s daddr %[3]s drop\n", family, pair[0], pair[1])
		}
	}
	nft(t, rules+"}\n}\n")
	return func() { nft(t, "delete table inet cut") }
}

func nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}
