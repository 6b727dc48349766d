package fabric

import "context"

// ForwardingFault says why packets of guests do not pass a node.
type ForwardingFault struct {
	Family string `json:"family"` // IPv4 or IPv6; empty: either
	Text   string `json:"text"`   // the packets, what drops them, the way out
}

// ForwardingChecker is implemented by a [Dataplane] that can try whether packets
// of guests pass the node between the underlay and a port.
type ForwardingChecker interface {
	// CheckForwarding tries it now, without a guest, and gives what is in the
	// way; nothing when all pass. An error says that it could not be tried.
	CheckForwarding(ctx context.Context) ([]ForwardingFault, error)
}
