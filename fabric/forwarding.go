package fabric

// ForwardingFault says why packets of guests do not pass a node.
type ForwardingFault struct {
	Family string `json:"family"` // IPv4 or IPv6; empty: either
	Text   string `json:"text"`   // the packets, the rule or setting that drops them, the way out
	// Withdrawn: the node announces nothing of the family until the fault is gone.
	Withdrawn bool `json:"withdrawn,omitempty"`
}
