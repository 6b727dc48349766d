package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// goalAdded is the time that the fabric may add to a gap once the guest answers.
const goalAdded = 5 * time.Millisecond

// gapParts are the parts of the gap of one address in a move. They follow each
// other, but for the time of a packet on its way.
type gapParts struct {
	to     netip.Addr
	waking time.Duration // from the end of the pause to the guest's first frame
	reply  time.Duration // from there to its first echo reply
	added  time.Duration // from there to the client's first answer
}

// lossPlaces counts the lost requests of one address by how far they came.
type lossPlaces struct {
	to     netip.Addr
	before int // into no port of the guest
	source int // into its port at the node that it left, and no other
	guest  int // into its port at the node to which it moved; it sent no reply
	behind int // the guest replied, and the reply was lost
}

// gapWatch records, on two nodes, the frames that a guest sends and the echo requests
// that it is sent.
type gapWatch struct {
	from, dest *core.Sniffer
}

// watchGap begins to record on the node that a guest leaves and on the node to
// which it moves.
func watchGap(from, dest *core.Host, mac net.HardwareAddr) (*gapWatch, error) {
	mine := func(f core.Frame) bool {
		src, dst := f.MACs()
		if f.Outgoing {
			e, ok := f.Echo()
			return ok && !e.Reply && bytes.Equal(dst, mac)
		}
		return bytes.Equal(src, mac) && f.EtherType() != unix.ETH_P_RARP // QEMU sends RARP, not the guest
	}
	w := &gapWatch{}
	var err error
	if w.from, err = from.Sniff("", mine); err != nil {
		return nil, err
	}
	if w.dest, err = dest.Sniff("", mine); err != nil {
		return nil, errors.Join(err, w.from.Close())
	}
	return w, nil
}

// stop ends the recording, takes the gaps apart, and finds the places of the losses.
func (w *gapWatch) stop(results []probed, pause time.Duration) (parts []gapParts, places []lossPlaces, err error) {
	if err = errors.Join(w.from.Close(), w.dest.Close()); err != nil {
		return nil, nil, err
	}
	there, here := w.from.Frames(), w.dest.Frames()
	parts, err = gapsOf(sentBy(there), sentBy(here), results, pause)
	return parts, placesOf(there, here, results), err
}

// sentBy returns the frames that the guest sent.
func sentBy(frames []core.Frame) []core.Frame {
	return slices.DeleteFunc(slices.Clone(frames), func(f core.Frame) bool { return f.Outgoing })
}

// placesOf finds how far lost requests came, by the frames at the node that the
// guest leaves, and at the node to which it moves.
func placesOf(there, here []core.Frame, results []probed) (places []lossPlaces) {
	for _, p := range results {
		seen := func(frames []core.Frame, reply bool) map[uint16]bool {
			seqs := map[uint16]bool{}
			for _, f := range frames {
				src, dst := f.Addrs()
				if e, ok := f.Echo(); ok && e.Reply == reply && (src == p.to || dst == p.to) {
					seqs[e.Seq] = true
				}
			}
			return seqs
		}
		left, arrived, replied, repliedThere := seen(there, false), seen(here, false), seen(here, true), seen(there, true)
		at := lossPlaces{to: p.to}
		for _, l := range p.Losses {
			switch seq := uint16(l.Seq); {
			case replied[seq] || repliedThere[seq]:
				at.behind++
			case arrived[seq]:
				at.guest++
			case left[seq]:
				at.source++
			default:
				at.before++
			}
		}
		places = append(places, at)
	}
	return places
}

// lossNote says how far the lost requests of some moves came.
func lossNote(moves []move) string {
	var all lossPlaces
	lost := 0
	for _, m := range moves {
		for _, p := range m.places {
			all.before, all.source, all.guest, all.behind = all.before+p.before, all.source+p.source, all.guest+p.guest, all.behind+p.behind
			lost += p.before + p.source + p.guest + p.behind
		}
	}
	if lost == 0 {
		return ""
	}
	return fmt.Sprintf("Of %s lost requests, %s came to no port of the guest, %s to the port that it left alone, %s into the port at its new node, where the guest did not reply; %s it replied to, and the reply was lost.",
		count(lost), count(all.before), count(all.source), count(all.guest), count(all.behind))
}

// gapsOf takes gaps apart by the frames of a guest at the node that it leaves, and
// at the node to which it moves.
func gapsOf(there, here []core.Frame, results []probed, pause time.Duration) (parts []gapParts, err error) {
	if len(there) == 0 || len(here) == 0 {
		return nil, fmt.Errorf("%d frames of the guest before its move and %d after", len(there), len(here))
	}
	last, first := there[len(there)-1].At, here[0].At
	for _, p := range results {
		part := gapParts{to: p.to, waking: first.Sub(last) - pause}
		for _, f := range here {
			src, _ := f.Addrs()
			if e, ok := f.Echo(); ok && e.Reply && src == p.to {
				part.reply, part.added = f.At.Sub(first), p.GapFrom.Add(p.LongestGap).Sub(f.At)
				break
			}
		}
		parts = append(parts, part)
	}
	return parts, nil
}

var gapHead = []string{
	"the gap taken apart", "core", "family", "moves", "the guest's pause ms", "its waking to its first frame ms", "to its first reply ms", "to the client ms",
}

// gapRow writes the parts of the gaps of one family.
func gapRow(t *table, moves []move, core string, four bool) {
	var pauses, waking, reply, added []time.Duration
	for _, m := range moves {
		for _, p := range m.parts {
			if p.to.Is4() == four {
				pauses, waking, reply, added = append(pauses, m.pause), append(waking, p.waking), append(reply, p.reply), append(added, p.added)
			}
		}
	}
	if len(pauses) == 0 {
		return
	}
	t.row("vmfabric", core, map[bool]string{true: "IPv4", false: "IPv6"}[four], count(len(pauses)), spread(pauses, ms), spread(waking, ms), spread(reply, ms), spread(added, ms))
}

// gapTargets compares the time that the fabric adds with its goal.
func gapTargets(m *moving) []target {
	var added []time.Duration
	within := 0
	for _, mv := range m.ours.moves {
		for _, p := range mv.parts {
			if added = append(added, p.added); p.added <= goalAdded {
				within++
			}
		}
	}
	if len(added) == 0 {
		return nil
	}
	return []target{{
		fmt.Sprintf("live migrations, core %s: from the guest's first reply to the client's first answer at most %s ms", m.core, ms(goalAdded)),
		fmt.Sprintf("%d of %d; %s ms", within, len(added), spread(added, ms)), within == len(added),
	}}
}
