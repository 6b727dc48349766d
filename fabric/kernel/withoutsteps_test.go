package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// patience is how long something may take that is to come, and enough how long nothing
// comes that is not to.
const patience, enough = 20 * time.Second, 200 * time.Millisecond

// await looks until it finds, for as long as the step deserves.
func (l *life) await(step string, found func() bool) error {
	bound := patience
	if _, off := l.off[step]; off {
		bound = enough
	}
	ctx, cancel := context.WithTimeout(l.Context(), bound)
	defer cancel()
	return core.Until(ctx, func() error {
		if !found() {
			return errors.New("nothing came")
		}
		return nil
	})
}

// plugIn opens the tap of a port, as its guest.
func (l *life) plugIn(p fabric.Port) {
	l.guest[p.Name] = wire{plugged(l.T, p.Name), fabric.MAC(link(l.T, p.Name).Attrs().HardwareAddr)}
	_ = l.await("", func() bool { return link(l.T, p.Name).Attrs().OperState == 6 }) // up
}

func (l *life) attach() error {
	err := l.d.Put(l.Context(), l.one)
	if err == nil {
		l.plugIn(l.one)
	}
	return err
}

func (l *life) attachTwo() error {
	err := l.d.Put(l.Context(), l.two)
	if err == nil {
		l.plugIn(l.two)
	}
	return err
}

func (l *life) altName() error {
	out, err := exec.CommandContext(l.Context(), "ip", "link", "show", l.one.Name).CombinedOutput()
	if err == nil && !strings.Contains(string(out), "altname "+l.one.FullPortName()) {
		err = fmt.Errorf("%s", out)
	}
	return err
}

// faults returns what is wrong with the ports that were put.
func (l *life) faults() error {
	states, err := l.d.Actual(l.Context())
	if err != nil {
		return err
	}
	if len(states) == 0 {
		return errors.New("no port is listed")
	}
	var errs []error
	for _, s := range states {
		if len(s.Faults) > 0 {
			errs = append(errs, fmt.Errorf("%s: %v", s.Name, s.Faults))
		}
	}
	return errors.Join(errs...)
}

// listed looks for a moment: what the kernel tells of an address may come late.
func (l *life) listed() (err error) {
	_ = l.await("", func() bool { err = l.faults(); return err == nil })
	return err
}

// again puts a port that is as it should be. Nothing of it goes, not for a moment either: an
// address that nobody makes again would go with the others.
func (l *life) again() error {
	const mark = "2001:db8:dead::1/128"
	ipIn(l.T, nil, "addr add "+mark+" nodad dev "+l.one.Name)
	if err := l.d.Put(l.Context(), l.one); err != nil {
		return err
	}
	out, err := exec.CommandContext(l.Context(), "ip", "-6", "addr", "show", "dev", l.one.Name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), mark) {
		return fmt.Errorf("the port lost its IPv6 addresses: %s (%v)", out, err)
	}
	ipIn(l.T, nil, "addr del "+mark+" dev "+l.one.Name)
	return nil
}

// repair takes a route and an address from a port, and puts it again.
func (l *life) repair() error {
	for _, a := range l.one.NIC.Addresses {
		ipIn(l.T, nil, "route del "+fabric.HostPrefix(a).String()+" dev "+l.one.Name)
	}
	ipIn(l.T, nil, "addr del 169.254.1.1/32 dev "+l.one.Name)
	err := l.faults()
	for _, want := range []string{"address 169.254.1.1 missing", "route " + fabric.HostPrefix(l.one.NIC.Addresses[0]).String() + " missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("%q is not among the faults: %w", want, err)
		}
	}
	if err := l.d.Put(l.Context(), l.one); err != nil {
		return err
	}
	return l.listed()
}

// abroad is a host of the Internet, with the port that its datagrams go to and come from.
func abroad(v4 bool) netip.Addr { return client[v4] }

// send sends a datagram with a text of its own from a guest's tap to the Internet, and
// reports whether it came there.
func (l *life) send(step string, from wire, mac fabric.MAC, source netip.Addr) error {
	text := fmt.Sprintf("%s %d", step, time.Now().UnixNano())
	frame := ipFrame(mac, source, abroad(source.Is4()), unix.IPPROTO_UDP, 64, packets.UDP(source, abroad(source.Is4()), 5000, 9, []byte(text)))
	_, err := from.Write(frame)
	require.NoError(l, err)
	return l.await(step, func() bool {
		return slices.ContainsFunc(waiting(l.T, l.world.File), func(f []byte) bool { return strings.Contains(string(f), text) })
	})
}

