package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

var noticeKinds = []NoticeKind{Arriving, Arrived, Cancelled, Claimed, Released, Acquiring, Describing, Forgotten, Listing, Explaining, Comparing}

// maxPrefixes is how many prefixes a guest may have: MaxAddresses addresses and
// as many routes on each of MaxNICs NICs.
const maxPrefixes = MaxNICs * 2 * MaxAddresses

// Limits on the texts of another node, which this node stores and shows to people.
const (
	maxWord = 256 // bytes of a name or an outcome
	maxSeen = 64  // reflectors in the report of a move
)

// Validate reports why n cannot be sent: an unknown kind, a guest without a name,
// invalid prefixes, a bad identity or report of a move. [Nodes] send and accept
// only notices for which it is nil.
func (n Notice) Validate() error {
	if !slices.Contains(noticeKinds, n.Kind) {
		names := make([]string, len(noticeKinds))
		for i, k := range noticeKinds {
			names[i] = string(k)
		}
		return fmt.Errorf("notice %.40q is not known; there are %s, upgrade the agent if it is newer", string(n.Kind), strings.Join(names, ", "))
	}
	if n.VM != "" || !slices.Contains([]NoticeKind{Listing, Explaining, Comparing}, n.Kind) { // these are about no guest
		if err := ValidateKnownName(n.VM); err != nil {
			return fmt.Errorf("notice %q: %w", n.Kind, err)
		}
	}
	if n.Kind == Explaining && (len(n.Prefixes) != 1 || !n.Prefixes[0].IsSingleIP()) {
		return fmt.Errorf("notice %q with %d prefixes; it is about one address", n.Kind, len(n.Prefixes))
	}
	if n.Kind == Comparing && n.Registry == nil {
		return fmt.Errorf("notice %q without a registry; it says which one the sender has", n.Kind)
	}
	if err := errors.Join(n.Identity.Validate(), n.Move.validate(), n.Registry.Validate()); err != nil {
		return fmt.Errorf("notice %q of VM %q: %w", n.Kind, n.VM, err)
	}
	all := [][]netip.Prefix{n.Prefixes}
	if n.Move != nil {
		all = append(all, n.Move.Prefixes)
	}
	for _, ps := range all {
		if len(ps) > maxPrefixes {
			return fmt.Errorf("notice %q of VM %q with %d prefixes; a guest has at most %d", n.Kind, n.VM, len(ps), maxPrefixes)
		}
		for i, p := range ps {
			if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
				return fmt.Errorf("notice %q of VM %q: %q (number %d) is not a guest's prefix; write one such as 203.0.113.10/32", n.Kind, n.VM, p, i)
			}
		}
	}
	return nil
}

// validate reports why the report of a move cannot be sent.
func (m *Move) validate() error {
	if m == nil {
		return nil
	}
	words := []string{m.VM, m.UUID, m.From, m.To, m.Outcome, m.RunningBy}
	for name := range m.Seen {
		words = append(words, name)
	}
	switch {
	case len(m.Seen) > maxSeen:
		return fmt.Errorf("the report of its move has %d reflectors; at most %d", len(m.Seen), maxSeen)
	case m.Resent < 0:
		return fmt.Errorf("the report of its move has %d frames sent again", m.Resent)
	}
	for _, w := range words {
		if err := plain(w, maxWord); err != nil {
			return fmt.Errorf("the report of its move: %w", err)
		}
	}
	return nil
}

// plain reports why a text of another node cannot be shown.
func plain(s string, most int) error {
	switch {
	case len(s) > most:
		return fmt.Errorf("a word of %d bytes; at most %d", len(s), most)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("%.40q is not plain text", s)
	}
	return nil
}
