package kernel_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/ledger"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// kept is a keeper in memory. It keeps text, as a file does.
type kept struct {
	mu   sync.Mutex
	text []byte
	puts int
}

func (k *kept) Get(into any) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.text) == 0 {
		return false, nil
	}
	return true, json.Unmarshal(k.text, into)
}

func (k *kept) Put(is any) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.text, err = json.Marshal(is)
	k.puts++
	return err
}

// internal are the pools and the underlay.
var internal = []netip.Prefix{
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:100::/48"),
	netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64"), routed[0], routed[1],
}

// counting opens a dataplane that counts. The caller closes it.
func counting(t testing.TB, k *kept) *kernel.Dataplane {
	t.Helper()
	d, err := kernel.New(t.Context(), kernel.Config{
		Cluster: "lab", Underlay: []netip.Addr{node2[true], node2[false]},
		Private: internal[2:4], Accounting: &kernel.Accounting{Internal: internal, Keep: k},
	})
	require.NoError(t, err)
	labtest.Running(t, d)
	require.Empty(t, d.Diagnose(t.Context()))
	return d
}

// traffic returns what was counted for a prefix of a guest.
func traffic(t testing.TB, d *kernel.Dataplane, vm string, p netip.Prefix) fabric.Traffic {
	t.Helper()
	all, err := d.Traffic(t.Context())
	require.NoError(t, err)
	for _, one := range all {
		if one.VM == vm && one.Prefix == p {
			return one
		}
	}
	return fabric.Traffic{VM: vm, Prefix: p}
}

// awaitCounters waits until a guest has counters: one packet more is counted.
func awaitCounters(t *testing.T, d *kernel.Dataplane, from *space, source, to netip.Addr, vm string) {
	t.Helper()
	require.Eventually(t, func() bool {
		before := traffic(t, d, vm, fabric.HostPrefix(to)).Received
		sendUDP(t, from, source, to, 1, 100)
		return traffic(t, d, vm, fabric.HostPrefix(to)).Received != before
	}, 20*time.Second, 20*time.Millisecond)
}

// sendUDP sends datagrams from one address to another, to the discard port. It returns
// when the kernel has taken all of them.
func sendUDP(t *testing.T, from *space, source, to netip.Addr, count, size int) {
	t.Helper()
	require.NoError(t, in(from, func() error {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
		if err != nil {
			return err
		}
		defer c.Close()
		for range count {
			if _, err := c.WriteToUDPAddrPort(make([]byte, size), netip.AddrPortFrom(to, 9)); err != nil {
				return err
			}
		}
		return nil
	}))
}

// discards takes datagrams to the discard port, so that nobody answers by an ICMP error.
func discards(t *testing.T, s *space) {
	t.Helper()
	require.NoError(t, in(s, func() error {
		c, err := net.ListenPacket("udp", ":9")
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}))
}

// datagrams is what so many UDP datagrams of a size are, with their headers.
func datagrams(v4 bool, count, size uint64) fabric.Count {
	return fabric.Count{Packets: count, Bytes: count * (size + map[bool]uint64{true: 28, false: 48}[v4])}
}

func less(a, b fabric.Count) fabric.Count {
	return fabric.Count{Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes}
}

// grown is what was counted between two readings.
func grown(was, is fabric.Traffic) (sentInternal, sentExternal, receivedInternal, receivedExternal fabric.Count) {
	return less(is.Sent.Internal, was.Sent.Internal), less(is.Sent.External, was.Sent.External),
		less(is.Received.Internal, was.Received.Internal), less(is.Received.External, was.Received.External)
}

// countedGuests makes a laboratory with two guests, web and db, whose packets are counted.
func countedGuests(t *testing.T, k *kept) (lab *moveLab, d *kernel.Dataplane, web, db *space) {
	t.Helper()
	lab = newMoveLab(t)
	d = counting(t, k)
	web, db = newGuest(t, d, "web", guestAddr, guestMAC), newGuest(t, d, "db", second, secondMAC)
	for _, s := range []*space{lab.core, web, db} {
		discards(t, s)
	}
	return lab, d, web, db
}

