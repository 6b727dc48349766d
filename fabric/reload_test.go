package fabric

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// running is the cluster that an agent of node1 goes by.
func running() Cluster {
	return Cluster{
		Name: "msk1", ASN: 64512, Communities: []Community{{A: 64512, B: 100}},
		Gateway:    Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1")},
		Pools:      []Pool{{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24")}, {Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48")}},
		Reflectors: []RR{{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}, {Name: "rr2", Address: netip.MustParseAddr("10.10.0.12")}},
		Nodes:      []Node{{Name: "node1", Address: netip.MustParseAddr("10.10.0.21")}, {Name: "node2", Address: netip.MustParseAddr("10.10.0.22")}},
	}.WithDefaults()
}

const untilRestart = "; it is as it was until the agent is restarted"

func TestReload(t *testing.T) {
	for _, tc := range []struct {
		name    string
		before  func(*Cluster) // nil: the usual one
		change  func(*Cluster)
		applied []string
		waiting []string
	}{
		{name: "nothing", change: func(*Cluster) {}},
		{name: "an empty list is none", change: func(c *Cluster) { c.Routed, c.Guests.DNS = []netip.Prefix{}, []netip.Addr{} }},
		{name: "pools", change: func(c *Cluster) {
			c.Pools[0].Exclude = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/32")}
			c.Pools[1] = Pool{Name: "more6", Prefix: netip.MustParsePrefix("2001:db8:200::/48"), Quarantine: time.Minute}
		}, applied: []string{"pools: public4 changed, more6 added, public6 removed"}},
		{name: "quarantine", change: func(c *Cluster) { c.Pools[0].Quarantine = time.Minute }, applied: []string{"pools: public4 changed"}},
		{name: "order", change: func(c *Cluster) { c.Pools[0], c.Pools[1] = c.Pools[1], c.Pools[0] }, applied: []string{"pools: order changed"}},
		{name: "another node", change: func(c *Cluster) {
			c.Nodes = append(c.Nodes, Node{Name: "node3", Address: netip.MustParseAddr("10.10.0.23")})
		}, applied: []string{"nodes: node3 added"}},
		{name: "own address", change: func(c *Cluster) {
			c.Nodes[0].Address, c.Nodes[1].Address6 = netip.MustParseAddr("10.10.0.31"), netip.MustParseAddr("2001:db8:f::22")
		}, applied: []string{"nodes: node2 changed"}, waiting: []string{"nodes: node1 changed" + untilRestart}},
		{name: "first other node", before: func(c *Cluster) { c.Nodes = c.Nodes[:1] }, change: func(c *Cluster) {
			c.Nodes = append(c.Nodes, Node{Name: "node2", Address: netip.MustParseAddr("10.10.0.22")})
		}, waiting: []string{"nodes: node2 added" + untilRestart}},
		{name: "first other node with a registry", before: func(c *Cluster) {
			c.Nodes, c.Registry.Etcd = c.Nodes[:1], &EtcdConfig{Endpoints: []string{"http://10.10.0.11:2379"}}
		}, change: func(c *Cluster) {
			c.Nodes = append(c.Nodes, Node{Name: "node2", Address: netip.MustParseAddr("10.10.0.22")})
		}, applied: []string{"nodes: node2 added"}},
		{name: "reflectors", change: func(c *Cluster) {
			c.Reflectors[0].Password = "secret of the session"
			c.Reflectors[1] = RR{Name: "rr3", Address: netip.MustParseAddr("10.10.0.13")}
		}, applied: []string{"reflectors: rr3 added, rr2 removed"}, waiting: []string{"reflectors: rr1 changed" + untilRestart}},
		{name: "reflectors of another speaker", before: func(c *Cluster) { c.Speaker = SpeakerBIRD }, change: func(c *Cluster) {
			c.Reflectors = c.Reflectors[:1]
		}, waiting: []string{"reflectors: rr2 removed" + untilRestart}},
		{name: "guests", change: func(c *Cluster) {
			c.Guests.Isolate, c.Guests.NoDHCP, c.Guests.DNS = true, true, []netip.Addr{netip.MustParseAddr("9.9.9.9")}
		}, applied: []string{"guests.dhcp: changed", "guests.dns: changed", "guests.isolate: changed"}},
		{name: "what a restart takes", change: func(c *Cluster) {
			c.ASN, c.Name, c.Gateway.MAC, c.Key = 64513, "msk2", MAC{2, 0, 0, 0, 0, 1}, "0123456789abcdef"
		}, waiting: []string{"name: changed" + untilRestart, "asn: changed" + untilRestart, "gateway: changed" + untilRestart, "key_file: changed" + untilRestart}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			was, next := running(), running()
			if tc.before != nil {
				tc.before(&was)
				tc.before(&next)
				was = was.WithDefaults()
			}
			tc.change(&next)
			r, err := was.Reload(next.WithDefaults(), "node1")
			require.NoError(t, err)
			assert.Equal(t, tc.applied, r.Applied)
			assert.Equal(t, tc.waiting, r.Waiting)

			again, err := was.Reload(r.Cluster, "node1")
			require.NoError(t, err)
			assert.Equal(t, tc.applied, again.Applied, "what the agent goes by has what was applied")
			assert.Empty(t, again.Waiting, "and nothing that waits")
		})
	}
}

