package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
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

// message is struct mmsghdr of sendmmsg(2).
type message struct {
	unix.Msghdr
	_ uint32 // how much was sent
}

// datagrams sends by a socket of a host. Go's own sockets are watched by epoll, which
// every packet that leaves would wake.
func datagrams(h *core.Host, src, dst netip.Addr, payload []byte) (send, done func() error, err error) {
	fd := -1
	err = h.Do(func() (err error) {
		fd, err = connected(src, dst)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	part := unix.Iovec{Base: &payload[0]}
	part.SetLen(len(payload))
	all := make([]message, packetsAtOnce)
	for i := range all {
		all[i].Iov = &part
		all[i].SetIovlen(1)
	}
	return func() error {
		for n := 0; n < packetsAtOnce; {
			some, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&all[n])), uintptr(packetsAtOnce-n), 0, 0, 0)
			if errno != 0 && errno != unix.EINTR {
				return os.NewSyscallError("sendmmsg", errno)
			}
			if errno == 0 {
				n += int(some)
			}
		}
		return nil
	}, func() error { return unix.Close(fd) }, nil
}

// connected opens a UDP socket in the namespace of the calling thread.
func connected(src, dst netip.Addr) (fd int, err error) {
	family := unix.AF_INET
	var from, to unix.Sockaddr
	if dst.Is4() {
		from, to = &unix.SockaddrInet4{Addr: src.As4()}, &unix.SockaddrInet4{Addr: dst.As4(), Port: discard}
	} else {
		family, from, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: src.As16()}, &unix.SockaddrInet6{Addr: dst.As16(), Port: discard}
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if err = errors.Join(unix.Bind(fd, from), unix.Connect(fd, to)); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// frames writes a frame to a tap, again and again.
func frames(tap int, k key, gateway fabric.MAC, src, dst netip.Addr) func() error {
	udp := packets.UDP(src, dst, discard, discard, k.payload())
	ip := packets.IP{Source: src, Destination: dst, Protocol: unix.IPPROTO_UDP, Hops: 64, Payload: udp}
	frame := packets.Ethernet(gateway, [6]byte{2, 0, 0, 0, 0, 1}, packets.EtherType(src), ip.Bytes())
	return func() error {
		for range packetsAtOnce {
			if _, err := unix.Write(tap, frame); err != nil {
				return err
			}
		}
		return nil
	}
}

// drained is a sender to a tap that reads from it what it sent, and counts that.
func drained(tap int, send func() error) (both func() error, arrived func() (uint64, error)) {
	buffer, seen := make([]byte, 2048), uint64(0)
	read := func() error {
		for {
			n, err := unix.Read(tap, buffer)
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

// few packets come in at a link in a moment that nobody measures: for multicast groups,
// and from neighbor discovery.
const few = 4

// pass sends some packets, and returns how many of them arrived, without the
// few that hosts send by themselves.
func (s *sender) pass(ctx context.Context, w *way) (int, error) {
	first, err := w.arrived()
	if err != nil {
		return 0, err
	}
	if err := w.send(); err != nil {
		return 0, err
	}
	came, err := arrivals(w, first, packetsAtOnce)
	if came <= few {
		came = 0
	}
	return int(came), errors.Join(err, ctx.Err())
}