// TestAccounting: each packet is counted once, by who is at the other end, whoever
// restarts or flushes meanwhile.
func TestAccounting(t *testing.T) {
	k := &kept{}
	lab, d, g, _ := countedGuests(t, k)
	bothFamilies(t, func(t *testing.T, v4 bool) {
		web, db := fabric.HostPrefix(guestAddr[v4]), fabric.HostPrefix(second[v4])
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web")
		awaitCounters(t, d, lab.core, client[v4], second[v4], "db")
		was, wasDB := traffic(t, d, "web", web), traffic(t, d, "db", db)
		sendUDP(t, lab.core, client[v4], guestAddr[v4], 100, 100)
		sendUDP(t, lab.core, coreAddr[v4], guestAddr[v4], 30, 50)
		sendUDP(t, g, guestAddr[v4], client[v4], 70, 10)
		sendUDP(t, g, guestAddr[v4], second[v4], 20, 200)
		sendUDP(t, g, guestAddr[v4], nodeAddr[v4], 5, 10)                                                                                                   // to the node itself
		sendUDP(t, g, guestAddr[v4], map[bool]netip.Addr{true: netip.MustParseAddr("10.10.0.77"), false: netip.MustParseAddr("fd00:10:10::77")}[v4], 5, 10) // dropped
		settled(t, func() bool {
			return traffic(t, d, "db", db).Received.Internal.Packets-wasDB.Received.Internal.Packets == 20
		})
		si, se, ri, re := grown(was, traffic(t, d, "web", web))
		assert.Equal(t, datagrams(v4, 20, 200), si, "sent to the other guest")
		assert.Equal(t, datagrams(v4, 70, 10), se, "sent outside")
		assert.Equal(t, datagrams(v4, 30, 50), ri, "received from the underlay")
		assert.Equal(t, datagrams(v4, 100, 100), re, "received from outside")
		si, se, ri, re = grown(wasDB, traffic(t, d, "db", db))
		assert.Equal(t, datagrams(v4, 20, 200), ri, "received from the other guest")
		assert.Equal(t, fabric.Count{}, si.Plus(se).Plus(re))

		was = traffic(t, d, "web", web)
		require.NoError(t, d.Close())
		sendUDP(t, lab.core, client[v4], guestAddr[v4], 10, 100) // while no agent runs
		d = counting(t, k)
		require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})))
		require.NoError(t, d.Put(t.Context(), port("db", fabric.NIC{Kind: fabric.Veth, MAC: secondMAC, Addresses: []netip.Addr{second[true], second[false]}})))
		_, _, _, re = grown(was, traffic(t, d, "web", web))
		assert.Equal(t, datagrams(v4, 10, 100), re, "over a restart")

		was = traffic(t, d, "web", web)
		require.NoError(t, exec.Command("nft", "flush", "ruleset").Run())
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web")
		is := traffic(t, d, "web", web)
		assert.Equal(t, was.Sent, is.Sent)
		assert.Greater(t, is.Received.External.Packets, was.Received.External.Packets, "the totals stay, and grow again")
		awaitCounters(t, d, lab.core, client[v4], second[v4], "db")
	})
	require.NoError(t, d.Remove(t.Context(), "web_net0", "db_net0"))
	left := traffic(t, d, "web", fabric.HostPrefix(guestAddr[true]))
	assert.NotZero(t, left.Sent.External.Packets, "what a guest had stays when it has left")
	require.NoError(t, d.Close())
}

// settled waits for what other threads of the kernel still do with packets.
func settled(t *testing.T, is func() bool) {
	t.Helper()
	require.Eventually(t, is, 20*time.Second, 10*time.Millisecond)
}

