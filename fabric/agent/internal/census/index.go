package census

import (
	"net/netip"
	"slices"
)

// index finds values by prefixes that have an address in common.
type index[T any] struct {
	sorted  []item[T] // by their prefixes
	exact   map[netip.Prefix][]T
	lengths map[length]bool
}

type item[T any] struct {
	prefix netip.Prefix
	value  T
}

// length is that of prefixes of a family.
type length struct {
	bits int
	v6   bool
}

func newIndex[T any](items []item[T]) *index[T] {
	x := &index[T]{sorted: slices.Clone(items), exact: map[netip.Prefix][]T{}, lengths: map[length]bool{}}
	slices.SortStableFunc(x.sorted, func(a, b item[T]) int { return a.prefix.Compare(b.prefix) })
	for _, i := range items {
		x.exact[i.prefix] = append(x.exact[i.prefix], i.value)
		x.lengths[length{i.prefix.Bits(), i.prefix.Addr().Is6()}] = true
	}
	return x
}

// overlapping lists the values of a prefix, of those around it and of those inside of
// it. Its cost does not grow with the number of values.
func (x *index[T]) overlapping(p netip.Prefix) (all []T) {
	for l := range x.lengths {
		if l.bits <= p.Bits() && l.v6 == p.Addr().Is6() {
			all = append(all, x.exact[netip.PrefixFrom(p.Addr(), l.bits).Masked()]...)
		}
	}
	// What is inside follows a prefix in their order.
	from, _ := slices.BinarySearchFunc(x.sorted, p, func(i item[T], p netip.Prefix) int { return i.prefix.Compare(p) })
	for _, i := range x.sorted[from:] {
		if !p.Overlaps(i.prefix) {
			break
		}
		if i.prefix != p {
			all = append(all, i.value)
		}
	}
	return all
}