func familyStep(step string, v4 bool) string {
	return step + map[bool]string{true: " IPv4", false: " IPv6"}[v4]
}

// passes sends from the guest's own address.
func (l *life) passes(v4 bool) error {
	source := l.one.NIC.Addresses[map[bool]int{true: 0, false: 1}[v4]]
	return l.send(familyStep("packets", v4), l.guest[l.one.Name], l.one.NIC.MAC, source)
}

// forged sends from an address that is nobody's. What passes after it shows that it had
// its time.
func (l *life) forged(v4 bool) error {
	text, source := fmt.Sprint("forged ", time.Now().UnixNano()), second[v4]
	from := l.guest[l.one.Name]
	_, err := from.Write(ipFrame(l.one.NIC.MAC, source, abroad(v4), unix.IPPROTO_UDP, 64, packets.UDP(source, abroad(v4), 5000, 9, []byte(text))))
	require.NoError(l, err)
	mark := fmt.Sprint("honest ", time.Now().UnixNano())
	own := l.one.NIC.Addresses[map[bool]int{true: 0, false: 1}[v4]]
	_, err = from.Write(ipFrame(l.one.NIC.MAC, own, abroad(v4), unix.IPPROTO_UDP, 64, packets.UDP(own, abroad(v4), 5000, 9, []byte(mark))))
	require.NoError(l, err)
	passes := false
	if err := l.await("", func() bool {
		frames := waiting(l.T, l.world.File)
		has := func(text string) bool {
			return slices.ContainsFunc(frames, func(f []byte) bool { return strings.Contains(string(f), text) })
		}
		passes = passes || has(text)
		return has(mark)
	}); err != nil {
		return err
	}
	if passes {
		return errors.New("passes")
	}
	return nil
}

