package fabric

import (
	"net/netip"
	"time"
)

// ContactProtocol is one by which a guest learns its addresses and routes.
type ContactProtocol string

// The protocols.
const (
	DHCPv4             ContactProtocol = "dhcpv4" // RFC 2131
	DHCPv6             ContactProtocol = "dhcpv6" // RFC 8415
	RouterSolicitation ContactProtocol = "ra"     // RFC 4861, 6.3.7
)

// String gives "DHCPv4", "DHCPv6" or "router solicitation", for people.
func (p ContactProtocol) String() string {
	switch p {
	case DHCPv4:
		return "DHCPv4"
	case DHCPv6:
		return "DHCPv6"
	case RouterSolicitation:
		return "router solicitation"
	}
	return string(p)
}

// Contact is the last time that a guest asked for its configuration by a protocol. What
// the guest says of itself is text of at most 64 printable characters.
type Contact struct {
	Protocol ContactProtocol `json:"protocol"`
	At       time.Time       `json:"at"`
	Message  string          `json:"message"`            // its type, such as "DISCOVER", "RENEW" or "SOLICITATION"
	Hostname string          `json:"hostname,omitempty"` // DHCPv4 options 12 and 81, DHCPv6 option 39
	Client   string          `json:"client,omitempty"`   // vendor class: DHCPv4 option 60, DHCPv6 option 16
	// Refused says why the guest got no answer, or one that refuses; empty: it got
	// what it is to have.
	Refused string `json:"refused,omitempty"`
	// Declined is the address that the guest declined because another machine on its
	// link answers for it (DHCPDECLINE); the zero value: none.
	Declined netip.Addr `json:"declined,omitzero"`
}

// RequestCount counts the guests' requests by a protocol since the node's agent started.
type RequestCount struct {
	Protocol ContactProtocol
	Answered uint64
	Refused  uint64 // without an answer, or with one that refuses
}
