package plan

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

var (
	a4, a6, b4 = netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128"), netip.MustParsePrefix("203.0.113.11/32")

	net0    = port("web_net0", 0, fabric.Tap, a4, a6)
	net1    = port("web_net1", 1, fabric.Veth, b4)
	adopted = port("web_net0", 0, fabric.Adopt, a4)

	none = NICStates{}
)

func port(name string, index int, kind fabric.Kind, ps ...netip.Prefix) fabric.Port {
	p := fabric.Port{Name: name, VM: "web", Index: index, NIC: fabric.NIC{Kind: kind}}
	for _, x := range ps {
		p.NIC.Addresses = append(p.NIC.Addresses, x.Addr())
	}
	return p
}

func up(p fabric.Port) fabric.PortState {
	return fabric.PortState{Name: p.Name, VM: p.VM, Index: p.Index, NIC: p.NIC, Carrier: true}
}

func with(s fabric.PortState, change func(*fabric.PortState)) fabric.PortState {
	change(&s)
	return s
}

func noCarrier(s *fabric.PortState)   { s.Carrier = false }
func silent(s *fabric.PortState)      { s.Silent = true }
func lostCarrier(s *fabric.PortState) { s.Carrier, s.Lost = false, true }

func announced(ps ...netip.Prefix) (rs []fabric.Route) {
	for _, p := range ps {
		rs = append(rs, fabric.Route{Prefix: p})
	}
	return rs
}

func as(rs []fabric.Route, pref fabric.Preference) []fabric.Route {
	for i := range rs {
		rs[i].Preference = pref
	}
	return rs
}

func needs(why string, st NICStates) []Repair { return []Repair{{VM: "web", NICs: st, Why: why}} }

