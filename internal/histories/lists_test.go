package histories

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// late is how old a list may be that comes without an error.
const late = 20 * time.Second

// lists holds what a list promises, which can be late: of each address it has what was
// there once, not longer ago than late, and never less than the node has listed or written
// before. It returns the age of the oldest.
func lists(calls []call, all [][]version) (oldest time.Duration, flaws []string) {
	nodes := map[int][]call{}
	for _, c := range calls {
		if !c.unknown() && c.answer.Refused == "" {
			node := c.ID / 100_000_000
			nodes[node] = append(nodes[node], c)
		}
	}
	for node, calls := range nodes {
		// What a node knows when it answers, those that it asks afterwards know, too.
		slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(a.answer.At, b.answer.At) })
		for n := range places {
			age, flaw := listed(calls, n, all[n])
			oldest = max(oldest, age)
			if flaw != "" {
				flaws = append(flaws, fmt.Sprintf("node %d, %s: %s", node, places[n].Addr(), flaw))
			}
		}
	}
	return oldest, flaws
}

// known is a revision that a node knew of when it answered.
type known struct{ at, rev int64 }

// listed is lists for one address and node.
func listed(calls []call, n int, versions []version) (oldest time.Duration, flaw string) {
	versions = append([]version{{}}, versions...) // it was free at first
	var knew []known
	for _, c := range calls {
		if c.Kind != list {
			if rev, wrote := wrote(c, versions, n); wrote {
				knew = append(knew, known{c.answer.At, rev})
			}
			continue
		}
		least := int64(0)
		for _, k := range knew {
			if k.at <= c.At {
				least = max(least, k.rev)
			}
		}
		i := slices.IndexFunc(c.answer.Got, func(a fabric.Allocation) bool { return a.Prefix == places[n] })
		age, rev := 2*late, int64(-1) // of the youngest that fits; of the oldest, which the node knows at least
		for v, is := range versions {
			if is.rev < least || (is.is == nil) != (i < 0) || i >= 0 && *is.is != c.answer.Got[i] {
				continue
			}
			old := time.Duration(0)
			if v+1 < len(versions) {
				old = max(0, time.Duration(c.At-versions[v+1].seen))
			}
			if age = min(age, old); old <= late && rev < 0 {
				rev = is.rev
			}
		}
		oldest = max(oldest, age)
		knew = append(knew, known{c.answer.At, rev})
		if age > late {
			return oldest, fmt.Sprintf("list %d at %v has what was not there within %v, or less than the node knew (revision %d)", c.ID, time.Duration(c.At), late, least)
		}
	}
	return oldest, ""
}

// wrote gives the revision at which an operation wrote an address.
func wrote(c call, versions []version, n int) (int64, bool) {
	for _, a := range c.answer.Got {
		if a.Prefix != places[n] {
			continue
		}
		for v, is := range versions {
			switch {
			case is.is == nil || !same(*is.is, a) || is.is.VM != a.VM:
			case c.Kind == allocate:
				return is.rev, true
			case v+1 < len(versions) && (versions[v+1].is == nil || !same(*versions[v+1].is, a)):
				return versions[v+1].rev, true
			}
		}
	}
	return 0, false
}
