package agent

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestDecide(t *testing.T) {
	a4, a6, b4 := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128"), netip.MustParsePrefix("203.0.113.11/32")
	port := func(name string, index int, kind fabric.Kind, ps ...netip.Prefix) fabric.Port {
		p := fabric.Port{Name: name, VM: "web", Index: index, NIC: fabric.NIC{Kind: kind}}
		for _, x := range ps {
			p.NIC.Addresses = append(p.NIC.Addresses, x.Addr())
		}
		return p
	}
	net0, net1 := port("web_net0", 0, fabric.Tap, a4, a6), port("web_net1", 1, fabric.Veth, b4)
	adopted := port("web_net0", 0, fabric.Adopt, a4)
	up := func(p fabric.Port) fabric.PortState {
		return fabric.PortState{Name: p.Name, VM: p.VM, Index: p.Index, NIC: p.NIC, Carrier: true}
	}
	with := func(s fabric.PortState, change func(*fabric.PortState)) fabric.PortState { change(&s); return s }
	noCarrier := func(s *fabric.PortState) { s.Carrier = false }
	silent := func(s *fabric.PortState) { s.Silent = true }
	lostCarrier := func(s *fabric.PortState) { s.Carrier, s.Lost = false, true }
	announced := func(ps ...netip.Prefix) (rs []fabric.Route) {
		for _, p := range ps {
			rs = append(rs, fabric.Route{Prefix: p})
		}
		return rs
	}
	as := func(rs []fabric.Route, pref fabric.Preference) []fabric.Route {
		for i := range rs {
			rs[i].Preference = pref
		}
		return rs
	}
	needs := func(why string, st stands) []repair { return []repair{{"web", st, why}} }
	none := stands{}

	for _, tt := range []struct {
		name   string
		web    wanted
		ports  []fabric.PortState
		routes []fabric.Route
		want   []repair
	}{
		{"live and all there", wanted{ports: []fabric.Port{net0, net1}, live: true}, []fabric.PortState{up(net0), up(net1)}, announced(a4, a6, b4), nil},
		{"wired and all there", wanted{ports: []fabric.Port{net0, net1}}, []fabric.PortState{up(net0), up(net1)}, nil, nil},
		{"wired without carrier", wanted{ports: []fabric.Port{net0}, managed: true}, []fabric.PortState{with(up(net0), lostCarrier)}, nil, nil},
		{"a port is missing", wanted{ports: []fabric.Port{net0, net1}}, []fabric.PortState{up(net0)}, nil, needs("web_net1: missing", none)},
		{
			"a port is not as it was",
			wanted{ports: []fabric.Port{net0}},
			[]fabric.PortState{with(up(net0), func(s *fabric.PortState) { s.Faults = []string{"down", "no MAC"} })},
			nil,
			needs("web_net0: down, no MAC", none),
		},
		{"an IPv6 announcement is missing", wanted{ports: []fabric.Port{net0}, live: true}, []fabric.PortState{up(net0)}, announced(a4), needs("2001:db8:100::10/128: not announced", none)},
		{"announced, but wired", wanted{ports: []fabric.Port{net0}}, []fabric.PortState{up(net0)}, announced(a4), needs("203.0.113.10/32: announced", none)},
		{"an attempt went wrong", wanted{ports: []fabric.Port{net0}, retry: true}, []fabric.PortState{up(net0)}, nil, needs("an earlier attempt did not succeed", none)},
		{"a removal went wrong", wanted{retry: true}, nil, nil, needs("an earlier attempt did not succeed", none)},

		{
			"carrier lost",
			wanted{ports: []fabric.Port{net0, net1}, live: true},
			[]fabric.PortState{up(net0), with(up(net1), lostCarrier)},
			announced(a4, a6, b4),
			needs("203.0.113.11/32: announced", stands{1: down}),
		},
		{"carrier lost, and that is known", wanted{ports: []fabric.Port{net0, net1}, live: true, stand: stands{1: down}}, []fabric.PortState{up(net0), with(up(net1), lostCarrier)}, announced(a4, a6), nil},
		{"carrier is back", wanted{ports: []fabric.Port{net0}, live: true, stand: stands{0: down}}, []fabric.PortState{up(net0)}, nil, needs("203.0.113.10/32: not announced", none)},
		{"no carrier ever, by hand", wanted{ports: []fabric.Port{net1}, live: true}, []fabric.PortState{with(up(net1), noCarrier)}, announced(b4), nil},
		{
			"no carrier ever, of a hypervisor",
			wanted{ports: []fabric.Port{net1}, live: true, managed: true},
			[]fabric.PortState{with(up(net1), noCarrier)},
			announced(b4),
			needs("203.0.113.11/32: announced", stands{1: down}),
		},

		{"a link to be adopted is not there", wanted{ports: []fabric.Port{adopted}}, nil, nil, needs("web_net0: its owner has not made it yet", none)},
		{"an adopted link is there", wanted{ports: []fabric.Port{adopted}, live: true}, []fabric.PortState{up(adopted)}, announced(a4), nil},
		{
			"one of a hypervisor, before its guest",
			wanted{ports: []fabric.Port{adopted}, live: true, managed: true, fresh: true},
			[]fabric.PortState{with(up(adopted), noCarrier)},
			nil,
			needs("203.0.113.10/32: not announced", stands{0: arriving}),
		},
		{
			"its guest has come",
			wanted{ports: []fabric.Port{adopted}, live: true, managed: true, fresh: true, stand: stands{0: arriving}},
			[]fabric.PortState{up(adopted)},
			as(announced(a4), fabric.Standby),
			needs("203.0.113.10/32: announced as standby, not as fresh", stands{0: arrived}),
		},
		{
			"its guest has come, and was not heard",
			wanted{ports: []fabric.Port{adopted}, live: true, managed: true, stand: stands{0: arriving}},
			[]fabric.PortState{with(up(adopted), silent)},
			as(announced(a4), fabric.Standby),
			nil,
		},
		{
			"its guest got carrier again, and was not heard since",
			wanted{ports: []fabric.Port{net0, net1}, live: true, managed: true, fresh: true, stand: stands{0: arrived, 1: down}},
			[]fabric.PortState{up(net0), with(up(net1), silent)},
			as(announced(a4, a6), fabric.Fresh),
			needs("203.0.113.11/32: not announced", stands{0: arrived, 1: arriving}),
		},
		{
			"its guest was heard",
			wanted{ports: []fabric.Port{net0, net1}, live: true, managed: true, fresh: true, stand: stands{0: arriving, 1: arriving}},
			[]fabric.PortState{up(net0), with(up(net1), silent)},
			as(announced(a4, a6, b4), fabric.Standby),
			needs("203.0.113.10/32: announced as standby, not as fresh", stands{0: arrived, 1: arriving}),
		},
		{
			"its guest leaves before it was heard",
			wanted{ports: []fabric.Port{net0}, live: true, managed: true, leaving: true},
			[]fabric.PortState{with(up(net0), silent)},
			announced(a4, a6),
			nil,
		},
		{
			"its guest has been here for a while",
			wanted{ports: []fabric.Port{adopted}, live: true, managed: true, stand: stands{0: arrived}},
			[]fabric.PortState{up(adopted)},
			as(announced(a4), fabric.Fresh),
			needs("203.0.113.10/32: announced as fresh, not as normal", none),
		},
		{
			"its guest has gone",
			wanted{ports: []fabric.Port{adopted}, live: true, managed: true},
			[]fabric.PortState{with(up(adopted), lostCarrier)},
			announced(a4),
			needs("203.0.113.10/32: announced", stands{0: down}),
		},
		{
			"its link has gone",
			wanted{ports: []fabric.Port{adopted}, live: true, managed: true},
			nil,
			announced(a4),
			needs("web_net0: its owner has not made it yet", stands{0: arriving}),
		},
		{
			"its port was made since the ports were listed",
			wanted{ports: []fabric.Port{net0}, live: true, managed: true, stand: stands{0: arriving}},
			nil,
			as(announced(a4, a6), fabric.Standby),
			needs("web_net0: missing", stands{0: arriving}),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.want {
				if !tt.web.live {
					tt.want[i].stand = nil
				}
			}
			for _, prune := range []bool{false, true} {
				got := decide(map[string]wanted{"web": tt.web}, tt.ports, tt.routes, prune)
				assert.Equal(t, plan{repairs: tt.want}, got)
			}
		})
	}
}