// filtered sends what the second guest's firewall drops.
func (l *life) filtered() error {
	from, there := l.guest[l.two.Name]
	if !there {
		return errors.New("no port")
	}
	for _, source := range l.two.NIC.Addresses {
		text := fmt.Sprint("filtered ", time.Now().UnixNano())
		_, err := from.Write(ipFrame(l.two.NIC.MAC, source, abroad(source.Is4()), unix.IPPROTO_UDP, 64, packets.UDP(source, abroad(source.Is4()), 5000, 9, []byte(text))))
		require.NoError(l, err)
		drops, err := l.d.Drops(l.Context())
		for end := time.Now().Add(patience); err == nil && !slices.ContainsFunc(drops[l.two.Name], func(d fabric.Drops) bool { return d.Reason == fabric.DropEgress }); {
			if time.Now().After(end) {
				return fmt.Errorf("from %s nothing was dropped", source)
			}
			drops, err = l.d.Drops(l.Context())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// answered asks for an address by DHCP.
func (l *life) answered() error {
	tap := l.guest[l.one.Name]
	_, err := tap.Write(discovery(l.T, l.one.NIC.MAC))
	require.NoError(l, err)
	return l.await("answer", func() bool {
		return slices.ContainsFunc(waiting(l.T, tap.File), is4(dhcpv4.MessageTypeOffer))
	})
}

func (l *life) counted() error {
	var failed error
	err := l.await("count", func() bool {
		var all []fabric.Traffic
		if all, failed = l.d.Traffic(l.Context()); failed != nil {
			return true
		}
		if err := l.send("packets IPv4", l.guest[l.one.Name], l.one.NIC.MAC, l.one.NIC.Addresses[0]); err != nil {
			failed = err
			return true
		}
		return slices.ContainsFunc(all, func(t fabric.Traffic) bool { return t.VM == l.one.VM && t.Sent.External.Packets > 0 })
	})
	return errors.Join(failed, err)
}

// divert diverts the first guest, to which something was sent that it did not take.
func (l *life) divert() error {
	for _, a := range l.one.NIC.Addresses {
		from := abroad(a.Is4())
		f := ipFrame(fabric.MAC{2, 0, 0, 0, 0, 0xfe}, from, a, unix.IPPROTO_UDP, 64, packets.UDP(from, a, 9, 5000, []byte("not taken")))
		copy(f, l.world.mac[:])
		_, err := l.world.Write(f)
		require.NoError(l, err)
	}
	time.Sleep(20 * time.Millisecond) // what waits in the tap is not ours to read
	done, err := l.d.Divert(l.Context(), []fabric.Port{l.one}, otherNode)
	l.sent = done.Resent
	if err != nil {
		return err
	}
	found, err := l.d.Diverted(l.Context())
	if err == nil && len(found) != len(l.one.NIC.Addresses) {
		err = fmt.Errorf("diverted are %v", found)
	}
	return errors.Join(err, l.d.Return(l.Context(), l.one.NIC.Prefixes()...))
}

func (l *life) resent() error {
	if l.sent < len(l.one.NIC.Addresses) {
		return fmt.Errorf("%d were sent again", l.sent)
	}
	return nil
}

// heard has the guest that arrives send its first frame.
func (l *life) heard() error {
	if _, err := execIP("link", "show", l.three.Name); err != nil {
		return errors.New("no port")
	}
	l.plugIn(l.three)
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, l.three.NIC.MAC[:]...)
	frame = append(frame, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3)
	_, err := l.guest[l.three.Name].Write(append(frame, make([]byte, 32)...))
	require.NoError(l, err)
	return l.await("hear", func() bool {
		select {
		case name := <-l.d.Heard():
			return name == l.three.Name
		default:
			return false
		}
	})
}

// learned puts a route to the guest of a node that has an IPv6 address only.
func (l *life) learned() error {
	f := openFIB(l.T)
	f.Put(netip.MustParsePrefix("203.0.113.77/32"), node2[false])
	var faults []string
	err := l.await("", func() bool {
		out, _ := execIP("-4", "route", "show", "203.0.113.77/32")
		faults = f.Diagnose(l.Context())
		return len(faults) > 0 || strings.Contains(string(out), "via inet6 "+node2[false].String())
	})
	if len(faults) > 0 {
		return errors.New(faults[0])
	}
	return err
}

// another puts a route where there is one of somebody else's, which stays.
func (l *life) another() error {
	const theirs = "203.0.113.78"
	ipIn(l.T, nil, fmt.Sprintf("route add %s via 10.10.0.1 metric %d proto 77", theirs, fabric.PeerMetric))
	f := openFIB(l.T)
	f.Put(netip.MustParsePrefix(theirs+"/32"), node2[true])
	err := l.await("", func() bool {
		return slices.ContainsFunc(f.Diagnose(l.Context()), func(line string) bool { return strings.Contains(line, "it is not ours") })
	})
	if out, _ := execIP("route", "show", theirs); !strings.Contains(string(out), "proto 77") {
		err = errors.Join(err, fmt.Errorf("it is %q", out))
	}
	return err
}

func (l *life) tried() error {
	faults, err := tryForwarding(l.Context(), l.d)
	for _, f := range faults {
		err = errors.Join(err, errors.New(f.Text))
	}
	return err
}

// restart closes the dataplane, and has another one take the ports over. A route of
// somebody else's by a port is nobody's fault, and stays.
func (l *life) restart() error {
	if err := l.d.Close(); err != nil {
		return err
	}
	const theirs = "198.51.100.99"
	ipIn(l.T, nil, "route add "+theirs+" dev "+l.one.Name+" proto 77")
	if err := l.open(); err != nil {
		return err
	}
	before := link(l.T, l.one.Name).Attrs().Index
	if err := l.d.Put(l.Context(), l.one); err != nil {
		return err
	}
	if link(l.T, l.one.Name).Attrs().Index != before {
		return errors.New("the port is another link")
	}
	var states []fabric.PortState
	err := l.await("", func() bool {
		var err error
		states, err = l.d.Actual(l.Context())
		require.NoError(l, err)
		i := slices.IndexFunc(states, func(s fabric.PortState) bool { return s.Name == l.one.Name })
		return i >= 0 && len(states[i].Faults) == 0
	})
	if err != nil {
		err = fmt.Errorf("%w: %+v", err, states)
	}
	if out, _ := execIP("route", "show", theirs); !strings.Contains(string(out), "proto 77") {
		err = errors.Join(err, errors.New("another's route is gone"))
	}
	return errors.Join(err, l.d.Close())
}

// noted compares what the doctor notes with what it should.
func (l *life) noted() error {
	if len(l.notes) == 0 && len(l.without) > 0 {
		return nil // it has no more to say than the dataplane
	}
	sweep(l.T)
	var found kernel.Probed
	for range 5 { // a busy machine may have no time for a trial
		found = kernel.ProbeFeatures(context.WithoutCancel(l.Context()))
		if !strings.Contains(strings.Join(found.Faults, "\n"), context.DeadlineExceeded.Error()) {
			break
		}
	}
	lines := found.Notes
	for _, want := range l.notes {
		i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, want) })
		if i < 0 {
			return fmt.Errorf("%q is not noted", want)
		}
		lines = slices.Delete(lines, i, i+1)
	}
	if len(lines)+len(found.Faults) > 0 {
		return fmt.Errorf("noted, too: %q, and faults: %q", lines, found.Faults)
	}
	return nil
}
