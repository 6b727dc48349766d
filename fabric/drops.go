package fabric

import (
	"slices"
	"time"
)

// DropReason says why a node dropped a packet from a guest's port or to it. Users and
// metrics see these names.
type DropReason string

// The reasons.
const (
	DropSource      DropReason = "source"           // the packet's source is not routed to the port (BCP 38)
	DropDestination DropReason = "destination"      // the underlay, 169.254.0.0/16, loopback, multicast, or reserved addresses
	DropNodePort    DropReason = "node_port"        // a service of the node that is not open to guests
	DropNeighbour   DropReason = "neighbour_rate"   // more address resolution than the limit of one port
	DropNewSource   DropReason = "new_source_rate"  // more sources that the node does not know than the limit
	DropRequest     DropReason = "request_rate"     // more DHCP requests and router solicitations than the limit
	DropMetadata    DropReason = "metadata_rate"    // more packets to the metadata service than the limit
	DropIsolation   DropReason = "isolation"        // between two guests, one of which is isolated
	DropIngress     DropReason = "firewall_ingress" // by the guest's firewall, on the way to the guest
	DropEgress      DropReason = "firewall_egress"  // by the guest's firewall, on the way from the guest
)

var dropReasons = []DropReason{
	DropSource, DropDestination, DropNodePort, DropNeighbour, DropNewSource, DropRequest, DropMetadata, DropIsolation, DropIngress, DropEgress,
}

// DropReasons lists all reasons, always in the same order. A reason keeps its place:
// kernels have counters by it.
func DropReasons() []DropReason { return slices.Clone(dropReasons) }

// Drops counts the packets of one port that its node dropped for one reason. Both
// numbers only grow while the port's link exists, but for two events that let them
// begin at zero: somebody removed the node's filter, or the agent was restarted after
// it had to make the filter anew.
type Drops struct {
	Reason  DropReason `json:"reason"`
	Packets uint64     `json:"packets"`
	Bytes   uint64     `json:"bytes"`         // without link headers
	Last    time.Time  `json:"last,omitzero"` // when the last one was dropped; zero: not known
}