// drifts are ways in which guest web, its ports and its routes differ, and what is
// to be done.
var drifts = []struct {
	name   string
	web    Guest
	ports  []fabric.PortState
	routes []fabric.Route
	want   []Repair
}{
	{"live and all there", Guest{Ports: []fabric.Port{net0, net1}, Live: true}, []fabric.PortState{up(net0), up(net1)}, announced(a4, a6, b4), nil},
	{"wired and all there", Guest{Ports: []fabric.Port{net0, net1}}, []fabric.PortState{up(net0), up(net1)}, nil, nil},
	{"wired without carrier", Guest{Ports: []fabric.Port{net0}, Managed: true}, []fabric.PortState{with(up(net0), lostCarrier)}, nil, nil},
	{"a port is missing", Guest{Ports: []fabric.Port{net0, net1}}, []fabric.PortState{up(net0)}, nil, needs("web_net1: missing", none)},
	{
		"a port is not as it was",
		Guest{Ports: []fabric.Port{net0}},
		[]fabric.PortState{with(up(net0), func(s *fabric.PortState) { s.Faults = []string{"down", "no MAC"} })},
		nil,
		needs("web_net0: down, no MAC", none),
	},
	{"an IPv6 announcement is missing", Guest{Ports: []fabric.Port{net0}, Live: true}, []fabric.PortState{up(net0)}, announced(a4), needs("2001:db8:100::10/128: not announced", none)},
	{"announced, but wired", Guest{Ports: []fabric.Port{net0}}, []fabric.PortState{up(net0)}, announced(a4), needs("203.0.113.10/32: announced", none)},
	{"an attempt went wrong", Guest{Ports: []fabric.Port{net0}, Retry: true}, []fabric.PortState{up(net0)}, nil, needs("an earlier attempt did not succeed", none)},
	{"a removal went wrong", Guest{Retry: true}, nil, nil, needs("an earlier attempt did not succeed", none)},

	{
		"carrier lost",
		Guest{Ports: []fabric.Port{net0, net1}, Live: true},
		[]fabric.PortState{up(net0), with(up(net1), lostCarrier)},
		announced(a4, a6, b4),
		needs("203.0.113.11/32: announced", NICStates{1: Down}),
	},
	{"carrier lost, and that is known", Guest{Ports: []fabric.Port{net0, net1}, Live: true, NICs: NICStates{1: Down}}, []fabric.PortState{up(net0), with(up(net1), lostCarrier)}, announced(a4, a6), nil},
	{"carrier is back", Guest{Ports: []fabric.Port{net0}, Live: true, NICs: NICStates{0: Down}}, []fabric.PortState{up(net0)}, nil, needs("203.0.113.10/32: not announced", none)},
	{"no carrier ever, by hand", Guest{Ports: []fabric.Port{net1}, Live: true}, []fabric.PortState{with(up(net1), noCarrier)}, announced(b4), nil},
	{
		"no carrier ever, of a hypervisor",
		Guest{Ports: []fabric.Port{net1}, Live: true, Managed: true},
		[]fabric.PortState{with(up(net1), noCarrier)},
		announced(b4),
		needs("203.0.113.11/32: announced", NICStates{1: Down}),
	},

	{"a link to be adopted is not there", Guest{Ports: []fabric.Port{adopted}}, nil, nil, needs("web_net0: its owner has not made it yet", none)},
	{"an adopted link is there", Guest{Ports: []fabric.Port{adopted}, Live: true}, []fabric.PortState{up(adopted)}, announced(a4), nil},
	{
		"one of a hypervisor, before its guest",
		Guest{Ports: []fabric.Port{adopted}, Live: true, Managed: true, Fresh: true},
		[]fabric.PortState{with(up(adopted), noCarrier)},
		nil,
		needs("203.0.113.10/32: not announced", NICStates{0: Arriving}),
	},
	{
		"its guest has come",
		Guest{Ports: []fabric.Port{adopted}, Live: true, Managed: true, Fresh: true, NICs: NICStates{0: Arriving}},
		[]fabric.PortState{up(adopted)},
		as(announced(a4), fabric.Standby),
		needs("203.0.113.10/32: announced as standby, not as fresh", NICStates{0: Arrived}),
	},
	{
		"its guest has come, and was not heard",
		Guest{Ports: []fabric.Port{adopted}, Live: true, Managed: true, NICs: NICStates{0: Arriving}},
		[]fabric.PortState{with(up(adopted), silent)},
		as(announced(a4), fabric.Standby),
		nil,
	},
	{
		"its guest got carrier again, and was not heard since",
		Guest{Ports: []fabric.Port{net0, net1}, Live: true, Managed: true, Fresh: true, NICs: NICStates{0: Arrived, 1: Down}},
		[]fabric.PortState{up(net0), with(up(net1), silent)},
		as(announced(a4, a6), fabric.Fresh),
		needs("203.0.113.11/32: not announced", NICStates{0: Arrived, 1: Arriving}),
	},
	{
		"its guest was heard",
		Guest{Ports: []fabric.Port{net0, net1}, Live: true, Managed: true, Fresh: true, NICs: NICStates{0: Arriving, 1: Arriving}},
		[]fabric.PortState{up(net0), with(up(net1), silent)},
		as(announced(a4, a6, b4), fabric.Standby),
		needs("203.0.113.10/32: announced as standby, not as fresh", NICStates{0: Arrived, 1: Arriving}),
	},
	{
		"its guest leaves before it was heard",
		Guest{Ports: []fabric.Port{net0}, Live: true, Managed: true, Leaving: true},
		[]fabric.PortState{with(up(net0), silent)},
		announced(a4, a6),
		nil,
	},
	{
		"its guest has been here for a while",
		Guest{Ports: []fabric.Port{adopted}, Live: true, Managed: true, NICs: NICStates{0: Arrived}},
		[]fabric.PortState{up(adopted)},
		as(announced(a4), fabric.Fresh),
		needs("203.0.113.10/32: announced as fresh, not as normal", none),
	},
	{
		"its guest has gone",
		Guest{Ports: []fabric.Port{adopted}, Live: true, Managed: true},
		[]fabric.PortState{with(up(adopted), lostCarrier)},
		announced(a4),
		needs("203.0.113.10/32: announced", NICStates{0: Down}),
	},
	{
		"its link has gone",
		Guest{Ports: []fabric.Port{adopted}, Live: true, Managed: true},
		nil,
		announced(a4),
		needs("web_net0: its owner has not made it yet", NICStates{0: Arriving}),
	},
	{
		"its port was made since the ports were listed",
		Guest{Ports: []fabric.Port{net0}, Live: true, Managed: true, NICs: NICStates{0: Arriving}},
		nil,
		as(announced(a4, a6), fabric.Standby),
		needs("web_net0: missing", NICStates{0: Arriving}),
	},
}

