package reflector

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
)

// Names of GoBGP's defined sets and policies.
const (
	coreSet    = "core"
	foreignSet = "core-ebgp" // the core gateways with another AS number
	importName = "in"
)

// policy is the import and the export policy of a reflector, in GoBGP's terms:
// defined sets, and statements over them. The first statement that matches decides.
// A route that matches none is rejected.
//
// No statement uses a set without members: GoBGP takes it for "any".
type policy struct {
	sets         []*api.DefinedSet
	in, out      []*api.Statement
	core         bool // there are core gateways
	foreignCores bool // some of them have another AS number
}

// newPolicy makes the policy of a cluster's reflector. It refuses a cluster whose
// reflector would accept the routes of anybody.
func newPolicy(c *fabric.Cluster, rr fabric.RR) (*policy, error) {
	if len(c.Communities) == 0 {
		return nil, fmt.Errorf("cluster %s has no community; a reflector accepts only routes with the communities of its cluster, name one under community", c.Name)
	}
	if len(c.Announceable(false))+len(c.Announceable(true)) == 0 {
		return nil, fmt.Errorf("cluster %s has no pools; a reflector accepts only routes to addresses of the pools, name one under pools", c.Name)
	}
	p := &policy{
		// The only local routes of a reflector are those that stand for a
		// withdrawal.
		in:  []*api.Statement{peering.Statement("in-own", &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, peering.Accept)},
		out: []*api.Statement{resend.RejectPlaceholders()},
	}
	p.addCores(c.ASN, c.Core)
	// The reflector accepts no routes from a core gateway.
	if p.core {
		p.in = append(p.in, peering.Statement("in-core", &api.Conditions{NeighborSet: anyOf(coreSet)}, peering.Reject))
	}
	p.addCommunities(c.Communities)
	for _, v6 := range []bool{false, true} {
		p.addFamily(c, v6)
	}
	// Routes that no statement has rejected so far pass if the right node sent
	// them.
	other := netip.IPv6Unspecified() // the unspecified address of the family that the sessions do not have
	if rr.Address.Is6() {
		other = netip.IPv4Unspecified()
	}
	for _, n := range c.Nodes {
		from := n.Source(rr.Address)
		if !from.IsValid() {
			continue
		}
		var in, not []netip.Prefix
		if !n.Source(other).IsValid() {
			in, not = c.NextHopRanges(other.Is6())
		}
		p.add(newSender(n, from, in, not))
	}
	p.addExport(c.EastWest)
	return p, nil
}

func (p *policy) add(s sender) {
	p.sets = append(p.sets, s.set)
	p.in = append(p.in, s.in...)
}

// addCommunities rejects routes that lack one of the cluster's communities. Each
// set has one community: "invert" matches a route that has none of its set.
func (p *policy) addCommunities(all []fabric.Community) {
	for n, c := range all {
		set := &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_COMMUNITY, Name: fmt.Sprintf("cluster-%d", n), List: []string{c.String()}}
		lacks := &api.Conditions{}
		if c.Large {
			set.DefinedType = api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY
			lacks.LargeCommunitySet = noneOf(set.Name)
		} else {
			lacks.CommunitySet = noneOf(set.Name)
		}
		p.sets = append(p.sets, set)
		p.in = append(p.in, peering.Statement("in-lacks-"+set.Name, lacks, peering.Reject))
	}
}

func (p *policy) addCores(asn uint32, cores []fabric.Core) {
	var all, foreign []string
	for _, g := range cores {
		at := fabric.HostPrefix(g.Address).String()
		all = append(all, at)
		if g.ASN != asn {
			foreign = append(foreign, at)
		}
	}
	for name, list := range map[string][]string{coreSet: all, foreignSet: foreign} {
		if len(list) > 0 {
			p.sets = append(p.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: name, List: list})
		}
	}
	p.core, p.foreignCores = len(all) > 0, len(foreign) > 0
}