// TestAccountingAfterKill: an agent that was killed had kept less than the kernel has
// counted; nothing is missing. One whose state is lost begins with what the kernel has.
func TestAccountingAfterKill(t *testing.T) {
	lab, k := newMoveLab(t), &kept{}
	d := counting(t, k)
	g := newGuest(t, d, "web", guestAddr, guestMAC)
	discards(t, g)
	p := fabric.HostPrefix(guestAddr[true])
	awaitCounters(t, d, lab.core, client[true], guestAddr[true], "web")
	put := func(d *kernel.Dataplane) {
		require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})))
	}
	require.NoError(t, d.Close())
	earlier := append([]byte{}, k.text...)
	d = counting(t, k)
	put(d)
	sendUDP(t, lab.core, client[true], guestAddr[true], 50, 100)
	was := traffic(t, d, "web", p)
	require.NoError(t, d.Close())
	for name, text := range map[string][]byte{"kept": k.text, "kept before": earlier, "lost": nil} {
		t.Run(name, func(t *testing.T) {
			d := counting(t, &kept{text: text})
			put(d)
			settled(t, func() bool { return traffic(t, d, "web", p).Received == was.Received })
			require.NoError(t, d.Close())
		})
	}
	d = counting(t, k)
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
	require.NoError(t, d.Close())
}

// TestAccountingOfAGuestThatLeft: a guest came and left since the totals were last kept in
// their turn, as in a move. Who kills the agent then takes nothing of what it had.
func TestAccountingOfAGuestThatLeft(t *testing.T) {
	lab, k := newMoveLab(t), &kept{}
	d := counting(t, k)
	g := newGuest(t, d, "web", guestAddr, guestMAC)
	discards(t, g)
	bothFamilies(t, func(t *testing.T, v4 bool) {
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web")
	})
	was := map[bool]fabric.Traffic{}
	bothFamilies(t, func(t *testing.T, v4 bool) {
		p := fabric.HostPrefix(guestAddr[v4])
		before := traffic(t, d, "web", p)
		sendUDP(t, lab.core, client[v4], guestAddr[v4], 50, 100)
		settled(t, func() bool {
			was[v4] = traffic(t, d, "web", p)
			return less(was[v4].Received.External, before.Received.External) == datagrams(v4, 50, 100)
		})
	})
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
	var text []byte
	settled(t, func() bool { // it is kept by itself
		text = k.copied()
		var l ledger.Ledger
		require.NoError(t, json.Unmarshal(text, &l))
		return slices.ContainsFunc(l.Traffic(), func(one fabric.Traffic) bool { return one == was[true] }) &&
			slices.ContainsFunc(l.Traffic(), func(one fabric.Traffic) bool { return one == was[false] })
	})
	require.NoError(t, d.Close())
	d = counting(t, &kept{text: text})
	bothFamilies(t, func(t *testing.T, v4 bool) {
		assert.Equal(t, was[v4], traffic(t, d, "web", fabric.HostPrefix(guestAddr[v4])))
	})
	require.NoError(t, d.Close())
}

// copied is what is kept now; {} for nothing.
func (k *kept) copied() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]byte{}, cmp.Or(string(k.text), "{}")...)
}

// TestAccountingOfPrefixes: what is routed to a guest is counted by prefix, however many
// addresses of it the guest uses.
func TestAccountingOfPrefixes(t *testing.T) {
	lab, k := newMoveLab(t), &kept{}
	d := counting(t, k)
	g := newGuest(t, d, "web", guestAddr, guestMAC)
	discards(t, g)
	discards(t, lab.core)
	sysctls(t, g, map[string]string{"ipv6/ip_nonlocal_bind": "1"})
	require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})))
	bothFamilies(t, func(t *testing.T, v4 bool) {
		p := routed[map[bool]int{true: 0, false: 1}[v4]]
		ipIn(t, g, "route add local "+p.String()+" dev lo")
		addrs := []netip.Addr{p.Addr().Next(), p.Addr().Next().Next(), p.Addr().Next().Next().Next()}
		require.Eventually(t, func() bool {
			before := traffic(t, d, "web", p).Received
			sendUDP(t, lab.core, client[v4], addrs[0], 1, 100)
			return traffic(t, d, "web", p).Received != before
		}, 20*time.Second, 20*time.Millisecond)
		was := traffic(t, d, "web", p)
		for _, a := range addrs {
			sendUDP(t, lab.core, client[v4], a, 10, 100)
			sendUDP(t, g, a, client[v4], 7, 100)
		}
		settled(t, func() bool { return traffic(t, d, "web", p).Sent.External.Packets-was.Sent.External.Packets == 21 })
		si, se, ri, re := grown(was, traffic(t, d, "web", p))
		assert.Equal(t, datagrams(v4, 21, 100), se)
		assert.Equal(t, datagrams(v4, 30, 100), re)
		assert.Equal(t, fabric.Count{}, si.Plus(ri))
	})
	all, err := d.Traffic(t.Context())
	require.NoError(t, err)
	assert.Len(t, all, 4, "two addresses and two prefixes")
	require.NoError(t, d.Close())
	d = counting(t, k) // recognises the ranges
	require.NoError(t, d.Put(t.Context(), port("web", fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}, Routes: routed})))
	time.Sleep(50 * time.Millisecond)
	require.Empty(t, d.Diagnose(t.Context()))
	require.NoError(t, d.Remove(t.Context(), "web_net0"))
	require.NoError(t, d.Close())
}

