package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Limits of one guest's firewall. They bound what one packet, and one attach, can cost.
const (
	MaxFirewallRules = 64 // of both directions together
	MaxRuleParts     = 16 // port ranges of a rule; the same limit holds for its prefixes
)

// Firewall says which forwarded packets reach a guest, and which it may send. It is not
// about packets between the guest and its own node: [Guests] says what passes there, so
// that address resolution, DHCP, metadata and the gateway always work. ICMP errors pass
// always. TCP segments that open no connection, and later fragments of a packet, pass
// where no rule is about them.
type Firewall struct {
	Ingress Filter `json:"ingress,omitzero"` // packets to the guest
	Egress  Filter `json:"egress,omitzero"`  // packets from the guest
	// Stateful: UDP datagrams and echo replies that answer what passed in the other
	// direction pass, too. Otherwise they need a rule. For TCP it changes nothing.
	Stateful bool `json:"stateful,omitempty"`
}

// Filter is the part of a [Firewall] for one direction. The first rule that matches a
// packet decides. The zero value lets all packets pass.
type Filter struct {
	Rules []Rule `json:"rules,omitempty"`
	Drop  bool   `json:"drop,omitempty"` // packets that no rule matches
}

// Rule is one rule of a [Filter]. It matches a packet of its protocol, with one of its
// ports as destination port and one of its peers at the other end.
type Rule struct {
	Drop     bool           `json:"drop,omitempty"` // otherwise matching packets pass
	Protocol Transport      `json:"protocol"`
	Ports    []PortRange    `json:"ports,omitempty"` // of TCP and UDP; empty: any
	Peers    []netip.Prefix `json:"peers,omitempty"` // sources of ingress, destinations of egress; empty: any, of both families
}

// Transport is what a [Rule] matches: a protocol above IP.
type Transport string

// The protocols.
const (
	AnyProtocol Transport = "any"
	TCP         Transport = "tcp"
	UDP         Transport = "udp"
	ICMP        Transport = "icmp" // ICMP or ICMPv6, by the packet's family
)

var protocols = []Transport{AnyProtocol, TCP, UDP, ICMP}

// PortRange is a range of TCP or UDP ports, both ends included.
type PortRange struct{ First, Last uint16 }

// String gives "22" or "8000-8100".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalText implements encoding.TextMarshaler.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *PortRange) UnmarshalText(b []byte) (err error) {
	*r, err = ParsePortRange(string(b))
	return err
}

