package fabric

import "net/netip"

// ImportOutcome says what becomes of an address in an [Import].
type ImportOutcome string

// The outcomes.
const (
	ToRecord ImportOutcome = "to record" // the registry does not have it yet
	Recorded ImportOutcome = "recorded"  // it has it now
	HeldBack ImportOutcome = "held back" // another address of the guest is in conflict
	Conflict ImportOutcome = "conflict"  // it is not recorded; the text says why, and the way out
)

// ImportEntry is an address of a guest that the registry does not have as the guest has
// it.
type ImportEntry struct {
	Node    string        `json:"node"`
	VM      string        `json:"vm"`
	Guest   Identity      `json:"guest"`
	NIC     int           `json:"nic"`
	Prefix  netip.Prefix  `json:"prefix"`
	Outcome ImportOutcome `json:"outcome"`
	Text    string        `json:"text,omitempty"`
}

// Import compares what the guests of all nodes have with what the registry has of them.
type Import struct {
	Guests  int           `json:"guests"`  // of all nodes that answered
	Known   int           `json:"known"`   // addresses that the registry has already
	Entries []ImportEntry `json:"entries"` // the others
	Silent  []string      `json:"silent"`  // why nodes did not tell what their guests have
}
