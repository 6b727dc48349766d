package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const movesTitle = "Live migrations under probes"

// The goals of a live migration.
const (
	goalLossless = 38 // of
	goalMoves    = 40
	goalLost     = 10 // packets in any one
	goalGap      = 40 * time.Millisecond
)

// spread writes the median of a sample and its ends.
func spread[T cmp.Ordered](of []T, write func(T) string) string {
	if len(of) == 0 {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(of))
	mid := sorted[(len(sorted)-1)/2]
	if len(sorted) == 1 {
		return write(mid)
	}
	return fmt.Sprintf("%s [%s..%s]", write(mid), write(sorted[0]), write(sorted[len(sorted)-1]))
}

// perFamily has the results of the probes of one family in some moves.
type perFamily struct {
	lost, twice, reordered, refused []int
	gaps, over                      []time.Duration // over the guest's pause
	lossless                        int
}

func familyOf(moves []move, four bool) (f perFamily) {
	for _, m := range moves {
		for _, p := range m.probed {
			if p.to.Is4() != four {
				continue
			}
			f.lost, f.twice, f.reordered = append(f.lost, p.Lost), append(f.twice, p.Duplicates), append(f.reordered, p.Reordered)
			f.refused = append(f.refused, p.Refused)
			f.gaps, f.over = append(f.gaps, p.LongestGap), append(f.over, p.LongestGap-m.pause)
			if p.Lost == 0 {
				f.lossless++
			}
		}
	}
	return f
}

var probeHead = []string{
	"", "core", "family", "moves", "lost nothing", "lost", "duplicates", "reordered", "refused", "longest gap ms", "gap less pause ms",
}

func (f perFamily) row(t *table, name, core string, four bool) {
	if len(f.lost) == 0 {
		return
	}
	a := netip.IPv6Unspecified()
	if four {
		a = netip.IPv4Unspecified()
	}
	t.row(name, core, familyName(a), count(len(f.lost)), count(f.lossless), spread(f.lost, count), spread(f.twice, count),
		spread(f.reordered, count), spread(f.refused, count), spread(f.gaps, ms), spread(f.over, ms))
}

// group is some moves of one mover.
type group struct {
	name  string
	moves []move
}

// groups separates the directions of the moves with hooks alone: of two otherwise
// equal routes, the core gateway uses that of the lower router ID.
func (g *mover) groups() []group {
	if g.late || g.nodes[0] == "node1" {
		return []group{{g.name, g.moves}}
	}
	there, back := group{name: g.name + ", to the higher router ID"}, group{name: g.name + ", to the lower router ID"}
	for _, m := range g.moves {
		if m.back {
			back.moves = append(back.moves, m)
		} else {
			there.moves = append(there.moves, m)
		}
	}
	return []group{there, back}
}

func movesSection(labs []*moving, size size) section {
	s := section{title: movesTitle, method: movesMethod(size)}
	probes, sessions := table{head: probeHead}, table{head: []string{
		"", "core", "moves", "pause ms", "TCP stall ms", "stall less pause ms", "sent again", "resets", "ended otherwise", "virsh s", "guests that hung",
	}}
	gaps, fast := table{head: gapHead}, table{head: slices.Clone(probeHead)}
	fast.head[0] = fmt.Sprintf("%s a second", count(size.fastRate))
	for _, m := range labs {
		for _, g := range append([]*mover{m.ours}, m.baselines...) {
			for _, part := range g.groups() {
				for _, four := range []bool{true, false} {
					familyOf(part.moves, four).row(&probes, part.name, m.core, four)
				}
			}
			sessionRow(&sessions, g, m.core)
		}
		for _, four := range []bool{true, false} {
			familyOf(m.still, four).row(&probes, "nobody moves", m.core, four)
			gapRow(&gaps, m.ours.moves, m.core, four)
			familyOf(m.ours.fast, four).row(&fast, m.ours.name, m.core, four)
		}
		if note := m.stallNote(); note != "" {
			s.notes = append(s.notes, note)
		}
		if note := lossNote(slices.Concat(m.ours.moves, m.ours.fast)); note != "" {
			s.notes = append(s.notes, "Core "+m.core+": "+note)
		}
		s.targets = append(s.targets, slices.Concat(moveTargets(m), gapTargets(m))...)
	}
	s.tables = []table{probes, gaps, sessions, fast}
	return s
}