// ParsePortRange reads "22" or "8000-8100".
func ParsePortRange(s string) (PortRange, error) {
	first, last, ranged := strings.Cut(s, "-")
	if !ranged {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	switch {
	case errA != nil || errB != nil || a == 0 || strconv.FormatUint(a, 10) != first || strconv.FormatUint(b, 10) != last:
		return PortRange{}, fmt.Errorf("%.20q is not a port; write 22, or 8000-8100", s)
	case a > b:
		return PortRange{}, fmt.Errorf("ports %s end before they begin; write %d-%d", s, b, a)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

// Direction is the way of a packet that a [Filter] is about.
type Direction string

// The directions, as seen from the guest.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// preposition is the word before the peers of a rule.
func (d Direction) preposition() string {
	if d == Egress {
		return "to"
	}
	return "from"
}

// Text gives the form that [ParseFilter] reads.
func (r Rule) Text(d Direction) string {
	words := []string{action(r.Drop), string(r.Protocol)}
	if len(r.Ports) > 0 {
		words = append(words, list(r.Ports))
	}
	if len(r.Peers) > 0 {
		words = append(words, d.preposition(), list(r.Peers))
	}
	return strings.Join(words, " ")
}

// Text gives the form that [ParseFilter] reads, on one line.
func (f Filter) Text(d Direction) string {
	texts := make([]string, 0, len(f.Rules)+1)
	for _, r := range f.Rules {
		texts = append(texts, r.Text(d))
	}
	return strings.Join(append(texts, action(f.Drop)), "; ")
}

func action(drop bool) string {
	if drop {
		return "drop"
	}
	return "accept"
}

func list[T fmt.Stringer](all []T) string {
	words := make([]string, len(all))
	for i, v := range all {
		words[i] = v.String()
	}
	return strings.Join(words, ",")
}

// ParseFilter reads rules, each on a line of its own or behind a semicolon:
//
//	accept tcp 22,8000-8100 from 198.51.100.0/24,2001:db8:5::/48
//	accept icmp
//	drop
//
// A rule is an action, a protocol (any, tcp, udp or icmp), ports of tcp and udp, and
// "from", or "to" of egress, with prefixes or addresses. The last one may be an action
// alone, which is for all other packets; without it they pass. The errors name the rule.
func ParseFilter(text string, d Direction) (f Filter, err error) {
	bare := false
	n := 0
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ';' || r == '\n' }) {
		words := strings.Fields(part)
		if len(words) == 0 {
			continue
		}
		n++
		where := fmt.Sprintf("%s rule %d %.80q", d, n, strings.Join(words, " "))
		switch {
		case bare:
			return f, fmt.Errorf("%s: it comes after an action for all packets; put that last", where)
		case words[0] != "accept" && words[0] != "drop":
			return f, fmt.Errorf("%s: it begins with %.20q; write accept or drop first", where, words[0])
		case len(words) == 1:
			f.Drop, bare = words[0] == "drop", true
			continue
		case len(f.Rules) == MaxFirewallRules:
			return f, fmt.Errorf("%s: a guest has at most %d rules; put ports and prefixes of several into one", where, MaxFirewallRules)
		}
		r, err := parseRule(words, d)
		if err != nil {
			return f, fmt.Errorf("%s: %w", where, err)
		}
		f.Rules = append(f.Rules, r)
	}
	return f, nil
}

// parseRule reads a rule of two words or more, whose first one is the action.
func parseRule(words []string, d Direction) (r Rule, err error) {
	r.Drop, r.Protocol = words[0] == "drop", Transport(words[1])
	if !slices.Contains(protocols, r.Protocol) {
		return r, fmt.Errorf("protocol %.20q is not one of any, tcp, udp, icmp; write for example %s tcp 22 %s 198.51.100.0/24", words[1], words[0], d.preposition())
	}
	rest := words[2:]
	if len(rest) > 0 && rest[0] != d.preposition() {
		for word := range strings.SplitSeq(rest[0], ",") {
			p, err := ParsePortRange(word)
			if err != nil {
				return r, d.misplaced(rest[0], err)
			}
			r.Ports = append(r.Ports, p)
		}
		rest = rest[1:]
	}
	switch {
	case len(rest) == 0:
		return r, r.validate()
	case rest[0] != d.preposition():
		return r, d.misplaced(rest[0], fmt.Errorf("%.20q is one word too many; write ports with commas and no spaces, then %s and prefixes", rest[0], d.preposition()))
	case len(rest) != 2:
		return r, fmt.Errorf("%s takes one list of prefixes, with commas and no spaces; write %[1]s 198.51.100.0/24,2001:db8:5::/48", d.preposition())
	}
	for word := range strings.SplitSeq(rest[1], ",") {
		p, err := parsePeer(word)
		if err != nil {
			return r, err
		}
		r.Peers = append(r.Peers, p)
	}
	return r, r.validate()
}

// misplaced is the error for a word where ports could be, or err if the word is none of
// the other direction's.
func (d Direction) misplaced(word string, err error) error {
	if word == "from" || word == "to" {
		return fmt.Errorf("%q is of the other direction; an %s rule has %s", word, d, d.preposition())
	}
	return err
}

func parsePeer(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return HostPrefix(a), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%.60q is not a prefix; write one such as 198.51.100.0/24 or 2001:db8:5::/48", s)
	}
	return p, nil
}

