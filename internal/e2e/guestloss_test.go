package e2e

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// guestWatch records what passes the port of an emulated guest. A guest without a
// processor for seconds loses requests, whatever the fabric does: its port's queue is
// full, or it takes so many at once that it does not answer them all.
type guestWatch struct {
	s       *system
	sniffer *core.Sniffer
}

// watchGuest begins to record at a port. It sees nothing of another port that is made
// in its place.
func (s *system) watchGuest(node *core.Host, port string) *guestWatch {
	s.t.Helper()
	sniffer, err := node.Sniff(port, func(f core.Frame) bool {
		_, ok := f.Echo()
		return ok
	})
	require.NoError(s.t, err)
	return &guestWatch{s, sniffer}
}

// lostNothing holds that the fabric lost nothing of probes that have just ended: each
// request came to the guest's port, and each reply of the guest came back. The guest
// answers again after that, through the same port.
func (w *guestWatch) lostNothing(results map[netip.Addr]core.ProbeResult) {
	t := w.s.t
	t.Helper()
	ended := time.Now()
	for to := range results { // what it answers now, it had under way before
		w.s.reaches(w.s.top.Client, to.String())
	}
	missed := w.sniffer.Close()
	passed := passages(w.sniffer.Frames())
	for to, r := range results {
		own := passed.lostByGuest(to, r, ended)
		if r.Lost > 0 {
			t.Logf("%s: %v; the guest itself did not answer %d while others waited", to, r, own)
		}
		assert.Equal(t, own, r.Lost, "%s: lost by the fabric: %+v (frames that were not recorded: %v)", to, r, missed)
	}
}

// echoID is one request, and its reply.
type echoID struct {
	guest   netip.Addr
	id, seq uint16
}

// passage is when a request went into a guest's port, and its reply came out; zero:
// never.
type passage struct{ in, out time.Time }

type passagesOf map[echoID]passage

func passages(frames []core.Frame) passagesOf {
	all := passagesOf{}
	for _, f := range frames {
		e, _ := f.Echo()
		from, to := f.Addrs()
		switch {
		case f.Outgoing && !e.Reply:
			id := echoID{to, e.ID, e.Seq}
			p := all[id]
			p.in = f.At
			all[id] = p
		case !f.Outgoing && e.Reply:
			id := echoID{from, e.ID, e.Seq}
			p := all[id]
			p.out = f.At
			all[id] = p
		}
	}
	return all
}

// lostByGuest counts the lost requests that are the guest's own: they went into its
// port while it was behind, and no reply came out before the probes ended.
func (all passagesOf) lostByGuest(to netip.Addr, r core.ProbeResult, ended time.Time) (n int) {
	for _, l := range r.Losses {
		p := all[echoID{to, r.ID, uint16(l.Seq)}]
		switch {
		case p.in.IsZero(): // it did not come so far
		case p.out.IsZero() && all.behind(p.in), p.out.After(ended):
			n++
		}
	}
	return n
}

// behind reports whether the guest then had a request in its queue that it answered
// later.
func (all passagesOf) behind(at time.Time) bool {
	for _, p := range all {
		if !p.in.IsZero() && p.in.Before(at) && p.out.After(at) {
			return true
		}
	}
	return false
}

// TestGuestStandsStill: what a guest loses because it had no processor is found to be
// its own loss, in the queue of its port and behind it.
func TestGuestStandsStill(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	d := s.domain(s.hypervisor("node1"), "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	require.NoError(t, d.Start(soon(t)))
	require.NoError(t, d.WaitReady(soon(t)))
	pid, err := d.Pid()
	require.NoError(t, err)
	watch := s.watchGuest(s.top.Nodes["node1"], "sea_gold_net0")
	results := map[netip.Addr]core.ProbeResult{}
	for i, still := range []struct {
		every    time.Duration
		requests int
	}{
		{time.Millisecond, 1500},     // the queue has room for 1,000
		{10 * time.Millisecond, 600}, // room for all; but the guest mostly does not answer them all
	} {
		to := seaGold[i].Addr()
		s.reaches(s.top.Client, to.String())
		prober, err := s.top.Client.Probe(to, still.every)
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		_, err = watch.sniffer.Wait(soon(t), len(watch.sniffer.Frames())+still.requests)
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		require.NoError(t, err)
		s.reaches(s.top.Client, to.String())
		results[to] = prober.Stop()
	}
	assert.NotZero(t, results[seaGold[0].Addr()].Lost)
	watch.lostNothing(results)
}

// TestLossOfTheGuest: only a request that reached a guest that was behind, and was not
// answered, is the guest's own loss.
func TestLossOfTheGuest(t *testing.T) {
	t.Parallel()
	guest, began := netip.MustParseAddr("203.0.113.10"), time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	frame := func(seq byte, ms int, reply bool) core.Frame {
		data := make([]byte, 14+20+8)
		data[12], data[14], data[14+9], data[14+20], data[14+20+5], data[14+20+7] = unix.ETH_P_IP>>8, 0x45, unix.IPPROTO_ICMP, 8, 7, seq
		address := data[14+16:]
		if reply {
			data[14+20], address = 0, data[14+12:]
		}
		copy(address, guest.AsSlice())
		return core.Frame{At: at(ms), Outgoing: !reply, Data: data}
	}
	passed := passages([]core.Frame{
		frame(0, 0, false), frame(0, 1, true), // at once
		frame(1, 10, false),                                           // without an answer, from a guest that has nothing else to do
		frame(2, 20, false), frame(3, 30, false), frame(4, 40, false), // the guest stands still; it answers 2, and not 3
		frame(2, 50, true), frame(4, 120, true), // 4 only after the end
	})
	own := func(id uint16, seqs ...int) int {
		r := core.ProbeResult{ID: id}
		for _, seq := range seqs {
			r.Losses = append(r.Losses, probe.Loss{Seq: seq})
		}
		return passed.lostByGuest(guest, r, at(100))
	}
	assert.Zero(t, own(7, 0), "the reply was lost on its way")
	assert.Zero(t, own(7, 1), "no other request waited")
	assert.Zero(t, own(7, 5), "it did not come to the port")
	assert.Equal(t, 2, own(7, 0, 1, 3, 4, 5))
	assert.Zero(t, own(8, 3), "the request of another prober")
}
