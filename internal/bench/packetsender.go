package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// discard is the UDP destination port of the packets (RFC 863).
const discard = 9

// atOnce packets are sent in one call, or in a row.
const packetsAtOnce = 64

// frameSizes are those of IPv4's packets with their Ethernet headers; IPv6's are as much
// longer as its header is.
var frameSizes = []int{64, 1400}

// way is a direction through a node, of one family and size.
type way struct {
	key
	send    func() error           // some packets
	arrived func() (uint64, error) // counts what came in at the end
	close   func() error
}

// key names a way at each node.
type key struct {
	kind   fabric.Kind // of the guest's port
	octets int
	from   bool // from the guest, not to it
	v6     bool
}

func (k key) name() string {
	return fmt.Sprintf("%s, %d bytes, %s the guest, %s", k.kind, k.octets, map[bool]string{true: "from", false: "to"}[k.from], map[bool]string{true: "IPv6", false: "IPv4"}[k.v6])
}

func (k key) payload() []byte { return make([]byte, k.octets-14-20-8) }

// datagrams sends by a socket of a host.
func datagrams(h *core.Host, src, dst netip.Addr, payload []byte) (send, done func() error, err error) {
	var conn *net.UDPConn
	err = h.Do(func() (err error) {
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, discard)))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	four, six := make([]ipv4.Message, packetsAtOnce), make([]ipv6.Message, packetsAtOnce)
	for i := range packetsAtOnce {
		four[i].Buffers, six[i].Buffers = [][]byte{payload}, [][]byte{payload}
	}
	write := func(from int) (int, error) { return ipv4.NewPacketConn(conn).WriteBatch(four[from:], 0) }
	if dst.Is6() {
		write = func(from int) (int, error) { return ipv6.NewPacketConn(conn).WriteBatch(six[from:], 0) }
	}
	return func() error {
		for n := 0; n < packetsAtOnce; { // fewer fit into the socket's buffer at once
			some, err := write(n)
			if err != nil {
				return err
			}
			n += some
		}
		return nil
	}, conn.Close, nil
}

// frames writes a frame to a tap, again and again.
func frames(tap *os.File, k key, gateway fabric.MAC, src, dst netip.Addr) func() error {
	udp := packets.UDP(src, dst, discard, discard, k.payload())
	ip := packets.IP{Source: src, Destination: dst, Protocol: unix.IPPROTO_UDP, Hops: 64, Payload: udp}
	frame := packets.Ethernet(gateway, [6]byte{2, 0, 0, 0, 0, 1}, packets.EtherType(src), ip.Bytes())
	fd := int(tap.Fd())
	return func() error {
		for range packetsAtOnce {
			if _, err := unix.Write(fd, frame); err != nil {
				return err
			}
		}
		return nil
	}
}

// drained is a sender to a tap that reads from it what it sent, and counts that.
func drained(tap *os.File, send func() error) (both func() error, arrived func() (uint64, error)) {
	buffer, seen, fd := make([]byte, 2048), uint64(0), int(tap.Fd())
	read := func() error {
		for {
			n, err := unix.Read(fd, buffer)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return nil
			case err != nil:
				return err
			case isDiscarded(buffer[:n]):
				seen++
			}
		}
	}
	return func() error { return errors.Join(send(), read()) }, func() (uint64, error) { err := read(); return seen, err }
}

