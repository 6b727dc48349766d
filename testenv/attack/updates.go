package attack

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Update is an UPDATE message of BGP without its header (RFC 4271), which is broken.
type Update struct {
	Name string
	Body []byte
}

// attribute is a path attribute, with the flags that it has.
func attribute(flags, kind byte, value ...byte) []byte {
	const extended = 0x10
	if len(value) > 255 {
		return slices.Concat([]byte{flags | extended, kind, byte(len(value) >> 8), byte(len(value))}, value)
	}
	return slices.Concat([]byte{flags, kind, byte(len(value))}, value)
}

// Flags of attributes, and the kinds that are changed here.
const (
	wellKnown, optional, transitive = 0x40, 0x80, 0xc0

	origin, asPath, nextHop, discriminator, localPref, aggregate, aggregator = 1, 2, 3, 4, 5, 6, 7
	communities, originator, clusters, reach, unreach, extended, large       = 8, 9, 10, 14, 15, 16, 32
)

// body is an UPDATE of withdrawn routes, attributes and routes.
func body(withdrawn []byte, attributes [][]byte, routes ...byte) []byte {
	b := append(binary.BigEndian.AppendUint16(nil, uint16(len(withdrawn))), withdrawn...)
	all := slices.Concat(attributes...)
	return slices.Concat(binary.BigEndian.AppendUint16(b, uint16(len(all))), all, routes)
}

