package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	echo "github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "–", spread(nil, count))
	assert.Equal(t, "7", spread([]int{7}, count))
	assert.Equal(t, "2 [1..1,000]", spread([]int{1000, 1, 2}, count))
	assert.Equal(t, "2 [1..4]", spread([]int{4, 1, 3, 2}, count), "the lower of two in the middle")
}

// moveOf is a move in which so many packets of each family were lost.
func moveOf(lost4, lost6 int, gap time.Duration, reset bool) move {
	g := guestNumber(0)
	return move{
		pause: 200 * time.Millisecond,
		probed: []probed{
			{g.a4, core.ProbeResult{Sent: 1000, Lost: lost4, LongestGap: gap}},
			{g.a6, core.ProbeResult{Sent: 1000, Lost: lost6, LongestGap: gap}},
		},
		tcp: []core.SessionResult{{Sent: 9, Echoed: 9, Reset: reset}},
	}
}

// TestMoveTargets: a goal is missed by the move that misses it.
func TestMoveTargets(t *testing.T) {
	t.Parallel()
	const gap = 240 * time.Millisecond
	many := func(n int, m move) (ms []move) {
		for range n {
			ms = append(ms, m)
		}
		return ms
	}
	missed := func(moves []move) (what []string) {
		m := &moving{core: "BIRD", ours: &mover{moves: moves}}
		for _, g := range moveTargets(m) {
			if !g.kept {
				what = append(what, g.promise+": "+g.result)
			}
		}
		return what
	}
	good := moveOf(0, 0, gap, false)
	assert.Empty(t, missed(many(40, good)))
	assert.Empty(t, missed(append(many(38, good), moveOf(10, 0, gap, false), moveOf(1, 0, gap, false))))
	assert.Equal(t, []string{"live migrations, core BIRD, IPv6: nothing lost in at least 38 of 40: 37"},
		missed(append(many(37, good), many(3, moveOf(0, 1, gap, false))...)))
	assert.Equal(t, []string{"live migrations, core BIRD, IPv4: never more than 10 lost: 11"},
		missed(append(many(39, good), moveOf(11, 0, gap, false))))
	assert.Equal(t, []string{"live migrations, core BIRD: TCP sessions reset: none: 1"},
		missed(append(many(39, good), moveOf(0, 0, gap, true))))
	assert.Equal(t, []string{
		"live migrations, core BIRD, IPv4: longest gap at most the guest's pause + 40.0 ms: 1 of 2; 40.0 [40.0..41.0] ms",
		"live migrations, core BIRD, IPv6: longest gap at most the guest's pause + 40.0 ms: 1 of 2; 40.0 [40.0..41.0] ms",
	}, missed([]move{good, moveOf(0, 0, gap+time.Millisecond, false)}))
}

// TestMovesTable: the directions of hooks alone are told apart, and hung guests
// are counted.
func TestMovesTable(t *testing.T) {
	t.Parallel()
	back := moveOf(0, 0, time.Second, false)
	back.back = true
	m := &moving{
		core: "FRR", ours: newMover(0, "ours", "vmfabric", [2]string{"node1", "node2"}),
		baselines: []*mover{newMover(1, "early", "hook only", [2]string{"node3", "node4"})},
	}
	m.ours.moves, m.ours.hung = []move{moveOf(0, 1, time.Second, false), back}, 3
	m.baselines[0].moves = []move{moveOf(1500, 1600, time.Second, false), back}
	s := movesSection([]*moving{m}, fullSize)
	first, gaps, second, fast := s.tables[0], s.tables[1], s.tables[2], s.tables[3]
	var lost []string
	for _, row := range first.rows {
		lost = append(lost, row[0]+" "+row[2]+" "+row[4]+" of "+row[3]+" lost "+row[5])
	}
	assert.Equal(t, []string{
		"vmfabric IPv4 2 of 2 lost 0 [0..0]", "vmfabric IPv6 1 of 2 lost 0 [0..1]",
		"hook only, to the higher router ID IPv4 0 of 1 lost 1,500", "hook only, to the higher router ID IPv6 0 of 1 lost 1,600",
		"hook only, to the lower router ID IPv4 1 of 1 lost 0", "hook only, to the lower router ID IPv6 1 of 1 lost 0",
	}, lost)
	assert.Equal(t, "3", second.rows[0][len(second.rows[0])-1])
	assert.Empty(t, fast.rows)
	assert.Empty(t, gaps.rows)
}

