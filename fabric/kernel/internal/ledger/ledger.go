// Package ledger adds up what the kernel's counters say, so that no packet is lost or
// counted twice when the counters begin anew, an address goes to another guest, or a
// guest's packets are sent again to another node. It is pure.
package ledger

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Counter is one of those that each prefix has.
type Counter int

// The counters of a prefix, in the order of [Counts].
const (
	SentInternal Counter = iota
	SentExternal
	ReceivedInternal
	ReceivedExternal
	counters
)

// Counts has the counters of one prefix.
type Counts [counters]fabric.Count

// Ledger has the totals. The zero value is empty. Its fields are for its encoding.
type Ledger struct {
	// Table identifies the kernel's counters that Marks are about: others began at zero.
	Table string `json:"table"`
	// Marks have what was last read, and whose it is.
	Marks map[netip.Prefix]Mark `json:"marks,omitempty"`
	// Totals are by guest and prefix.
	Totals map[string]map[netip.Prefix]Total `json:"totals,omitempty"`
}

// Mark is the state of a prefix's counters.
type Mark struct {
	VM   string `json:"vm"`
	Read Counts `json:"read"` // already in the total
	// Again has packets to the guest that were counted and then sent to another node,
	// which counts them: as many are to be left out here.
	Again Counts `json:"again,omitzero"`
}

// Total is the sum of a guest's prefix on this node.
type Total struct {
	Counts  Counts    `json:"counts"`
	Changed time.Time `json:"changed"`
}

const (
	// keepFor is how long the totals of a guest that is not here stay.
	keepFor = 31 * 24 * time.Hour
	// most bounds the totals; beyond it, those go that are of absent guests and have not
	// changed for longest.
	most = 65536
)

// Owner returns the guest to which what a prefix's counters say belongs.
func (l *Ledger) Owner(p netip.Prefix) (vm string, known bool) {
	m, known := l.Marks[p]
	return m.VM, known
}

// Own makes a guest the owner of what the counters of a prefix say from the last
// reading on.
func (l *Ledger) Own(p netip.Prefix, vm string, now time.Time) {
	if l.Marks == nil {
		l.Marks = map[netip.Prefix]Mark{}
	}
	m := l.Marks[p]
	m.VM = vm
	l.Marks[p] = m
	l.add(vm, p, Counts{}, now)
}

// Forget ends the counters of a prefix. What was read of them stays.
func (l *Ledger) Forget(p netip.Prefix) { delete(l.Marks, p) }

// SentAgain leaves packets to a prefix out, which another node counts.
func (l *Ledger) SentAgain(p netip.Prefix, again Counts) {
	m, known := l.Marks[p]
	if !known {
		return
	}
	for i := range again {
		m.Again[i] = m.Again[i].Plus(again[i])
	}
	l.Marks[p] = m
}

// Settle adds what the counters of a table have counted since they were last read. It
// leaves those of held prefixes for a later reading.
func (l *Ledger) Settle(table string, read map[netip.Prefix]Counts, held map[netip.Prefix]bool, now time.Time) {
	if table != l.Table {
		for p, m := range l.Marks {
			m.Read = Counts{}
			l.Marks[p] = m
		}
		l.Table = table
	}
	for p, counts := range read {
		m, known := l.Marks[p]
		if !known || held[p] {
			continue
		}
		grown := m.since(counts)
		m.Read = counts
		l.Marks[p] = m
		if grown != (Counts{}) {
			l.add(m.VM, p, grown, now)
		}
	}
	l.prune(now)
}

// since returns what was counted since the last reading, without what is counted
// elsewhere.
func (m *Mark) since(now Counts) (grown Counts) {
	for i := range now {
		was, is, again := m.Read[i], now[i], &m.Again[i]
		if is.Packets < was.Packets || is.Bytes < was.Bytes {
			was = fabric.Count{} // somebody set the counter to zero
		}
		grown[i] = fabric.Count{Packets: is.Packets - was.Packets, Bytes: is.Bytes - was.Bytes}
		grown[i].Packets -= taken(&again.Packets, grown[i].Packets)
		grown[i].Bytes -= taken(&again.Bytes, grown[i].Bytes)
	}
	return grown
}

// taken takes up to most from what is left, and returns how much.
func taken(left *uint64, most uint64) uint64 {
	n := min(*left, most)
	*left -= n
	return n
}

// add adds to the total of a guest's prefix.
func (l *Ledger) add(vm string, p netip.Prefix, grown Counts, now time.Time) {
	if l.Totals == nil {
		l.Totals = map[string]map[netip.Prefix]Total{}
	}
	if l.Totals[vm] == nil {
		l.Totals[vm] = map[netip.Prefix]Total{}
	}
	t := l.Totals[vm][p]
	for i := range grown {
		t.Counts[i] = t.Counts[i].Plus(grown[i])
	}
	t.Changed = now
	l.Totals[vm][p] = t
}

// prune drops the totals of absent guests that are old, or too many.
func (l *Ledger) prune(now time.Time) {
	all, absent := 0, []time.Time(nil)
	for vm, prefixes := range l.Totals {
		all += len(prefixes)
		for p, t := range prefixes {
			if l.Marks[p].VM != vm {
				absent = append(absent, t.Changed)
			}
		}
	}
	before := now.Add(-keepFor)
	if n := min(all-most, len(absent)); n > 0 {
		slices.SortFunc(absent, time.Time.Compare)
		if last := absent[n-1].Add(1); last.After(before) {
			before = last
		}
	}
	for vm, prefixes := range l.Totals {
		maps.DeleteFunc(prefixes, func(p netip.Prefix, t Total) bool { return l.Marks[p].VM != vm && t.Changed.Before(before) })
		if len(prefixes) == 0 {
			delete(l.Totals, vm)
		}
	}
}

// Traffic lists the totals, in the order of guest and prefix.
func (l *Ledger) Traffic() []fabric.Traffic {
	all := make([]fabric.Traffic, 0, len(l.Marks))
	var prefixes []netip.Prefix
	for _, vm := range slices.Sorted(maps.Keys(l.Totals)) {
		prefixes = slices.AppendSeq(prefixes[:0], maps.Keys(l.Totals[vm]))
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		for _, p := range prefixes {
			t := l.Totals[vm][p]
			all = append(all, fabric.Traffic{
				VM: vm, Prefix: p,
				Sent:     fabric.ByScope{Internal: t.Counts[SentInternal], External: t.Counts[SentExternal]},
				Received: fabric.ByScope{Internal: t.Counts[ReceivedInternal], External: t.Counts[ReceivedExternal]},
			})
		}
	}
	return all
}
