package fabric

import (
	"net/netip"
	"time"
)

// Blackhole discards packets to a guest's address for a time, on the node of the guest
// and on routers that honour RFC 7999: an attack on one guest then harms no other. It is
// the node's: where the guest moves, it is reached.
type Blackhole struct {
	Prefix netip.Prefix `json:"prefix"`
	VM     string       `json:"vm"` // the guest that had the address then
	Since  time.Time    `json:"since"`
	Until  time.Time    `json:"until"`
}

// The bounds of a blackhole's time.
const (
	MinBlackhole = time.Second
	MaxBlackhole = 7 * 24 * time.Hour
)

// MaxBlackholes is how many a node has at most.
const MaxBlackholes = 1024