func TestDecidePrunesOnlyWhenItMay(t *testing.T) {
	kept, gone := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::99/128")
	web := wanted{ports: []fabric.Port{{Name: "web_net0", VM: "web", NIC: fabric.NIC{Kind: fabric.Tap, Addresses: []netip.Addr{kept.Addr()}}}}, live: true}
	ports := []fabric.PortState{
		{Name: "web_net0", VM: "web", NIC: web.ports[0].NIC, Carrier: true},
		{Name: "web_net1", VM: "web", Index: 1, Carrier: true},
		{Name: "old_net0", VM: "old"},
	}
	routes := []fabric.Route{{Prefix: kept}, {Prefix: gone}}
	guests := map[string]wanted{"web": web}
	assert.Equal(t, plan{}, decide(guests, ports, routes, false))
	assert.Equal(t, plan{ports: ports[1:], routes: []netip.Prefix{gone}}, decide(guests, ports, routes, true))
	assert.Equal(t, plan{ports: ports, routes: []netip.Prefix{kept, gone}}, decide(nil, ports, routes, true))
	assert.Equal(t, plan{}, decide(nil, nil, nil, true))
}

func TestDecideGoesByName(t *testing.T) {
	guests := map[string]wanted{}
	for _, vm := range []string{"c", "a", "b"} {
		guests[vm] = wanted{retry: true}
	}
	var order []string
	for _, r := range decide(guests, nil, nil, true).repairs {
		order = append(order, r.vm)
	}
	assert.Equal(t, []string{"a", "b", "c"}, order)
}
