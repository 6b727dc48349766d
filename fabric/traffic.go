package fabric

import "net/netip"

// Count has packets and their bytes, from the IP header on, as a node forwards them: a
// packet that the kernel holds in one piece until it leaves the node (GSO, GRO) is one.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Plus returns the sum.
func (c Count) Plus(o Count) Count { return Count{c.Packets + o.Packets, c.Bytes + o.Bytes} }

// ByScope has counts by who is at the other end.
type ByScope struct {
	Internal Count `json:"internal"` // an address of the pools, of the prefixes routed to guests, or of the underlay
	External Count `json:"external"` // any other address
}

// Traffic is what one node has forwarded for an address of a guest, or for a prefix
// behind it, since the node first had the guest. It never decreases. A guest that moved
// has some on each node that it was on: what it has in all is their sum.
type Traffic struct {
	VM       string       `json:"vm"`
	Prefix   netip.Prefix `json:"prefix"`
	Sent     ByScope      `json:"sent"`     // by the guest
	Received ByScope      `json:"received"` // by the guest
}