// TestAccountingOverMoves: over twenty moves, with packets that are sent again to the
// node where the guest went, this node and that one together count each packet once.
func TestAccountingOverMoves(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab, k := newMoveLab(t), &kept{}
		d := counting(t, k)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		require.NoError(t, d.Put(t.Context(), p))
		known(t, p)
		lab.otherPort(t, p)
		here, there := plug(t, nil, p.Name), plug(t, lab.other, p.Name)
		prefix := fabric.HostPrefix(guestAddr[v4])
		nftIn(t, lab.other, fmt.Sprintf(`table inet there { counter c { }; chain f { type filter hook forward priority 250; oifname "%s" icmp type echo-request counter name c; oifname "%[1]s" icmpv6 type echo-request counter name c; }; }`, p.Name))
		here.run()
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web")
		before := traffic(t, d, "web", prefix).Received.External
		require.NoError(t, d.Record(t.Context(), p.Name, true))
		probes, resent := lab.probe(t, guestAddr[v4], 0), 0
		begun(t, probes)
		for range 20 {
			time.Sleep(20 * time.Millisecond)
			_ = traffic(t, d, "web", prefix) // somebody scrapes meanwhile
			here.stop()
			time.Sleep(10 * time.Millisecond)
			_ = traffic(t, d, "web", prefix)
			done, err := d.Divert(t.Context(), []fabric.Port{p}, otherNode)
			require.NoError(t, err)
			resent += done.Resent
			there.run()
			time.Sleep(20 * time.Millisecond)
			here.drop(t)
			here.run()
			require.NoError(t, d.Return(t.Context(), p.NIC.Prefixes()...))
			time.Sleep(10 * time.Millisecond)
			there.stop()
		}
		r := probes.Stop()
		require.NoError(t, d.Record(t.Context(), p.Name, false))
		time.Sleep(50 * time.Millisecond)
		mine := less(traffic(t, d, "web", prefix).Received.External, before).Packets
		others := counterIn(t, lab.other, "there", "c")
		t.Logf("%d sent; this node counts %d, the other one %d; %d were sent again", r.Sent, mine, others, resent)
		assert.Positive(t, resent)
		assert.EqualValues(t, r.Sent, mine+others)
		require.NoError(t, d.Remove(t.Context(), p.Name))
		require.NoError(t, d.Close())
	})
}

func nftIn(t *testing.T, s *space, rules string) {
	t.Helper()
	require.NoError(t, in(s, func() error {
		out, err := exec.Command("nft", rules).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// counterIn reads the packets of a named counter.
func counterIn(t *testing.T, s *space, table, name string) (packets uint64) {
	t.Helper()
	require.NoError(t, in(s, func() error {
		out, err := exec.Command("nft", "list", "counter", "inet", table, name).Output()
		if err != nil {
			return err
		}
		m := regexp.MustCompile(`packets (\d+)`).FindSubmatch(out)
		if m == nil {
			return fmt.Errorf("no counter: %s", out)
		}
		packets, err = strconv.ParseUint(string(m[1]), 10, 64)
		return err
	}))
	return packets
}
