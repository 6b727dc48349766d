package plugins

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// Values of package fabric as messages of plugin.proto (Out) and back (In). A
// message that comes in may be malformed: the other side can be written in any
// language.

// textIn parses texts; what names what each must be, such as "a prefix".
func textIn[T any](texts []string, parse func(string) (T, error), what string) ([]T, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	all := make([]T, 0, len(texts))
	for _, text := range texts {
		v, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%.60q is not %s", text, what)
		}
		all = append(all, v)
	}
	return all, nil
}

func textOut[T fmt.Stringer](all []T) []string {
	texts := make([]string, 0, len(all))
	for _, v := range all {
		texts = append(texts, v.String())
	}
	return texts
}

func routesOut(routes []fabric.Route) []*pb.Route {
	all := make([]*pb.Route, 0, len(routes))
	for _, r := range routes {
		all = append(all, &pb.Route{Prefix: r.Prefix.String(), Preference: uint32(r.Preference)})
	}
	return all
}

func routesIn(routes []*pb.Route) ([]fabric.Route, error) {
	all := make([]fabric.Route, 0, len(routes))
	for _, r := range routes {
		p, err := netip.ParsePrefix(r.GetPrefix())
		if err != nil {
			return nil, fmt.Errorf("%.60q is not a prefix", r.GetPrefix())
		}
		all = append(all, fabric.Route{Prefix: p, Preference: fabric.Preference(r.GetPreference())})
	}
	return all, nil
}

func timeOut(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeIn(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func sessionOut(s fabric.Session) *pb.Session {
	out := &pb.Session{
		Peer: s.Peer, Address: s.Address, State: s.State, Since: timeOut(s.Since), Advertised: s.Advertised,
		FamiliesKnown: s.Families != nil,
	}
	for _, f := range s.Families {
		out.Families = append(out.Families, string(f))
	}
	if n := s.Notification; n != nil {
		out.Notification = &pb.Notification{
			Sent: n.Sent, Code: uint32(n.Code), Subcode: uint32(n.Subcode), Communication: strings.ToValidUTF8(n.Communication, "?"), At: timeOut(n.At),
		}
	}
	return out
}

func sessionIn(s *pb.Session) fabric.Session {
	in := fabric.Session{
		Peer: s.GetPeer(), Address: s.GetAddress(), State: s.GetState(), Since: timeIn(s.GetSince()), Advertised: s.GetAdvertised(),
	}
	if s.GetFamiliesKnown() {
		in.Families = []fabric.Family{}
	}
	for _, f := range s.GetFamilies() {
		// Guests need no family that is unknown here.
		if f := fabric.Family(f); in.Families != nil && (f == fabric.IPv4 || f == fabric.IPv6) {
			in.Families = append(in.Families, f)
		}
	}
	if n := s.GetNotification(); n != nil && n.GetCode() <= math.MaxUint8 && n.GetSubcode() <= math.MaxUint8 {
		in.Notification = fabric.NewNotification(n.GetSent(), uint8(n.GetCode()), uint8(n.GetSubcode()), n.GetCommunication(), timeIn(n.GetAt()))
	}
	return in
}

func advertisementsOut(ads []fabric.Advertisement) []*pb.Advertisement {
	all := make([]*pb.Advertisement, 0, len(ads))
	for _, a := range ads {
		all = append(all, &pb.Advertisement{Peer: a.Peer, Address: a.Address, Sent: a.Sent, Reason: oneLine(a.Reason)})
	}
	return all
}

func advertisementsIn(ads []*pb.Advertisement) []fabric.Advertisement {
	all := make([]fabric.Advertisement, 0, len(ads))
	for _, a := range ads {
		all = append(all, fabric.Advertisement{Peer: a.GetPeer(), Address: a.GetAddress(), Sent: a.GetSent(), Reason: oneLine(a.GetReason())})
	}
	return all
}

func queryOut(q fabric.Query) *pb.ResolveRequest {
	return &pb.ResolveRequest{Vm: q.VM, Uuid: q.UUID, Macs: textOut(q.MACs)}
}

func queryIn(r *pb.ResolveRequest) (fabric.Query, error) {
	macs, err := textIn(r.GetMacs(), func(s string) (m fabric.MAC, err error) {
		err = m.UnmarshalText([]byte(s))
		return m, err
	}, "a MAC address")
	return fabric.Query{VM: r.GetVm(), UUID: r.GetUuid(), MACs: macs}, err
}

func nicsOut(nics []fabric.NIC) []*pb.Nic {
	all := make([]*pb.Nic, 0, len(nics))
	for _, n := range nics {
		all = append(all, &pb.Nic{Addresses: textOut(n.Addresses), Routes: textOut(n.Routes)})
	}
	return all
}

func nicsIn(nics []*pb.Nic) ([]fabric.NIC, error) {
	all := make([]fabric.NIC, len(nics))
	for n, nic := range nics {
		var err error
		if all[n].Addresses, err = textIn(nic.GetAddresses(), netip.ParseAddr, "an address"); err != nil {
			return nil, fmt.Errorf("NIC %d: %w", n, err)
		}
		if all[n].Routes, err = textIn(nic.GetRoutes(), netip.ParsePrefix, "a prefix"); err != nil {
			return nil, fmt.Errorf("NIC %d: %w", n, err)
		}
	}
	return all, nil
}

func eventOut(e fabric.Event) *pb.Event {
	out := &pb.Event{
		At: timeOut(e.At), Kind: string(e.Kind), Cluster: e.Cluster, Node: e.Node, Vm: e.VM, Uuid: e.UUID,
		Ports: e.Ports, Prefixes: textOut(e.Prefixes), Preference: uint32(e.Preference), Dropped: uint64(max(e.Dropped, 0)),
	}
	if e.Session != nil {
		out.Session = sessionOut(*e.Session)
	}
	return out
}

func eventIn(e *pb.Event) (fabric.Event, error) {
	prefixes, err := textIn(e.GetPrefixes(), netip.ParsePrefix, "a prefix")
	in := fabric.Event{
		At: timeIn(e.GetAt()), Kind: fabric.EventKind(e.GetKind()), Cluster: e.GetCluster(), Node: e.GetNode(), VM: e.GetVm(), UUID: e.GetUuid(),
		Ports: e.GetPorts(), Prefixes: prefixes, Preference: fabric.Preference(e.GetPreference()), Dropped: int(e.GetDropped()),
	}
	if e.GetSession() != nil {
		s := sessionIn(e.GetSession())
		in.Session = &s
	}
	return in, err
}
