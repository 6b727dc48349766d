package kernel_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
)

func awaitHeard(t *testing.T, m fabric.Mover, want string) {
	t.Helper()
	select {
	case name := <-m.Heard():
		assert.Equal(t, want, name)
	case <-time.After(20 * time.Second):
		require.FailNow(t, "not heard", want)
	}
}

// TestIncomingHolds: packets from the underlay wait in the port, whose guest
// does not run, and are all answered once it does.
func TestIncomingHolds(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})
		p.Incoming, p.Queue = true, 2000
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		for _, to := range []netip.Addr{guestAddr[v4], routed[map[bool]int{true: 0, false: 1}[v4]].Addr().Next()} {
			probes := lab.probe(t, to, 200)
			<-probes.Sent()
			assert.Zero(t, probes.Received())
			g.announce(t)
			awaitHeard(t, d, p.Name)
			p.Incoming = false
			require.NoError(t, d.Put(t.Context(), p))
			g.run()
			r := probes.Stop()
			assert.Zero(t, r.Lost, "%+v", r)
			assert.Zero(t, r.Reordered+r.Duplicates+r.Refused)
			g.stop()
			p.Incoming = true
			require.NoError(t, d.Put(t.Context(), p))
		}
		assert.EqualValues(t, 400, g.taken.Load())
	})
}

// TestIncomingLocal: the node's own packets go where they would go without the port.
func TestIncomingLocal(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.Incoming = true
		require.NoError(t, d.Put(t.Context(), p))
		// The core has the address itself, as a router with another way to it would.
		ipIn(t, lab.core, "addr add "+fabric.HostPrefix(guestAddr[v4]).String()+" dev lo"+map[bool]string{true: "", false: " nodad"}[v4])
		ready := lab.probe(t, guestAddr[v4], 0)
		begun(t, ready)
		ready.Abandon()
		probes := startProbe(t, guestAddr[v4], 50)
		<-probes.Sent()
		r := probes.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
	})
}

// TestIncomingOverflow: what is beyond the queue is lost, and nothing else.
func TestIncomingOverflow(t *testing.T) {
	lab := newMoveLab(t)
	d := open(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	p.Incoming, p.Queue = true, 50
	require.NoError(t, d.Put(t.Context(), p))
	g := plug(t, nil, p.Name)
	probes := lab.probe(t, guestAddr[true], 200)
	<-probes.Sent()
	p.Incoming = false
	require.NoError(t, d.Put(t.Context(), p))
	g.run()
	r := probes.Stop()
	// A frame or two of the kernel's own may wait too.
	assert.LessOrEqual(t, r.Received, 50, "%+v", r)
	assert.Greater(t, r.Received, 40)
	assert.Equal(t, r.Received, r.LongestLossFrom, "the first are kept")

	p.Queue = 0
	require.NoError(t, d.Put(t.Context(), p))
	assert.Equal(t, 1000, link(t, p.Name).Attrs().TxQLen)
}

// TestIncomingSwitch: an incoming port whose guest runs becomes an ordinary one
// under load, and back, without losing a packet either way.
func TestIncomingSwitch(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		p.Incoming, p.Queue = true, 5000
		require.NoError(t, d.Put(t.Context(), p))
		g := plug(t, nil, p.Name)
		g.run()
		probes := lab.probe(t, guestAddr[v4], 0)
		begun(t, probes)
		for i := range 10 {
			time.Sleep(30 * time.Millisecond)
			p.Incoming = i%2 == 1
			require.NoError(t, d.Put(t.Context(), p))
		}
		r := probes.Stop()
		assert.Zero(t, r.Lost, "%+v", r)
		assert.Greater(t, r.Sent, 200)
	})
}