// addFamily rejects the prefixes of a family that guests cannot have: martians,
// excluded ones, and all others outside of the pools and routed prefixes.
func (p *policy) addFamily(c *fabric.Cluster, v6 bool) {
	bits, family, afi := 32, "ipv4", api.Family_AFI_IP
	if v6 {
		bits, family, afi = 128, "ipv6", api.Family_AFI_IP6
	}
	inside := func(ps []netip.Prefix) []fabric.PrefixRange {
		var rs []fabric.PrefixRange
		for _, q := range ps {
			rs = append(rs, fabric.PrefixRange{Prefix: q, Min: q.Bits(), Max: bits})
		}
		return rs
	}
	guests := c.Announceable(v6)
	if len(guests) == 0 {
		p.in = append(p.in, peering.Statement("in-no-"+family, &api.Conditions{
			AfiSafiIn: []*api.Family{{Afi: afi, Safi: api.Family_SAFI_UNICAST}},
		}, peering.Reject))
		return
	}
	for _, s := range []struct {
		name   string
		ranges []fabric.PrefixRange
		match  func(string) *api.MatchSet
	}{
		{"martians-" + family, inside(fabric.Martians(v6)), anyOf},
		{"excluded-" + family, inside(c.Excluded(v6)), anyOf},
		{"guests-" + family, guests, noneOf},
	} {
		if len(s.ranges) == 0 {
			continue
		}
		set := &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_PREFIX, Name: s.name}
		for _, r := range s.ranges {
			set.Prefixes = append(set.Prefixes, &api.Prefix{IpPrefix: r.Prefix.String(), MaskLengthMin: uint32(r.Min), MaskLengthMax: uint32(r.Max)})
		}
		p.sets = append(p.sets, set)
		p.in = append(p.in, peering.Statement("in-"+s.name, &api.Conditions{PrefixSet: s.match(s.name)}, peering.Reject))
	}
}

// addExport adds the export policy. Core gateways get all accepted routes. Nodes
// get them too in an east-west cluster. Otherwise they get only the [fabric.Fresh]
// ones, so that a node which had the guest before withdraws it.
func (p *policy) addExport(eastWest bool) {
	if p.foreignCores {
		// Over eBGP GoBGP would set itself as next hop, and it does not forward.
		// LOCAL_PREF ends at the AS, so the MED carries it: of two MEDs the lower
		// is better.
		for _, pref := range fabric.Preferences() {
			value := pref.LocalPref()
			s := peering.Statement(fmt.Sprintf("out-core-ebgp-%d", value), &api.Conditions{
				NeighborSet: anyOf(foreignSet), LocalPrefEq: &api.LocalPrefEq{Value: value},
			}, peering.Accept)
			s.Actions.Nexthop = &api.NexthopAction{Unchanged: true}
			s.Actions.Med = &api.MedAction{Type: api.MedAction_TYPE_REPLACE, Value: foreignMED - int64(value)}
			p.out = append(p.out, s)
		}
	}
	if p.core {
		p.out = append(p.out, peering.Statement("out-core", &api.Conditions{NeighborSet: anyOf(coreSet)}, peering.Accept))
	}
	nodes := &api.Conditions{LocalPrefEq: &api.LocalPrefEq{Value: fabric.Fresh.LocalPref()}}
	if eastWest {
		nodes = &api.Conditions{}
	}
	p.out = append(p.out, peering.Statement("out-nodes", nodes, peering.Accept))
}

// foreignMED less the LOCAL_PREF is the MED for a core gateway in another AS.
const foreignMED = 1000

func anyOf(set string) *api.MatchSet { return &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: set} }

func noneOf(set string) *api.MatchSet {
	return &api.MatchSet{Type: api.MatchSet_TYPE_INVERT, Name: set}
}

// install puts the policy into force. Until then a new server accepts everything,
// so it must have no neighbours yet.
func (p *policy) install(ctx context.Context, b *server.BgpServer) error {
	for _, s := range p.sets {
		if err := b.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: s}); err != nil {
			return fmt.Errorf("policy: set %s: %w", s.Name, err)
		}
	}
	for _, way := range []struct {
		name       string
		direction  api.PolicyDirection
		statements []*api.Statement
	}{
		{importName, api.PolicyDirection_POLICY_DIRECTION_IMPORT, p.in},
		{peering.ExportName, api.PolicyDirection_POLICY_DIRECTION_EXPORT, p.out},
	} {
		assigned := &api.PolicyAssignment{Name: peering.GlobalTable, Direction: way.direction, DefaultAction: peering.Reject}
		if len(way.statements) > 0 {
			pol := &api.Policy{Name: way.name, Statements: way.statements}
			if err := b.AddPolicy(ctx, &api.AddPolicyRequest{Policy: pol}); err != nil {
				return fmt.Errorf("policy %s: %w", way.name, err)
			}
			assigned.Policies = []*api.Policy{{Name: way.name}}
		}
		if err := b.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: assigned}); err != nil {
			return fmt.Errorf("policy %s: %w", way.name, err)
		}
	}
	return nil
}
