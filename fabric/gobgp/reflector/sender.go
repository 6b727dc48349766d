package reflector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/osrg/gobgp/v4/api"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/peering"
)

// sender accepts routes from one node that the rest of the policy has not rejected:
// those with the node itself as next hop and a LOCAL_PREF that agents use. GoBGP
// cannot compare a next hop with the sender, so each node has its own statements.
type sender struct {
	set *api.DefinedSet
	in  []*api.Statement
}

// newSender makes the statements for a node that connects from an address. n is the
// zero Node if the cluster does not list the node. in and not are for a node that
// the cluster lists, see [fabric.Cluster.NextHopRanges].
func newSender(n fabric.Node, from netip.Addr, in, not []netip.Prefix) sender {
	name := "node-" + from.String()
	s := sender{set: &api.DefinedSet{
		DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: name, List: []string{fabric.HostPrefix(from).String()},
	}}
	s.take("own", []string{n.NextHop(from, false).String(), n.NextHop(from, true).String()})
	if len(in) > 0 {
		s.in = append(s.in, peering.Statement("in-"+name+"-not", &api.Conditions{NeighborSet: anyOf(name), NextHopInList: texts(not)}, peering.Reject))
		s.take("in", texts(in))
	}
	return s
}

// take accepts routes with one of the next hops.
func (s *sender) take(what string, hops []string) {
	for _, pref := range fabric.Preferences() {
		s.in = append(s.in, peering.Statement(fmt.Sprintf("in-%s-%s-%d", s.set.Name, what, pref.LocalPref()), &api.Conditions{
			NeighborSet: anyOf(s.set.Name), NextHopInList: hops, LocalPrefEq: &api.LocalPrefEq{Value: pref.LocalPref()},
		}, peering.Accept))
	}
}

func texts(ps []netip.Prefix) []string {
	var ss []string
	for _, p := range ps {
		ss = append(ss, p.String())
	}
	return ss
}

// admit accepts the routes of a node that the cluster does not list. The policy has
// rejected them until then, so GoBGP applies it again.
func (t *peerTable) admit(ctx context.Context, n neighbour) {
	if t.isNamed(n.address) || t.state(n.address).admitted {
		return
	}
	s := newSender(fabric.Node{}, n.address, nil, nil)
	err := t.bgp.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: s.set})
	if err == nil {
		err = t.bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: &api.Policy{Name: importName, Statements: s.in}})
	}
	if err == nil {
		err = t.bgp.ResetPeer(ctx, &api.ResetPeerRequest{Address: n.address.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_IN})
	}
	if err != nil {
		t.log.Error("the node's routes are refused; restart the reflector", "peer", n.name, "address", n.address, "err", err)
	}
	t.state(n.address).admitted = true
}

// dismiss undoes admit for a node that has no routes any more.
func (t *peerTable) dismiss(ctx context.Context, a netip.Addr) {
	if !t.state(a).admitted {
		return
	}
	s := newSender(fabric.Node{}, a, nil, nil)
	err := t.bgp.DeletePolicy(ctx, &api.DeletePolicyRequest{Policy: &api.Policy{Name: importName, Statements: s.in}, PreserveStatements: true})
	for _, st := range s.in {
		err = errors.Join(err, t.bgp.DeleteStatement(ctx, &api.DeleteStatementRequest{Statement: &api.Statement{Name: st.Name}, All: true}))
	}
	err = errors.Join(err, t.bgp.DeleteDefinedSet(ctx, &api.DeleteDefinedSetRequest{DefinedSet: s.set, All: true}))
	if err != nil {
		t.log.Warn("policy of a node that is gone not removed", "address", a, "err", err)
	}
	t.state(a).admitted = false
}
