package kernel_test

import (
	"bytes"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/internal/requests"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// side is a node of a move: its dataplane, in its namespace, and what went into the
// guest's port there.
type side struct {
	t     *testing.T
	name  string
	space *space // nil: that of the tests
	node  fabric.Node
	d     *kernel.Dataplane
	tap   *os.File
	came  [][]byte
	puts  int // changes of the port, to each of which the node may advertise itself
}

// do works on the node.
func (s *side) do(f func() error) {
	s.t.Helper()
	if s.space == nil {
		require.NoError(s.t, f())
		return
	}
	require.NoError(s.t, within(s.space, f))
}

// begins starts the node's dataplane.
func (s *side) begins() {
	s.t.Helper()
	s.do(func() (err error) {
		s.d, err = kernel.New(s.t.Context(), kernel.Config{
			Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]},
			Private: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")},
		})
		return err
	})
	labtest.Running(s.t, s.d)
}

func (s *side) ends() { s.do(s.d.Close) }

func (s *side) put(p fabric.Port, incoming bool) {
	s.t.Helper()
	p.Incoming = incoming
	s.puts++
	s.do(func() error { return s.d.Put(s.t.Context(), p) })
}

// plugs has the guest's process open the port.
func (s *side) plugs(p fabric.Port) {
	s.t.Helper()
	s.tap = plug(s.t, s.space, p.Name).tap
}

// takes reads what went into the port.
func (s *side) takes() {
	s.t.Helper()
	s.came = append(s.came, waiting(s.t, s.tap)...)
}

// traveller is a guest that asks for its addresses while it moves, by requests that
// have numbers.
type traveller struct {
	t     *testing.T
	port  fabric.Port
	asked map[uint32]question
}

// question is a request, by its number.
type question struct {
	kind requests.Kind
	at   *side
	lost bool // nobody was to answer
}

// asks has the guest ask in every way where it runs.
func (g *traveller) asks(at *side, lost bool) {
	g.t.Helper()
	own := requests.Guest{MAC: g.port.NIC.MAC, Addresses: g.port.NIC.Addresses, Gateway: g.port.Gateway}
	for i := range requests.Kinds {
		k := (requests.Solicitation + i) % requests.Kinds // that first: its answer has come when a later one has
		number := uint32(len(g.asked) + 1)
		g.asked[number] = question{k, at, lost}
		_, err := at.tap.Write(own.Frame(k, number))
		require.NoError(g.t, err)
	}
}

// wants is the answer that follows from the guest's description.
func (g *traveller) wants(number uint32) []byte {
	own := requests.Guest{MAC: g.port.NIC.MAC, Addresses: g.port.NIC.Addresses, Gateway: g.port.Gateway}
	frame := own.Frame(g.asked[number].kind, number)
	a := autoconf.OfferOf(g.port, fabric.Guests{}).Answer(autoconf.Request{From: g.port.NIC.MAC, Packet: frame[14:]})
	require.Len(g.t, a.Frames, 1)
	return a.Frames[0]
}

// answered waits until all that was asked at a side, and is to be answered, is.
func (g *traveller) answered(at *side) {
	g.t.Helper()
	require.Eventually(g.t, func() bool {
		at.takes()
		return g.missing(at) == 0
	}, 20*time.Second, time.Millisecond, "%s", at.name)
}

// missing counts what was asked at a side with a number, and not answered.
func (g *traveller) missing(at *side) (missing int) {
	have := map[uint32]bool{}
	for _, f := range at.came {
		if _, number := requests.AnswerTo(f); number > 0 {
			have[number] = true
		}
	}
	for number, q := range g.asked {
		if q.at == at && !q.lost && !have[number] && q.kind != requests.Solicitation {
			missing++
		}
	}
	return missing
}

// judges checks that each request had one answer, where the guest asked, as its
// description says.
func (g *traveller) judges(sides ...*side) {
	g.t.Helper()
	answers := map[uint32]int{}
	for _, s := range sides {
		solicited, advertised := 0, 0
		for _, f := range s.came {
			switch protocol, number := requests.AnswerTo(f); {
			case protocol == "RA":
				advertised++
				assert.Equal(g.t, autoconf.OfferOf(g.port, fabric.Guests{}).Advertisement(), f)
			case protocol != "":
				answers[number]++
				assert.Same(g.t, g.asked[number].at, s, "%d", number)
				assert.True(g.t, bytes.Equal(g.wants(number), f), "%d: %x", number, f)
			}
		}
		for number, q := range g.asked {
			if q.at == s && !q.lost && q.kind == requests.Solicitation {
				solicited++
			} else if q.at == s && q.kind != requests.Solicitation {
				assert.Equal(g.t, map[bool]int{false: 1}[q.lost], answers[number], "answers to %d (%v) at %s", number, q.kind, s.name)
			}
		}
		assert.GreaterOrEqual(g.t, advertised, solicited)
		assert.LessOrEqual(g.t, advertised, solicited+s.puts, "advertisements")
	}
}

// TestRequestsDuringMoves: a guest that moves back and forth asks for its addresses all
// the time, in the moment before it stops and in its first frames too. Each request is
// answered once, where the guest asked, and alike on both nodes. What an agent that is
// not there did not answer, nobody answers later.
func TestRequestsDuringMoves(t *testing.T) {
	lab := newMoveLab(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	from := &side{t: t, name: "node1", node: fabric.Node{Name: "node1", Address: netip.MustParseAddr("10.10.0.21"), Address6: netip.MustParseAddr("fd00:10:10::21")}}
	to := &side{t: t, name: "node2", space: lab.other, node: otherNode}
	for _, s := range []*side{from, to} {
		s.begins()
		defer func() { s.ends() }()
	}
	from.put(p, false)
	from.plugs(p)
	for range 4 {
		g := &traveller{t: t, port: p, asked: map[uint32]question{}}
		g.moves(from, to)
		g.judges(from, to)
		require.NoError(t, from.tap.Close())
		from.do(func() error { return from.d.Remove(t.Context(), p.Name) })
		from.do(func() error { return from.d.Return(t.Context(), p.NIC.Prefixes()...) })
		from.came, from.puts, to.came, to.puts = nil, 0, nil, 1 // it may still advertise itself
		from, to = to, from
	}
}

// moves has the guest move, and ask at every step; at either node less often in two moves
// than requests are limited to at once.
func (g *traveller) moves(from, to *side) {
	g.t.Helper()
	g.asks(from, false)
	to.put(g.port, true)
	to.plugs(g.port)
	from.do(func() error { return from.d.Record(g.t.Context(), g.port.Name, true) })
	g.answered(from)
	g.asks(from, false) // and stops
	var done fabric.Diversion
	from.do(func() (err error) {
		done, err = from.d.Divert(g.t.Context(), []fabric.Port{g.port}, to.node)
		return err
	})
	assert.Zero(g.t, done.Resent, "what the node itself told its guest is no packet for another node")
	g.asks(to, false) // before anything else
	awaitHeard(g.t, to.d, g.port.Name)
	g.asks(to, false)
	to.put(g.port, false)
	g.answered(to)
	g.answered(from) // nobody has taken it
	to.ends()        // its agent is restarted
	g.asks(to, true)
	to.begins()
	to.put(g.port, false)
	g.asks(to, false)
	g.answered(to)
}