// Updates are broken messages about a guest's prefixes, as a reflector may send them that
// lies or is broken itself.
func Updates(guest Pair, hop netip.Addr) []Update {
	route := append([]byte{32}, guest.V4.AsSlice()...)
	route6 := append([]byte{128}, guest.V6.AsSlice()...)
	sound := func() map[byte][]byte {
		return map[byte][]byte{
			origin: attribute(wellKnown, origin, 0), asPath: attribute(wellKnown, asPath),
			nextHop: attribute(wellKnown, nextHop, hop.AsSlice()...), localPref: attribute(wellKnown, localPref, 0, 0, 0, 200),
		}
	}
	// with has other attributes in the place of the sound ones of their kinds, or beside them.
	with := func(changed ...[]byte) []byte {
		attributes := sound()
		for _, c := range changed {
			attributes[c[1]] = c
		}
		var all [][]byte
		for kind := range 256 {
			all = append(all, attributes[byte(kind)])
		}
		return body(nil, all, route...)
	}
	without := func(kind byte) []byte {
		attributes := sound()
		delete(attributes, kind)
		return body(nil, [][]byte{attributes[origin], attributes[asPath], attributes[nextHop], attributes[localPref]}, route...)
	}
	reached := func(value ...byte) []byte { return with(attribute(optional, reach, value...)) }
	hop6 := slices.Concat([]byte{0, 2, 1, 16}, make([]byte, 15), []byte{1, 0}, route6)
	return []Update{
		{"no body", nil},
		{"one byte", []byte{0}},
		{"withdrawn routes beyond the end", []byte{0xff, 0xff, 0, 0}},
		{"attributes beyond the end", []byte{0, 0, 0xff, 0xff, 1}},
		{"a withdrawn route of 33 bits", body([]byte{33, 1, 2, 3, 4, 5}, nil)},
		{"a withdrawn route that is cut off", body([]byte{32, 203, 0}, nil)},
		{"a route of 33 bits", body(nil, [][]byte{without(0)[4:]}, 33, 1, 2, 3, 4, 5)},
		{"a route of 255 bits", append(with(), 255, 1)},
		{"a route that is cut off", append(with(), 32, 203)},
		{"no ORIGIN", without(origin)},
		{"no AS_PATH", without(asPath)},
		{"no NEXT_HOP", without(nextHop)},
		{"no LOCAL_PREF", without(localPref)},
		{"ORIGIN of an unknown value", with(attribute(wellKnown, origin, 9))},
		{"ORIGIN of two bytes", with(attribute(wellKnown, origin, 0, 0))},
		{"ORIGIN of no byte", with(attribute(wellKnown, origin))},
		{"AS_PATH with an unknown segment", with(attribute(wellKnown, asPath, 9, 1, 0, 0, 0, 1))},
		{"AS_PATH with a segment beyond the end", with(attribute(wellKnown, asPath, 2, 200, 0, 0, 0, 1))},
		{"AS_PATH with an empty segment", with(attribute(wellKnown, asPath, 2, 0))},
		{"AS_PATH that is cut off", with(attribute(wellKnown, asPath, 2))},
		{"NEXT_HOP of three bytes", with(attribute(wellKnown, nextHop, 10, 10, 0))},
		{"NEXT_HOP of no machine", with(attribute(wellKnown, nextHop, 0, 0, 0, 0))},
		{"NEXT_HOP of a group", with(attribute(wellKnown, nextHop, 224, 0, 0, 5))},
		{"NEXT_HOP of loopback", with(attribute(wellKnown, nextHop, 127, 0, 0, 1))},
		{"LOCAL_PREF of three bytes", with(attribute(wellKnown, localPref, 0, 0, 1))},
		{"MULTI_EXIT_DISC of five bytes", with(attribute(optional, discriminator, 0, 0, 0, 0, 1))},
		{"an attribute twice", body(nil, [][]byte{without(0)[4 : len(without(0))-5], attribute(wellKnown, origin, 1)}, route...)},
		{"well-known attributes as optional ones", with(attribute(optional, origin, 0), attribute(optional, nextHop, hop.AsSlice()...))},
		{"an unknown attribute that is well-known", with(attribute(wellKnown, 200, 1, 2, 3))},
		{"an unknown attribute of 2,000 bytes", with(attribute(transitive, 201, make([]byte, 2000)...))},
		{"an attribute beyond the end", body(nil, [][]byte{{wellKnown, origin, 200, 0}}, route...)},
		{"an attribute with a length of 65,535", body(nil, [][]byte{{0x50, origin, 0xff, 0xff, 0}}, route...)},
		{"an attribute that is cut off", body(nil, [][]byte{{wellKnown}}, route...)},
		{"COMMUNITIES of three bytes", with(attribute(transitive, communities, 1, 2, 3))},
		{"EXTENDED_COMMUNITIES of seven bytes", with(attribute(transitive, extended, 1, 2, 3, 4, 5, 6, 7))},
		{"LARGE_COMMUNITY of eleven bytes", with(attribute(transitive, large, make([]byte, 11)...))},
		{"ORIGINATOR_ID of three bytes", with(attribute(optional, originator, 1, 2, 3))},
		{"CLUSTER_LIST of three bytes", with(attribute(optional, clusters, 1, 2, 3))},
		{"AGGREGATOR of three bytes", with(attribute(transitive, aggregator, 1, 2, 3))},
		{"ATOMIC_AGGREGATE of a byte", with(attribute(wellKnown, aggregate, 1))},
		{"MP_REACH_NLRI of an unknown family", reached(0, 99, 99, 4, 1, 2, 3, 4, 0)},
		{"MP_REACH_NLRI without a next hop", reached(slices.Concat([]byte{0, 2, 1, 0, 0}, route6)...)},
		{"MP_REACH_NLRI with a next hop beyond the end", reached(0, 2, 1, 255, 0)},
		{"MP_REACH_NLRI that is cut off", reached(0, 2)},
		{"MP_REACH_NLRI with a route of 129 bits", reached(slices.Concat(hop6, []byte{129}, make([]byte, 17))...)},
		{"MP_REACH_NLRI with a route that is cut off", reached(slices.Concat(hop6, []byte{128, 0x20, 1})...)},
		{"MP_UNREACH_NLRI that is cut off", with(attribute(optional, unreach, 0, 2))},
		{"MP_UNREACH_NLRI of a route of 129 bits", with(attribute(optional, unreach, 0, 2, 1, 129, 1))},
		{"nothing but 0xff", slices.Repeat([]byte{0xff}, 4000)},
	}
}
