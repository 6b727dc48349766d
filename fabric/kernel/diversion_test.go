package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// known has the guest's addresses as neighbours on its port, as they are while
// it runs.
func known(t *testing.T, p fabric.Port) {
	t.Helper()
	for _, a := range p.NIC.Addresses {
		require.NoError(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link(t, p.Name).Attrs().Index, IP: a.AsSlice(), HardwareAddr: p.NIC.MAC[:], State: netlink.NUD_PERMANENT,
		}))
	}
}

// moving gives a port of the node's to a guest that is about to move, and one at the
// other node.
func (lab *moveLab) moving(t *testing.T, routes ...netip.Prefix) (d *kernel.Dataplane, p fabric.Port, here, there *fakeGuest) {
	t.Helper()
	d = open(t)
	p = movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routes})
	require.NoError(t, d.Put(t.Context(), p))
	known(t, p)
	lab.otherPort(t, p)
	return d, p, plug(t, nil, p.Name), plug(t, lab.other, p.Name)
}

// TestDivertLosesNothing: a guest stops, and goes on at the other node a while
// later; the diversion comes late, too. Every request is answered, by one or
// the other.
func TestDivertLosesNothing(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d, p, here, there := lab.moving(t, routed...)
		here.run()
		for _, to := range []netip.Addr{guestAddr[v4], routed[map[bool]int{true: 0, false: 1}[v4]].Addr().Next()} {
			require.NoError(t, d.Record(t.Context(), p.Name, true))
			probes := lab.probe(t, to, 0)
			begun(t, probes)
			resent := 0
			for range 5 {
				time.Sleep(50 * time.Millisecond)
				here.stop()
				time.Sleep(20 * time.Millisecond)
				called := time.Now()
				done, err := d.Divert(t.Context(), []fabric.Port{p}, otherNode)
				require.NoError(t, err)
				t.Logf("diverted after %v, sent again after %v", done.At.Sub(called), done.Done.Sub(called))
				resent += done.Resent
				again, err := d.Divert(t.Context(), []fabric.Port{p}, otherNode)
				require.NoError(t, err)
				assert.Zero(t, again.Resent)
				time.Sleep(50 * time.Millisecond)
				there.run()
				time.Sleep(50 * time.Millisecond)
				// And back, to a guest that takes all that it was sent meanwhile.
				here.drop(t)
				here.run()
				require.NoError(t, d.Return(t.Context(), p.NIC.Prefixes()...))
				time.Sleep(20 * time.Millisecond)
				there.stop()
			}
			r := probes.Stop()
			t.Logf("%d sent again, %+v", resent, r)
			assert.Zero(t, r.Lost, "%+v", r)
			assert.Greater(t, resent, 50, "about 20 each time")
			assert.LessOrEqual(t, r.Duplicates, resent)
			require.NoError(t, d.Record(t.Context(), p.Name, false))
		}
	})
}

// TestDivertOfABusyGuest: a guest has a processor only now and then, falls behind
// with what is sent to it, and stops with a long queue. It loses none of that, however
// long that went on, as when libvirt throttles it so that its memory can be copied:
// not even what did not fit into the queue of its port any more.
func TestDivertOfABusyGuest(t *testing.T) {
	for name, c := range map[string]struct {
		times int
		pause time.Duration
	}{
		"for a quarter of a second": {5, 50 * time.Millisecond},
		"for three seconds":         {10, 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, v4 bool) {
				lab := newMoveLab(t)
				d, p, here, there := lab.moving(t)
				here.run()
				require.NoError(t, d.Record(t.Context(), p.Name, true))
				probes := lab.probe(t, guestAddr[v4], 0)
				begun(t, probes)
				here.stop()
				behind := here.takeNowAndThen(t, c.times, c.pause, 20)
				there.run()
				done, err := d.Divert(t.Context(), []fabric.Port{p}, otherNode)
				require.NoError(t, err)
				before := probes.Received()
				require.Eventually(t, func() bool { return probes.Received() > before+100 }, 20*time.Second, time.Millisecond)
				r := probes.Stop()
				t.Logf("%d waited, %d sent again, %v", behind, done.Resent, r)
				// What a prober without a processor was late with, one a millisecond, had not been sent.
				assert.GreaterOrEqual(t, done.Resent+int(r.Late/time.Millisecond), behind)
				assert.Zero(t, r.Lost)
				require.NoError(t, d.Return(t.Context(), p.NIC.Prefixes()...))
			})
		})
	}
}

