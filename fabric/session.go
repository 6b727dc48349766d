package fabric

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Family is an address family of BGP, of which only unicast is used here.
type Family string

// The families that a [Session] may carry.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// FamilyOf gives the family of a prefix.
func FamilyOf(p netip.Prefix) Family {
	if p.Addr().Is6() {
		return IPv6
	}
	return IPv4
}

// String gives the family's name as people write it.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return escape(string(f), maxFamily)
}

// Families lists the families that guests of the cluster can have.
func (c *Cluster) Families() []Family {
	var all []Family
	for _, f := range []Family{IPv4, IPv6} {
		if len(c.Announceable(f == IPv6)) > 0 {
			all = append(all, f)
		}
	}
	return all
}

// Session is a BGP session as a speaker, or a reflector, sees it.
type Session struct {
	Peer       string    `json:"peer"` // its name in the cluster, or its address where it has none
	Address    string    `json:"address"`
	Role       string    `json:"role,omitempty"` // of a reflector's peer: node, core; empty: the peer is a reflector
	State      string    `json:"state"`          // of RFC 4271, in lower case: idle, connect, active, opensent, openconfirm, established
	Since      time.Time `json:"since"`
	Received   uint64    `json:"received,omitempty"` // prefixes that the peer sent, accepted or not
	Accepted   uint64    `json:"accepted,omitempty"` // prefixes of these that passed the policy
	Advertised uint64    `json:"advertised"`         // prefixes sent to the peer
	// Families lists the families that both sides negotiated, for an established
	// session; nil: not known.
	Families []Family `json:"families,omitzero"`
	// Notification is the last one sent or received on sessions with this peer;
	// nil: none is known.
	Notification *Notification `json:"notification,omitempty"`
	// Failure is how the session, or the last attempt at one, ended without a
	// NOTIFICATION; nil: the session is established, or that is not known.
	Failure *SessionFailure `json:"failure,omitempty"`
}

// Established is the state of a session that carries routes.
const Established = "established"

// Lacks reports whether the session is established but does not carry a family.
func (s Session) Lacks(f Family) bool {
	return s.State == Established && s.Families != nil && !slices.Contains(s.Families, f)
}

// downSlack is how long before the end of a session its NOTIFICATION may be
// dated: daemons round times, and report the two at different moments.
const downSlack = 5 * time.Second

// DownReason says why the session is not established and what to do about it,
// as far as that is known.
func (s Session) DownReason() string {
	n, f := s.Notification, s.Failure
	// A NOTIFICATION from before the session came up is not the reason of its end.
	if n != nil && !n.At.IsZero() && n.At.Before(s.Since.Add(-downSlack)) {
		n = nil
	}
	switch {
	case n == nil && f == nil:
		return fmt.Sprintf("check that the %s runs, knows this %s and has the same AS number and password", s.roles()[0], s.roles()[1])
	case n == nil:
		return f.from(s)
	case f == nil || f.Kind == Closed: // the connection closes after each NOTIFICATION
		return fmt.Sprintf("%s; %s", n.from(s.Peer), n.remedy())
	}
	return fmt.Sprintf("%s; since then %s", n.from(s.Peer), f.from(s))
}

// roles names the peer, and the side that reports the session.
func (s Session) roles() [2]string {
	switch s.Role {
	case "":
		return [2]string{"reflector", "node"}
	case "core":
		return [2]string{"core gateway", "reflector"}
	}
	return [2]string{s.Role, "reflector"}
}

// SessionProblems says which of a node's sessions are down, and which do not
// carry a family that guests of the cluster can have.
func (c *Cluster) SessionProblems(node string, sessions []Session) []string {
	var problems []string
	for _, s := range sessions {
		if s.State != Established {
			problems = append(problems, fmt.Sprintf("session with %s (%s) is %s since %s; %s",
				s.Peer, s.Address, s.State, s.Since.Format(time.TimeOnly), s.DownReason()))
		}
		for _, f := range c.Families() {
			if s.Lacks(f) {
				problems = append(problems, fmt.Sprintf("%s takes no %s: its session (%s) was negotiated without that family; %s",
					s.Peer, f, s.Address, familyRemedy(f, cmp.Or(node, "this node"), s.Peer)))
			}
		}
	}
	return problems
}

func familyRemedy(f Family, node, peer string) string {
	return fmt.Sprintf("add an %s channel (BIRD) or address family (FRR) to the session of %s and %s, on the side that has none, as it is rendered from the cluster file", f, node, peer)
}

// Advertisement is what a speaker has sent to one peer of one prefix: an entry
// of its Adj-RIB-Out (RFC 4271, 3.2), or the lack of it.
type Advertisement struct {
	Peer    string `json:"peer"`
	Address string `json:"address"`
	Sent    bool   `json:"sent"` // the session is established and the peer has been sent the prefix
	// Reason says why it was not sent, and the way out; empty: not known.
	Reason string `json:"reason,omitempty"`
}

// ReceivedRoute is a route that a reflector has sent to a node: an entry of its
// Adj-RIB-In (RFC 4271, 3.2).
type ReceivedRoute struct {
	Prefix netip.Prefix
	Via    netip.Addr // the next hop
	Peer   string     // the name of the reflector
}

// AdvertisementsOn reports for each session whether a prefix was sent. It calls
// sent for the sessions that are established and carry the prefix's family, and
// returns the first error of sent.
func AdvertisementsOn(prefix netip.Prefix, node string, sessions []Session, sent func(Session) (bool, error)) ([]Advertisement, error) {
	all := make([]Advertisement, 0, len(sessions))
	for _, s := range sessions {
		a := Advertisement{Peer: s.Peer, Address: s.Address}
		f := FamilyOf(prefix)
		switch {
		case s.State != Established:
			a.Reason = fmt.Sprintf("%s since %s: %s", s.State, s.Since.Format(time.TimeOnly), s.DownReason())
		case s.Lacks(f):
			a.Reason = fmt.Sprintf("it takes no %s: the session was negotiated without that family; %s", f, familyRemedy(f, cmp.Or(node, "this node"), s.Peer))
		default:
			var err error
			if a.Sent, err = sent(s); err != nil {
				return nil, err
			}
		}
		all = append(all, a)
	}
	return all, nil
}