// frame is an Ethernet frame of a guest with an IPv4 packet of a protocol and type.
func frame(at time.Time, src netip.Addr, protocol, kind byte) core.Frame {
	data := make([]byte, 14+20+8)
	data[12], data[13], data[14], data[14+9], data[14+20] = 8, 0, 0x45, protocol, kind
	copy(data[14+12:], src.AsSlice())
	return core.Frame{At: at, Data: data}
}

// TestGapTakenApart: the parts of a gap add up to what is between two frames.
func TestGapTakenApart(t *testing.T) {
	t.Parallel()
	guest, began := netip.MustParseAddr("203.0.113.10"), time.Now()
	at := func(n int) time.Time { return began.Add(time.Duration(n) * time.Millisecond) }
	there := []core.Frame{frame(at(-5), guest, 1, 0), frame(at(0), guest, 1, 0)}
	here := []core.Frame{frame(at(130), guest, 17, 0), frame(at(134), guest, 1, 8), frame(at(135), guest, 1, 0), frame(at(136), guest, 1, 0)}
	parts, err := gapsOf(there, here, []probed{{guest, core.ProbeResult{GapFrom: at(1), LongestGap: 136 * time.Millisecond}}}, 100*time.Millisecond)
	require.NoError(t, err)
	assert.Equal(t, []gapParts{{to: guest, waking: 30 * time.Millisecond, reply: 5 * time.Millisecond, added: 2 * time.Millisecond}}, parts)
	m := &moving{core: "BIRD", ours: &mover{moves: []move{{parts: parts}, {parts: []gapParts{{to: guest, added: 6 * time.Millisecond}}}}}}
	assert.Equal(t, []target{{
		"live migrations, core BIRD: from the guest's first reply to the client's first answer at most 5.00 ms", "1 of 2; 2.00 [2.00..6.00] ms", false,
	}}, gapTargets(m))
	_, err = gapsOf(there, nil, nil, 0)
	require.EqualError(t, err, "2 frames of the guest before its move and 0 after")
}

// TestPlacesOfLosses: a lost request is counted at the farthest place that it, or its
// reply, was seen at.
func TestPlacesOfLosses(t *testing.T) {
	t.Parallel()
	guest := netip.MustParseAddr("203.0.113.10")
	request := func(seq byte) core.Frame {
		f := frame(time.Time{}, netip.MustParseAddr("198.51.100.1"), 1, 8)
		copy(f.Data[14+16:], guest.AsSlice())
		f.Outgoing, f.Data[14+20+7] = true, seq
		return f
	}
	reply := frame(time.Time{}, guest, 1, 0)
	reply.Data[14+20+7] = 4
	there, here := []core.Frame{request(1), request(2), request(4)}, []core.Frame{request(2), request(3), request(4), reply}
	var losses []echo.Loss
	for seq := range 5 {
		losses = append(losses, echo.Loss{Seq: seq})
	}
	places := placesOf(there, here, []probed{{guest, core.ProbeResult{Losses: losses}}, {to: netip.MustParseAddr("2001:db8::1")}})
	assert.Equal(t, []lossPlaces{{to: guest, before: 1, source: 1, guest: 2, behind: 1}, {to: netip.MustParseAddr("2001:db8::1")}}, places)
	assert.Equal(t, "Of 5 lost requests, 1 came to no port of the guest, 1 to the port that it left alone, 2 into the port at its new node, where "+
		"the guest did not reply; 1 it replied to, and the reply was lost.", lossNote([]move{{places: places}}))
	assert.Empty(t, lossNote([]move{{}}))
}