// TestDivertPorts: several ports go together, whose guests have taken nothing.
func TestDivertPorts(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		second := map[bool]netip.Addr{true: netip.MustParseAddr("203.0.113.11"), false: netip.MustParseAddr("2001:db8:100::11")}
		ports := []fabric.Port{
			movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}}),
			movePort("db", fabric.NIC{Addresses: []netip.Addr{second[true], second[false]}}),
		}
		var guests []*fakeGuest
		for _, p := range ports {
			require.NoError(t, d.Put(t.Context(), p))
			known(t, p)
			plug(t, nil, p.Name)
			lab.otherPort(t, p)
			guests = append(guests, plug(t, lab.other, p.Name))
			require.NoError(t, d.Record(t.Context(), p.Name, true))
		}
		one, two := lab.probe(t, guestAddr[v4], 40), lab.probe(t, second[v4], 40)
		<-one.Sent()
		<-two.Sent()
		done, err := d.Divert(t.Context(), ports, otherNode)
		require.NoError(t, err)
		assert.Equal(t, 80, done.Resent)
		require.NoError(t, d.Remove(t.Context(), ports[0].Name, ports[1].Name))
		for _, g := range guests {
			g.run()
		}
		for _, r := range []int{one.Stop().Lost, two.Stop().Lost} {
			assert.Zero(t, r)
		}
		after := lab.probe(t, guestAddr[v4], 40)
		<-after.Sent()
		assert.Zero(t, after.Stop().Lost, "diverted without the port, too")
	})
}

// TestDivertRestart: another process finds the diversions and ends them.
func TestDivertRestart(t *testing.T) {
	lab := newMoveLab(t)
	first, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true]}})
	require.NoError(t, err)
	labtest.Running(t, first)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	require.NoError(t, first.Put(t.Context(), p))
	known(t, p)
	lab.otherPort(t, p)
	here, there := plug(t, nil, p.Name), plug(t, lab.other, p.Name)
	there.run()
	_, err = first.Divert(t.Context(), []fabric.Port{p}, otherNode)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	answers := func(g *fakeGuest) {
		t.Helper()
		for _, v4 := range []bool{true, false} {
			before := g.taken.Load()
			probes := lab.probe(t, guestAddr[v4], 20)
			<-probes.Sent()
			r := probes.Stop()
			assert.Zero(t, r.Lost, "%v %+v", v4, r)
			assert.EqualValues(t, before+20, g.taken.Load())
		}
	}
	answers(there)
	d := open(t)
	diverted, err := d.Diverted(t.Context())
	require.NoError(t, err)
	assert.ElementsMatch(t, p.NIC.Prefixes(), diverted)
	require.NoError(t, d.Put(t.Context(), p))
	answers(there)
	// A network manager that starts may take rules for remnants.
	ipIn(t, nil, "rule del priority 14800")
	require.Eventually(t, func() bool { return hasRule(t, netlink.FAMILY_V4, fabric.DivertedRule) }, 20*time.Second, 5*time.Millisecond)
	answers(there)
	here.run()
	require.NoError(t, d.Return(t.Context(), diverted...))
	answers(here)
}

func hasRule(t *testing.T, family, priority int) bool {
	t.Helper()
	rules, err := dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	require.NoError(t, err)
	for _, r := range rules {
		if r.Priority == priority {
			return true
		}
	}
	return false
}

// TestDivertNoNeighbour: a node behind a router is refused, the router might
// send the packets back.
func TestDivertNoNeighbour(t *testing.T) {
	newMoveLab(t)
	d := open(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	require.NoError(t, d.Put(t.Context(), p))
	_, err := d.Divert(t.Context(), []fabric.Port{p}, fabric.Node{Name: "far", Address: afar[true], Address6: node2[false]})
	require.ErrorContains(t, err, "node far (10.20.0.1) is no neighbour")
	diverted, err := d.Diverted(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []netip.Prefix{fabric.HostPrefix(guestAddr[false])}, diverted)
	require.NoError(t, d.Return(t.Context(), diverted...))
}

// TestMovesLeaveNothingOpen: no goroutine and no descriptor is left.
func TestMovesLeaveNothingOpen(t *testing.T) {
	newMoveLab(t)
	p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
	open := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	round := func(remove bool) {
		d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true]}})
		require.NoError(t, err)
		labtest.Running(t, d)
		p.Incoming = true
		require.NoError(t, d.Put(t.Context(), p))
		require.NoError(t, d.Record(t.Context(), p.Name, true))
		if remove {
			fds := open()
			require.NoError(t, d.Remove(t.Context(), p.Name))
			assert.Equal(t, fds-2, open(), "the replay buffer's and the frame listener's are closed")
		}
		require.NoError(t, d.Close())
	}
	round(true)
	fds := open()
	labtest.EndsItsGoroutines(t)
	for i := range 10 {
		round(i%2 == 0)
	}
	assert.LessOrEqual(t, open(), fds)
}