// stallNote says how many moves stalled.
func (m *moving) stallNote() string {
	n := 0
	for _, g := range append([]*mover{m.ours}, m.baselines...) {
		n += g.stalls
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("Core %s: moves that stalled, and were repeated with the guest started anew: %s. They are in no table.", m.core, count(n))
}

func sessionRow(t *table, g *mover, core string) {
	var stalls, over, pauses, took []time.Duration
	var again []int
	resets, ended := 0, 0
	for _, m := range g.moves {
		pauses, took = append(pauses, m.pause), append(took, m.took)
		for _, r := range m.tcp {
			stalls, over, again = append(stalls, r.LongestStall), append(over, r.LongestStall-m.pause), append(again, r.Retransmits)
			switch {
			case r.Reset:
				resets++
			case r.Err != nil || r.Echoed != r.Sent:
				ended++
			}
		}
	}
	if len(pauses) == 0 {
		return
	}
	t.row(g.name, core, count(len(pauses)), spread(pauses, ms), spread(stalls, ms), spread(over, ms), spread(again, count),
		count(resets), count(ended), spread(took, seconds), count(g.hung))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }

// moveTargets compares vmfabric's moves with the goals.
func moveTargets(m *moving) []target {
	var ts []target
	resets := 0
	for _, mv := range m.ours.moves {
		for _, r := range mv.tcp {
			if r.Reset {
				resets++
			}
		}
	}
	for _, four := range []bool{true, false} {
		f := familyOf(m.ours.moves, four)
		n := len(f.lost)
		if n == 0 {
			continue
		}
		what := fmt.Sprintf("live migrations, core %s, %s: ", m.core, map[bool]string{true: "IPv4", false: "IPv6"}[four])
		need, most, within := n*goalLossless/goalMoves, slices.Max(f.lost), 0
		for _, d := range f.over {
			if d <= goalGap {
				within++
			}
		}
		ts = append(ts,
			target{what + fmt.Sprintf("nothing lost in at least %d of %d", need, n), count(f.lossless), f.lossless >= need},
			target{what + fmt.Sprintf("never more than %d lost", goalLost), count(most), most <= goalLost},
			target{
				what + fmt.Sprintf("longest gap at most the guest's pause + %s ms", ms(goalGap)),
				fmt.Sprintf("%d of %d; %s ms", within, n, spread(f.over, ms)), within == n,
			})
	}
	return append(ts, none(fmt.Sprintf("live migrations, core %s: TCP sessions reset", m.core), resets))
}

func movesMethod(size size) string {
	return fmt.Sprintf(`
Two nodes with a libvirtd (`+"`qemu:///system`"+`), vmfabric's hook and agent each, two BIRD reflectors, a core gateway that is BIRD in one
half and FRR in the other, a client behind it. An emulated guest (QEMU without KVM, 128 MiB) with an IPv4 and an IPv6 address is
migrated to and fro, live and peer to peer, %d times with each. From 0.3 s before `+"`virsh migrate`"+` until 0.7 s after everything answers again, the
client sends %s echo requests a second to each address at the same time, on a schedule that is fixed at the start, and accounts for every
one by its number: lost (no answer within a second of the end), answered twice, answered after a later one, refused by a router (ICMP errors). The gap is the longest time
between two answers, by the kernel's time stamps. A TCP session to each address sends a line every %s ms, which the guest echoes; its
stall is the longest time without a line. The pause is libvirt's "Total downtime": nobody can answer meanwhile, and the goal for the
gap is relative to it. Sent again are TCP segments of the client.

The second table takes vmfabric's gaps apart. A packet socket on either node records the guest's frames: its waking is from the end of the
pause to its first frame at the destination, whatever that says (QEMU itself announces it by RARP before, which is left out); then comes its first echo reply of the family; what is left until the client's
first answer after the gap is what routers and nodes add. What the packet sockets cost is in the figures. Moves of
which they missed a frame are left out.

Two baselines on two more nodes take turns with vmfabric, half as often each, so that the machine is the same for all. They have the same
agent and speaker, which does not follow libvirt there nor talk to the other node, and a hook of the benchmark. *Hook only*: the port is
made at the operation `+"`prepare`"+`, the guest announced at `+"`started`"+`, withdrawn at `+"`stopped`"+`, with equal LOCAL_PREF; its directions are told apart,
because of two equal routes that of the lower router ID is used as long as it is there. *When virsh returns*: the port is made at
`+"`prepare`"+`; when the migration is over, the guest is announced on the one node and then withdrawn and removed on the other. *Nobody moves* is vmfabric's guest watched
for %s s without a migration: what the machine loses by itself.

Goals: nothing lost in at least %d of %d moves, never more than %d; the gap at most the pause and %s ms (the guest's own waking takes
about 30); no session reset. Figures are the median [least..most]. An emulated guest hangs after about one migration in fifty, whoever
announces it: it then neither writes to its console nor answers its own node over its port. Such a move is counted in the last column of
the third table, nowhere else, and repeated with the guest started anew. The fourth table is a series of its own at %s requests a
second to one address, each family in its turn.`, size.moves, count(size.moveRate), count(int(size.lineEvery.Milliseconds())), seconds(size.still), goalLossless, goalMoves, goalLost, ms(goalGap), count(size.fastRate))
}
