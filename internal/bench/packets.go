package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// The far end of the way that packets take through the node (RFC 2544, RFC 5180).
var (
	far4 = netip.MustParsePrefix("198.18.0.1/32")
	far6 = netip.MustParsePrefix("2001:2::1/128")
)

// discard is the UDP destination port of the packets (RFC 863).
const discard = 9

// lookups is an nftables table that only looks up the source of each packet in the
// routing table.
const lookups = `table inet lookups {
	chain sources {
		type filter hook prerouting priority raw;
		iifgroup 147 meta nfproto ipv4 fib saddr . iif oif 0 drop
		iifgroup 147 meta nfproto ipv6 fib saddr . iif oif 0 drop
	}
}`

// way is a direction through the node in one family.
type way struct {
	name     string
	from, to *core.Host
	link     string // the link at which the packets come in there
	src, dst netip.Addr
}

// filters are the filters on the node, in the order of the table.
var filters = []string{"none", "the routing table asked for each source", silent, "vmfabric's", accounting}

const (
	// silent is vmfabric's filter where the agent answers no guest: it has no rules for
	// requests.
	silent     = "vmfabric's without dhcp and ra"
	accounting = "vmfabric's, with accounting"
)

// measurePackets sends small packets through a port, with and without the
// agent's tables of nftables.
func measurePackets(ctx context.Context, b *bench) (s section, err error) {
	l, err := b.changedLab(ctx, "packets", 1, func(c *fabric.Cluster) { c.Accounting = true })
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	mute := l.cluster
	mute.Guests.NoDHCP, mute.Guests.NoRA = true, true
	file := filepath.Join(l.Dir(), "silent.yaml")
	if err := os.WriteFile(file, []byte(core.ClusterFile(mute)), 0o600); err != nil {
		return s, err
	}
	a, err := b.startAgent(ctx, l, "node1")
	if err != nil {
		return s, err
	}
	node, g := l.top.Nodes["node1"], guests(0, 1)[0]
	vm := g.vm(fabric.Veth)
	if _, err := a.ask(ctx, hooks.Live, vm); err != nil {
		return s, err
	}
	guest, err := l.AddGuest(node, vm, l.cluster.Gateway)
	if err != nil {
		return s, err
	}
	if err := farEnd(ctx, l, node, guest.Host); err != nil {
		return s, err
	}
	ways := []way{
		{"from the guest, IPv4", guest.Host, l.top.Core, "far1", vm.NICs[0].Addresses[0], far4.Addr()},
		{"from the guest, IPv6", guest.Host, l.top.Core, "far1", vm.NICs[0].Addresses[1], far6.Addr()},
		{"to the guest, IPv4", l.top.Core, guest.Host, "eth0", far4.Addr(), vm.NICs[0].Addresses[0]},
		{"to the guest, IPv6", l.top.Core, guest.Host, "eth0", far6.Addr(), vm.NICs[0].Addresses[1]},
	}
	rates := map[string][]float64{}
	for range b.size.bursts {
		for _, f := range filters {
			if f == silent || a.file != "" {
				if err := a.restartWith(ctx, map[bool]string{true: file}[f == silent]); err != nil {
					return s, err
				}
			}
			if err := b.install(ctx, a, node, f); err != nil {
				return s, err
			}
			for _, w := range ways {
				rate, err := w.blast(ctx, b.size.burst, b.quick)
				if err != nil {
					return s, errors.Join(fmt.Errorf("%s: %w", w.name, err), syscall.Kill(a.Pid(), syscall.SIGCONT))
				}
				rates[w.name+f] = append(rates[w.name+f], rate)
			}
		}
	}
	return packetsSection(b.size, ways, rates), syscall.Kill(a.Pid(), syscall.SIGCONT)
}

// restartWith starts the agent anew, with a cluster file; "": the lab's.
func (a *agent) restartWith(ctx context.Context, file string) error {
	if err := errors.Join(syscall.Kill(a.Pid(), syscall.SIGCONT), a.Stop()); err != nil {
		return err
	}
	a.file = file
	if err := a.start(); err != nil {
		return err
	}
	return a.adopted(ctx, 1)
}