// TestDivertLocal: a socket of the node's own, which has its route already, is
// diverted too.
func TestDivertLocal(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d, p, _, there := lab.moving(t)
		require.NoError(t, d.Record(t.Context(), p.Name, true))
		dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(via(guestAddr[v4])), 0))}
		conn, err := dialer.Dial("udp", netip.AddrPortFrom(guestAddr[v4], 9).String())
		require.NoError(t, err)
		defer conn.Close()
		const each = 20
		send := func() {
			for range each {
				_, err := conn.Write([]byte("x"))
				require.NoError(t, err)
			}
		}
		send()
		done, err := d.Divert(t.Context(), []fabric.Port{p}, otherNode)
		require.NoError(t, err)
		assert.Equal(t, each, done.Resent)
		send()
		require.NoError(t, there.tap.SetReadDeadline(time.Now().Add(20*time.Second)))
		buf := make([]byte, 1<<16)
		for i := 0; i < 2*each; {
			n, err := there.tap.Read(buf)
			require.NoError(t, err, "%d came", i)
			if a := buf[14:n]; a[0]>>4 == 4 && a[9] == unix.IPPROTO_UDP || a[0]>>4 == 6 && a[6] == unix.IPPROTO_UDP {
				i++
			}
		}
		require.NoError(t, d.Return(t.Context(), p.NIC.Prefixes()...))
	})
}

// TestDivertSendsNoRedirects: packets of a host on the underlay leave the node by the link on
// which they came, and the host is not told to send to the other node itself. It is told of
// what is not the fabric's, and, as a control, of a guest by a node that does not know the
// cluster's machines.
func TestDivertSendsNoRedirects(t *testing.T) {
	machines := []netip.Prefix{netip.MustParsePrefix("10.10.0.1/32"), netip.MustParsePrefix("10.10.0.21/32"), netip.MustParsePrefix("10.10.0.22/32"), netip.MustParsePrefix("fd00:10:10::/64")}
	for _, c := range []struct {
		name    string
		v4      bool
		private []netip.Prefix
		told    bool // of the guest
	}{{"IPv4", true, machines, false}, {"IPv6", false, machines, false}, {"IPv4 without the machines", true, nil, true}} {
		t.Run(c.name, func(t *testing.T) {
			lab := newMoveLab(t)
			sysctls(t, lab.core, map[string]string{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"})
			for _, link := range []string{"all", "up0"} { // either is enough for the kernel
				sysctls(t, nil, map[string]string{"ipv4/conf/" + link + "/send_redirects": "1"})
			}
			d, err := kernel.New(t.Context(), kernel.Config{Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]}, Private: c.private})
			require.NoError(t, err)
			labtest.Running(t, d)
			t.Cleanup(func() { require.NoError(t, d.Close()) })
			p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
			require.NoError(t, d.Put(t.Context(), p))
			lab.otherPort(t, p)
			plug(t, lab.other, p.Name).run()
			_, err = d.Divert(t.Context(), []fabric.Port{p}, otherNode)
			require.NoError(t, err)

			other := struct { // what a router on the underlay has that is no machine of the cluster
				host        netip.Addr
				hop, prefix string
			}{netip.MustParseAddr("10.10.0.1"), "10.10.0.99", "198.18.0.0/24"}
			if !c.v4 {
				other.host, other.hop, other.prefix = netip.MustParseAddr("fd00:10:10::1"), "fe80::99", "2001:db8:99::/64"
			}
			before := lab.redirects(t, c.v4)
			one := lab.probeFrom(t, other.host, guestAddr[c.v4], 0)
			begun(t, one) // by then the node has forwarded a packet
			one.Abandon()
			assert.Equal(t, c.told, lab.redirects(t, c.v4) > before)

			before = lab.redirects(t, c.v4)
			ipIn(t, nil, "neigh replace "+other.hop+" lladdr 02:00:00:00:00:99 dev up0", "route replace "+other.prefix+" via "+other.hop+" dev up0")
			ipIn(t, lab.core, "route replace "+other.prefix+" via "+via(netip.MustParsePrefix(other.prefix).Addr()))
			one = lab.probeFrom(t, other.host, netip.MustParsePrefix(other.prefix).Addr().Next(), 0)
			require.Eventually(t, func() bool { return lab.redirects(t, c.v4) > before }, 20*time.Second, 5*time.Millisecond, "what is not the fabric's")
			one.Abandon()
		})
	}
}

// redirects counts those of a family that came to the host in core.
func (lab *moveLab) redirects(t *testing.T, v4 bool) (n int) {
	t.Helper()
	require.NoError(t, within(lab.core, func() error {
		file := map[bool]string{true: "snmp", false: "snmp6"}[v4]
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return err
		}
		if !v4 {
			_, err = fmt.Sscan(string(regexp.MustCompile(`(?m)^Icmp6InRedirects\s+(\d+)`).FindSubmatch(text)[1]), &n)
			return err
		}
		rows := regexp.MustCompile(`(?m)^Icmp: .*$`).FindAllString(string(text), 2)
		_, err = fmt.Sscan(strings.Fields(rows[1])[slices.Index(strings.Fields(rows[0]), "InRedirects")], &n)
		return err
	}))
	return n
}
