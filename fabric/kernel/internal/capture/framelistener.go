package capture

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// Listener listens at a link for the first frame of a guest. Run does so; who opens one
// has it run, and closes it.
type Listener struct {
	Index  int32
	MAC    fabric.MAC // the guest's MAC, if [Listen] was given it; zero: any
	file   *os.File
	bytes  int
	theirs func(frame []byte) bool
	report func(*Listener)
	stop   chan struct{}
	done   chan struct{}
}

// Listen opens a listener that sends the name of a port on heard, once, when the guest
// that is about to arrive there has begun to run: then QEMU sends a frame for it (RARP,
// RFC 903).
func Listen(name string, index int32, mac fabric.MAC, heard chan<- string) (*Listener, error) {
	e, err := Open(index, ethernetHeader, func(frame []byte) bool {
		return len(frame) == ethernetHeader && (mac.IsZero() || mac == fabric.MAC(frame[6:12]))
	}, func(e *Listener) {
		select {
		case heard <- name:
		case <-e.stop:
		}
	})
	if err == nil {
		e.MAC = mac
	}
	return e, err
}

// Open opens a listener that calls report, once, when a frame has come for which theirs
// returns true. theirs gets as many of its first bytes as bytes says.
func Open(index int32, bytes int, theirs func(frame []byte) bool, report func(*Listener)) (*Listener, error) {
	f, err := Socket(index, unix.PACKET_IGNORE_OUTGOING)
	if err != nil {
		return nil, err
	}
	return &Listener{
		Index: index, file: f, bytes: bytes, theirs: theirs, report: report, stop: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// Run listens until the frame has come and the link runs, or Close. The kernel keeps the
// frames that come before.
func (e *Listener) Run() {
	defer close(e.done)
	defer e.file.Close() // after report: closing takes the kernel some time
	if e.wait() && e.awaitRunning() {
		e.report(e)
	}
}

// runningLook is how often awaitRunning looks.
const runningLook = 2 * time.Millisecond

// awaitRunning waits until the link runs, or for [fabric.ListenFor]. A guest that has just
// set its link up may be heard before: what then came for it, such as what another node
// sends it again, would be lost. It returns false when the frame listener is closed.
func (e *Listener) awaitRunning() bool {
	enough := time.Now().Add(fabric.ListenFor)
	look := time.NewTicker(runningLook)
	defer look.Stop()
	for !running(e.file, e.Index) && time.Now().Before(enough) {
		select {
		case <-e.stop:
			return false
		case <-look.C:
		}
	}
	return true
}

// wait waits for a frame of the guest. It returns false when the frame listener is
// closed.
func (e *Listener) wait() (came bool) {
	frame := make([]byte, e.bytes)
	raw, err := e.file.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, from, err := unix.Recvfrom(int(fd), frame, 0)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // the latter once, when the link goes down
			case err != nil:
				return true
			default:
				ll, ok := from.(*unix.SockaddrLinklayer)
				came = ok && ll.Pkttype != unix.PACKET_OUTGOING && e.theirs(frame[:n])
				if came {
					return true
				}
			}
		}
	})
	return err == nil && came
}

// Close ends Run, and waits for it.
func (e *Listener) Close() {
	close(e.stop)
	e.file.Close() // Run may have closed it already
	<-e.done
}

// Closed is closed by Close.
func (e *Listener) Closed() <-chan struct{} { return e.stop }

// Ask sends frames again and again, for [fabric.ListenFor] or until over is closed.
// It reports whether it did so for the whole time.
func (e *Listener) Ask(frames [][]byte, over <-chan struct{}) bool {
	again, enough := time.NewTicker(askEvery), time.NewTimer(fabric.ListenFor)
	defer again.Stop()
	defer enough.Stop()
	for {
		for _, f := range frames {
			_, _ = e.file.Write(f) // the link may have gone
		}
		select {
		case <-over:
			return false
		case <-enough.C:
			return true
		case <-again.C:
		}
	}
}

// Headers is where the target of a neighbour advertisement ends (RFC 4861, 4.4).
const Headers = ethernetHeader + 40 + 24

// SpeaksFrom reports whether a frame is from one of the addresses of a NIC, or
// asks whether anybody else has it (RFC 5227, RFC 4862).
func SpeaksFrom(frame []byte, nic fabric.NIC) bool {
	if len(frame) < ethernetHeader {
		return false
	}
	body := frame[ethernetHeader:]
	var addresses []netip.Addr
	add := func(at, size int) {
		if a, ok := netip.AddrFromSlice(body[at:min(at+size, len(body))]); ok {
			addresses = append(addresses, a)
		}
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		if len(body) < 28 {
			return false
		}
		add(14, 4)
		if addresses[0].IsUnspecified() {
			add(24, 4)
		}
	case unix.ETH_P_IP:
		if len(body) < 20 {
			return false
		}
		add(12, 4)
	case unix.ETH_P_IPV6:
		if len(body) < 40 {
			return false
		}
		add(8, 16)
		const solicitation, advertisement = 135, 136
		if len(body) < 64 || body[6] != unix.IPPROTO_ICMPV6 {
			break
		}
		if t := body[40]; t == advertisement || t == solicitation && addresses[0].IsUnspecified() {
			add(48, 16)
		}
	}
	return slices.ContainsFunc(addresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(nic.Prefixes(), func(p netip.Prefix) bool { return p.Contains(a) })
	})
}
