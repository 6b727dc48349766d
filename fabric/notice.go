package fabric

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

var noticeKinds = []NoticeKind{Arriving, Arrived, Cancelled, Claimed, Released, Acquiring}

// maxPrefixes is how many prefixes a guest may have: MaxAddresses addresses and
// as many routes on each of MaxNICs NICs.
const maxPrefixes = MaxNICs * 2 * MaxAddresses

// Validate reports what keeps n from being told: a kind that is not known, a
// guest without a name, prefixes that are none. [Nodes] tell and take no other
// notice.
func (n Notice) Validate() error {
	if !slices.Contains(noticeKinds, n.Kind) {
		names := make([]string, len(noticeKinds))
		for i, k := range noticeKinds {
			names[i] = string(k)
		}
		return fmt.Errorf("notice %.40q is not known; there are %s, upgrade the agent if it is newer", string(n.Kind), strings.Join(names, ", "))
	}
	if err := validateKnownName(n.VM); err != nil {
		return fmt.Errorf("notice %q: %w", n.Kind, err)
	}
	if err := n.Identity.validate(); err != nil {
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