// farEnd makes a link from the node to the core gateway. There, as at the guest,
// packets for discard are dropped as they come in.
func farEnd(ctx context.Context, l *lab, node, guest *core.Host) error {
	if err := l.Cable(node, "far0", l.top.Core, "far1"); err != nil {
		return err
	}
	for _, side := range []struct {
		host, other *core.Host
		link, peer  string
		own, others []netip.Prefix
	}{
		{node, l.top.Core, "far0", "far1", nil, []netip.Prefix{far4, far6}},
		{l.top.Core, node, "far1", "far0", []netip.Prefix{far4, far6}, []netip.Prefix{pool4, pool6}},
	} {
		if err := side.host.AddAddr(side.link, side.own...); err != nil {
			return err
		}
		link, err := side.host.Link(side.link)
		if err != nil {
			return err
		}
		peer, err := side.other.Link(side.peer)
		if err != nil {
			return err
		}
		for _, p := range side.others {
			// Only the link is between the two, so that any next hop will do.
			via := netip.MustParseAddr("198.18.0.254")
			if p.Addr().Is6() {
				via = netip.MustParseAddr("fe80::fe")
			}
			route := &netlink.Route{Dst: ipNet(p), Gw: via.AsSlice(), LinkIndex: link.Attrs().Index, Flags: int(netlink.FLAG_ONLINK), Priority: 1}
			neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: via.AsSlice(), HardwareAddr: peer.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT}
			if err := errors.Join(side.host.Netlink().NeighSet(neighbour), side.host.Netlink().RouteAdd(route)); err != nil {
				return fmt.Errorf("route to %s: %w", p, err)
			}
		}
	}
	for host, link := range map[*core.Host]string{l.top.Core: "far1", guest: "eth0"} {
		rules := fmt.Sprintf("table netdev sink { chain in { type filter hook ingress device %s priority 0; udp dport %d drop; }; }", link, discard)
		if _, err := host.Run(ctx, "nft", rules); err != nil {
			return err
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// install installs one of the filters on the node, and leaves the agent stopped,
// which would put its own back.
func (b *bench) install(ctx context.Context, a *agent, node *core.Host, filter string) error {
	nft := func(args ...string) error {
		_, err := node.Run(ctx, "nft", args...)
		return err
	}
	_ = nft("delete table inet lookups") // it may be missing
	if strings.HasPrefix(filter, "vmfabric's") {
		if err := syscall.Kill(a.Pid(), syscall.SIGCONT); err != nil {
			return err
		}
		// The counters of the guest come after the tables.
		counted := fmt.Sprintf("get element ip6 vmfabric-accounting sent_external { %s }", guests(0, 1)[0].vm(fabric.Veth).NICs[0].Addresses[1])
		for nft("list chain inet vmfabric from6") != nil || nft(counted) != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		err := syscall.Kill(a.Pid(), syscall.SIGSTOP)
		if filter != accounting {
			err = errors.Join(err, nft("delete table ip vmfabric-accounting"), nft("delete table ip6 vmfabric-accounting"))
		}
		return err
	}
	if err := syscall.Kill(a.Pid(), syscall.SIGSTOP); err != nil {
		return err
	}
	for _, table := range []string{"inet vmfabric", "arp vmfabric", "ip vmfabric-accounting", "ip6 vmfabric-accounting"} {
		_ = nft("delete table " + table) // it may be missing
	}
	if filter == "none" {
		return nil
	}
	return nft(lookups)
}

// arrived counts the packets that have come in at the end of the way.
func (w way) arrived() (uint64, error) {
	l, err := w.to.Link(w.link)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Statistics.RxPackets, nil
}

// blast sends for a time as fast as one sender can, and returns how many packets
// arrive in a second. A smoke run goes on where the sender cannot have a processor to
// itself.
func (w way) blast(ctx context.Context, d time.Duration, smoke bool) (rate float64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever: the thread ends with its goroutine
		// No other process gets the processor meanwhile.
		err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		switch {
		case err == nil, smoke && errors.Is(err, unix.EPERM):
			rate, err = w.send(ctx, d)
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("real-time priority: %w; measure outside of control groups without a share of it (cpu.rt_runtime_us)", err)
		}
	}()
	<-done
	return rate, err
}

func (w way) send(ctx context.Context, d time.Duration) (rate float64, err error) {
	const atOnce, size = 64, 22 // 64 octets of Ethernet with IPv4
	var conn *net.UDPConn
	err = w.from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.src, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.dst, discard)))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	payload := make([]byte, size)
	four, six := make([]ipv4.Message, atOnce), make([]ipv6.Message, atOnce)
	for i := range atOnce {
		four[i].Buffers, six[i].Buffers = [][]byte{payload}, [][]byte{payload}
	}
	send := func() (int, error) { return ipv4.NewPacketConn(conn).WriteBatch(four, 0) }
	if w.dst.Is6() {
		send = func() (int, error) { return ipv6.NewPacketConn(conn).WriteBatch(six, 0) }
	}
	for range 10 { // the first packets look up neighbours and routes
		if _, err := send(); err != nil {
			return 0, err
		}
	}
	before, err := w.arrived()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for time.Since(began) < d {
		if _, err := send(); err != nil {
			return 0, err
		}
	}
	took := time.Since(began)
	after, err := w.arrived()
	return float64(after-before) / took.Seconds(), errors.Join(err, ctx.Err())
}

func packetsSection(size size, ways []way, rates map[string][]float64) section {
	s := section{
		title: "Packets through a port",
		method: fmt.Sprintf(`
UDP of 22 bytes, 64 packets a system call, from one sender through the node to a link at whose far end they are dropped as
they come in, so that the sender's rate is what the whole way costs; the sender has a processor to itself (SCHED_FIFO). By turns, %d times %s for each line and filter, medians;
the ratio is the median of those within a turn. The agent is stopped meanwhile.`, size.bursts, size.burst),
	}
	t := table{head: []string{"", "no filter, k/s"}}
	for _, f := range filters[1:] {
		t.head = append(t.head, f+", k/s", "of none", "least", "most")
	}
	for _, w := range ways {
		none := rates[w.name+filters[0]]
		row := []string{w.name, fmt.Sprintf("%.0f", median(none)/1000)}
		for _, f := range filters[1:] {
			with := rates[w.name+f]
			ratios := make([]float64, len(with))
			for i := range with {
				ratios[i] = with[i] / none[i]
			}
			row = append(row, fmt.Sprintf("%.0f", median(with)/1000), fmt.Sprintf("%.2f", median(ratios)), fmt.Sprintf("%.2f", slices.Min(ratios)), fmt.Sprintf("%.2f", slices.Max(ratios)))
		}
		t.row(row...)
	}
	s.tables = []table{t}
	s.notes = []string{strings.TrimSpace(`
The tables have no entries of guests' and no chain that is longer with more of them; an attach and a detach leave them as they are.`)}
	return s
}

// median returns the median of a list, the higher of two. The list is not empty.
func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
