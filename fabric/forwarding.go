package fabric

import "context"

// ForwardingFault says why packets of guests do not pass a node.
type ForwardingFault struct {
	Family string `json:"family"` // IPv4 or IPv6; empty: either
	Text   string `json:"text"`   // the packets, what drops them, the way out
	// Withdrawn: the node announces nothing of the family until the fault is gone.
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// ForwardingChecker is implemented by a [Dataplane] that can try whether packets
// of guests pass the node between the underlay and a port.
type ForwardingChecker interface {
	// CheckForwarding tries it now, without a guest, and gives what is in the
	// way; nothing when all pass. An error says that it could not be tried.
	CheckForwarding(ctx context.Context) ([]ForwardingFault, error)
}

// CheckForwarding tries whether packets of guests pass this node now, in each
// family that the cluster has pools of, and whether it has the next hops that
// it announces. Of a dataplane that cannot tell there are no faults.
func (a *Agent) CheckForwarding(ctx context.Context) ([]ForwardingFault, error) {
	var faults []ForwardingFault
	hops := a.missingHops()
	for _, hop := range []struct {
		family string
		err    error
	}{{"IPv4", hops.v4}, {"IPv6", hops.v6}} {
		if hop.err != nil {
			faults = append(faults, ForwardingFault{Family: hop.family, Text: oneLine(hop.err), Withdrawn: true})
		}
	}
	c, ok := a.dataplane.(ForwardingChecker)
	if !ok {
		return faults, nil
	}
	tried, err := c.CheckForwarding(ctx)
	return append(faults, tried...), err
}