// isDiscarded reports whether a frame is one of the measured packets.
func isDiscarded(frame []byte) bool {
	switch {
	case len(frame) >= 38 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP:
		return frame[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(frame[36:]) == discard
	case len(frame) >= 58 && binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IPV6:
		return frame[20] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(frame[56:]) == discard
	}
	return false
}

// received counts the packets that came in by a link.
func received(h *core.Host, link string) func() (uint64, error) {
	return func() (uint64, error) {
		l, err := h.Link(link)
		if err != nil {
			return 0, err
		}
		return l.Attrs().Statistics.RxPackets, nil
	}
}

// sender is a thread that stays on one processor, with all of it for itself if it may.
type sender struct {
	work   chan func()
	why    error // it has no real-time priority
	cycles int   // a counter of the processor's cycles; below 0: there is none
}

func newSender() *sender {
	s := &sender{work: make(chan func())}
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its goroutine
		var mine unix.CPUSet
		mine.Set(runtime.NumCPU() - 1)
		s.why = unix.SchedSetaffinity(0, &mine)
		if s.why == nil {
			s.why = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		}
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_CPU_CYCLES, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
		var err error
		if s.cycles, err = unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC); err != nil {
			s.cycles = -1
		}
		close(ready)
		for f := range s.work {
			f()
		}
	}()
	<-ready
	return s
}

func (s *sender) close() {
	close(s.work)
	if s.cycles >= 0 {
		_ = unix.Close(s.cycles)
	}
}

// unit says what the costs are.
func (s *sender) unit() string {
	if s.cycles >= 0 {
		return "cycles"
	}
	return "nanoseconds of processor time (there are no counters of cycles here)"
}

// used returns what the calling thread has used of its processor. What the network does
// for its packets is in it.
func (s *sender) used() (float64, error) {
	if s.cycles >= 0 {
		var b [8]byte
		_, err := unix.Read(s.cycles, b[:])
		return float64(binary.NativeEndian.Uint64(b[:])), err
	}
	t, err := processorTime()
	return float64(t), err
}

func processorTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}

var errLost = errors.New("packets were lost")

// measure sends until it has used so much processor time, and returns the cost of a
// packet. On a machine that does other work as well packets can be lost, and it tries
// again.
func (s *sender) measure(ctx context.Context, w *way, d time.Duration) (cost float64, err error) {
	for range 5 {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if cost, err = s.try(w, d); !errors.Is(err, errLost) {
			return cost, err
		}
	}
	return 0, err
}

func (s *sender) try(w *way, d time.Duration) (cost float64, err error) {
	done := make(chan struct{})
	s.work <- func() {
		defer close(done)
		cost, err = s.burst(w, d)
	}
	<-done
	return cost, err
}

func (s *sender) burst(w *way, d time.Duration) (float64, error) {
	for range 3 { // the first packets look up neighbours and routes
		if err := w.send(); err != nil {
			return 0, err
		}
	}
	time.Sleep(time.Millisecond) // what is still on its way arrives
	first, err := w.arrived()
	if err != nil {
		return 0, err
	}
	began, err := processorTime()
	if err != nil {
		return 0, err
	}
	before, err := s.used()
	sent := uint64(0)
	for now := began; err == nil && (sent == 0 || now-began < d); now, err = processorTime() {
		if err := w.send(); err != nil {
			return 0, err
		}
		sent += packetsAtOnce
	}
	if err != nil {
		return 0, err
	}
	after, err := s.used()
	if err != nil {
		return 0, err
	}
	came, err := arrivals(w, first, sent)
	if err == nil && came < sent-sent/20 {
		err = fmt.Errorf("%w: %d of %d arrived", errLost, came, sent)
	}
	return (after - before) / float64(sent), err
}

// arrivals waits for the packets that were sent, and returns how many came.
func arrivals(w *way, first, sent uint64) (came uint64, err error) {
	for range 50 {
		now, err := w.arrived()
		if err != nil || now-first >= sent {
			return now - first, err
		}
		came = now - first
		time.Sleep(time.Millisecond)
	}
	return came, nil
}

// pass sends some packets, and returns how many of them arrived, without those few that
// hosts send by themselves.
func (s *sender) pass(ctx context.Context, w *way) (int, error) {
	first, err := w.arrived()
	if err != nil {
		return 0, err
	}
	if err := w.send(); err != nil {
		return 0, err
	}
	came, err := arrivals(w, first, packetsAtOnce)
	if came < packetsAtOnce/2 {
		came = 0
	}
	return int(came), errors.Join(err, ctx.Err())
}