// validate reports why a rule cannot be.
func (r Rule) validate() error {
	switch {
	case !slices.Contains(protocols, r.Protocol):
		return fmt.Errorf("protocol %.20q is not one of any, tcp, udp, icmp", string(r.Protocol))
	case len(r.Ports) > 0 && r.Protocol != TCP && r.Protocol != UDP:
		return fmt.Errorf("%s has no ports; leave them out, or write a rule for tcp and one for udp", r.Protocol)
	case len(r.Ports) > MaxRuleParts || len(r.Peers) > MaxRuleParts:
		return fmt.Errorf("a rule has at most %d port ranges and as many prefixes; write a second rule", MaxRuleParts)
	}
	for _, p := range r.Ports {
		if p.First == 0 || p.First > p.Last {
			return fmt.Errorf("ports %s are no range; write the lower one first", p)
		}
	}
	for i, p := range r.Peers {
		switch {
		case !p.IsValid():
			return fmt.Errorf("prefix %d is empty; write one such as 198.51.100.0/24", i+1)
		case p.Addr().Is4In6():
			return fmt.Errorf("%s is an IPv4 prefix written as IPv6; write it as IPv4", p)
		case p != p.Masked():
			return fmt.Errorf("%s has bits beyond its length; write %s", p, p.Masked())
		}
	}
	return nil
}

// all reports whether a rule matches all packets.
func (r Rule) all() bool { return r.Protocol == AnyProtocol && len(r.Peers) == 0 }

// Validate reports the first fault of the firewall's rules, with the rule and the way out.
func (f *Firewall) Validate() error {
	if f == nil {
		return nil
	}
	if n := len(f.Ingress.Rules) + len(f.Egress.Rules); n > MaxFirewallRules {
		return fmt.Errorf("firewall: %d rules; a guest has at most %d, put ports and prefixes of several into one", n, MaxFirewallRules)
	}
	for _, d := range []Direction{Ingress, Egress} {
		if err := f.of(d).validate(d); err != nil {
			return fmt.Errorf("firewall: %w", err)
		}
	}
	if f.Stateful && !f.Ingress.Filters() && !f.Egress.Filters() {
		return fmt.Errorf("firewall: it is stateful and drops nothing; say what to drop, or leave it out")
	}
	return nil
}

func (f *Firewall) of(d Direction) Filter {
	if d == Egress {
		return f.Egress
	}
	return f.Ingress
}

func (f Filter) validate(d Direction) error {
	for i, r := range f.Rules {
		where := fmt.Sprintf("%s rule %d %.80q", d, i+1, r.Text(d))
		if err := r.validate(); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		if r.all() && i < len(f.Rules)-1 {
			return fmt.Errorf("%s: it is for all packets, so that no rule after it counts; put it last", where)
		}
	}
	if len(f.Rules) > 0 && !slices.ContainsFunc(f.Rules, func(r Rule) bool { return r.Drop != f.Drop }) {
		return fmt.Errorf("%s: all rules say %s, as for all other packets; end the list with %q, or leave it out", d, action(f.Drop), action(!f.Drop))
	}
	return nil
}

// Equal reports whether two firewalls are the same.
func (f *Firewall) Equal(o *Firewall) bool {
	if f == nil || o == nil {
		return f == o
	}
	return f.Stateful == o.Stateful && f.Ingress.Text(Ingress) == o.Ingress.Text(Ingress) && f.Egress.Text(Egress) == o.Egress.Text(Egress)
}

// Filters reports whether the filter drops any packet.
func (f Filter) Filters() bool {
	return f.Drop || slices.ContainsFunc(f.Rules, func(r Rule) bool { return r.Drop })
}

// Of gives the part of the filter that concerns one family: rules whose peers are all of
// the other one are left out.
func (f Filter) Of(v4 bool) Filter {
	is := Filter{Drop: f.Drop}
	for _, r := range f.Rules {
		all := len(r.Peers) == 0
		r.Peers = slices.DeleteFunc(slices.Clone(r.Peers), func(p netip.Prefix) bool { return p.Addr().Is4() != v4 })
		if all || len(r.Peers) > 0 {
			is.Rules = append(is.Rules, r)
		}
	}
	return is
}