// TestReloadRefused: nothing is taken of a file that names no such node, nor of one
// whose parts need each other.
func TestReloadRefused(t *testing.T) {
	was, next := running(), running()
	next.Nodes = next.Nodes[1:]
	_, err := was.Reload(next, "node1")
	assert.ErrorContains(t, err, `node "node1" is not in cluster msk1`)

	next = running()
	next.Gateway.IPv4 = netip.MustParseAddr("169.254.9.1")
	next.Nodes = append(next.Nodes, Node{Name: "node3", Address: netip.MustParseAddr("10.10.0.23")})
	next.Pools = append(next.Pools, Pool{Name: "old", Prefix: netip.MustParsePrefix("10.10.1.0/24")})
	was.Gateway.IPv4 = netip.MustParseAddr("10.10.1.7")
	_, err = was.Reload(next.WithDefaults(), "node1")
	require.ErrorContains(t, err, "restart the agent for it; until then gateway would stay as it was, and: ")
	assert.ErrorContains(t, err, "10.10.1.7")
}

// TestReloadKnowsAllKeys: every field of a cluster is some setting's, so that none
// changes without a word.
func TestReloadKnowsAllKeys(t *testing.T) {
	var told func(path string, field func(*Cluster) reflect.Value)
	told = func(path string, field func(*Cluster) reflect.Value) {
		was := running()
		next := running()
		v := field(&next)
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint16, reflect.Uint32:
			v.SetUint(v.Uint() + 1)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
		case reflect.Map:
			v.Set(reflect.ValueOf(map[string][]string{"node1": {"x"}}))
		case reflect.Struct:
			if path == "Guests" || path == "Guests.Lifetimes" {
				for i := range v.NumField() {
					told(path+"."+v.Type().Field(i).Name, func(c *Cluster) reflect.Value { return field(c).Field(i) })
				}
				return
			}
			v.SetZero()
			if reflect.DeepEqual(next, was) {
				next.Registry.Etcd = &EtcdConfig{}
				next.Metrics = netip.MustParseAddrPort("127.0.0.1:1")
			}
		default:
			t.Fatalf("%s: %s", path, v.Kind())
		}
		lines := 0
		for _, s := range settings {
			now, waits := s.compare(&was, &next, "node1")
			lines += len(now) + len(waits)
		}
		assert.Positive(t, lines, path)
	}
	for i := range reflect.TypeFor[Cluster]().NumField() {
		told(reflect.TypeFor[Cluster]().Field(i).Name, func(c *Cluster) reflect.Value { return reflect.ValueOf(c).Elem().Field(i) })
	}
}