func TestDecide(t *testing.T) {
	for _, tt := range drifts {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.want {
				if !tt.web.Live {
					tt.want[i].NICs = nil
				}
			}
			for _, prune := range []bool{false, true} {
				got := Decide(map[string]Guest{"web": tt.web}, tt.ports, tt.routes, prune)
				for i := range got.Repairs {
					got.Repairs[i].Kind = "" // see TestRepairKinds
				}
				assert.Equal(t, Plan{Repairs: tt.want}, got)
			}
		})
	}
}

func TestDecidePrunesOnlyWhenItMay(t *testing.T) {
	kept, gone := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::99/128")
	web := Guest{Ports: []fabric.Port{{Name: "web_net0", VM: "web", NIC: fabric.NIC{Kind: fabric.Tap, Addresses: []netip.Addr{kept.Addr()}}}}, Live: true}
	ports := []fabric.PortState{
		{Name: "web_net0", VM: "web", NIC: web.Ports[0].NIC, Carrier: true},
		{Name: "web_net1", VM: "web", Index: 1, Carrier: true},
		{Name: "old_net0", VM: "old"},
	}
	routes := []fabric.Route{{Prefix: kept}, {Prefix: gone}}
	guests := map[string]Guest{"web": web}
	assert.Equal(t, Plan{}, Decide(guests, ports, routes, false))
	assert.Equal(t, Plan{Ports: ports[1:], Routes: []netip.Prefix{gone}}, Decide(guests, ports, routes, true))
	assert.Equal(t, Plan{Ports: ports, Routes: []netip.Prefix{kept, gone}}, Decide(nil, ports, routes, true))
	assert.Equal(t, Plan{}, Decide(nil, nil, nil, true))
}

func TestDecideGoesByName(t *testing.T) {
	guests := map[string]Guest{}
	for _, vm := range []string{"c", "a", "b"} {
		guests[vm] = Guest{Retry: true}
	}
	var order []string
	for _, r := range Decide(guests, nil, nil, true).Repairs {
		order = append(order, r.VM)
	}
	assert.Equal(t, []string{"a", "b", "c"}, order)
}

// TestRepairKinds: each difference is counted as what it is.
func TestRepairKinds(t *testing.T) {
	want := map[string]fabric.RepairKind{
		"a port is missing":                 fabric.RepairPort,
		"a port is not as it was":           fabric.RepairSettings,
		"an IPv6 announcement is missing":   fabric.RepairAnnouncement,
		"announced, but wired":              fabric.RepairAnnouncement,
		"an attempt went wrong":             fabric.RepairRetry,
		"carrier lost":                      fabric.RepairCarrier,
		"carrier is back":                   fabric.RepairCarrier,
		"a link to be adopted is not there": fabric.RepairPort,
	}
	for _, tt := range drifts {
		for _, r := range Decide(map[string]Guest{"web": tt.web}, tt.ports, tt.routes, true).Repairs {
			assert.Contains(t, fabric.RepairKinds(), r.Kind, tt.name)
			if kind, known := want[tt.name]; known {
				assert.Equal(t, kind, r.Kind, tt.name)
				delete(want, tt.name)
			}
		}
	}
	assert.Empty(t, want, "not tried")
}
