package core

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is an Ethernet frame as a [Sniffer] saw it.
type Frame struct {
	At       time.Time // the kernel's time stamp
	Outgoing bool      // sent by the host; otherwise received
	Data     []byte
}

// Sniffer captures the frames on one link of a host, in both directions.
type Sniffer struct {
	file *os.File
	raw  syscall.RawConn // of file
	keep func(Frame) bool
	done chan struct{}

	mu      sync.Mutex
	data    []byte // of the frame that is read
	control []byte // of that one
	frames  []Frame
	lost    error // why the capture ended early, or dropped frames
	closing bool
}

// sniffBuffer is the kernel's buffer for frames while the sniffer is busy.
const sniffBuffer = 16 << 20

// Sniff captures the frames on a link of the host for which keep is true, all of
// them when it is nil, until Close. It sees every frame that passes after Sniff has
// returned. An empty link stands for all links, also later ones.
func (h *Host) Sniff(link string, keep func(Frame) bool) (*Sniffer, error) {
	return h.sniff(link, nil, keep)
}

// SniffUDP is Sniff for UDP datagrams over IPv4 to the ports, which the kernel picks: it
// drops none of them while much else passes.
func (h *Host) SniffUDP(link string, ports ...uint16) (*Sniffer, error) {
	pick := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jf: uint8(3 + len(ports))},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 23},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_UDP, Jf: uint8(1 + len(ports))},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 36}, // of a header without options
	}
	for i, p := range ports {
		pick = append(pick, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(p), Jt: uint8(len(ports) - i)})
	}
	pick = append(pick, unix.SockFilter{Code: unix.BPF_RET}, unix.SockFilter{Code: unix.BPF_RET, K: 1 << 16})
	return h.sniff(link, pick, nil)
}

func (h *Host) sniff(link string, pick []unix.SockFilter, keep func(Frame) bool) (*Sniffer, error) {
	index := 0
	if link != "" {
		l, err := h.Link(link)
		if err != nil {
			return nil, err
		}
		index = l.Attrs().Index
	}
	var fd int
	err := h.Do(func() (err error) {
		fd, err = packetSocket(index, pick)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sniff %s of %s: %w", link, h.name, err)
	}
	s := &Sniffer{
		file: os.NewFile(uintptr(fd), "sniffer "+link), keep: keep, done: make(chan struct{}),
		data: make([]byte, 65536), control: make([]byte, 256),
	}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	go s.read()
	return s, nil
}

func packetSocket(index int, pick []unix.SockFilter) (int, error) {
	// Protocol 0: nothing arrives before the socket is bound to the link.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if len(pick) > 0 {
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(pick)), Filter: &pick[0]}); err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
		}
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sniffBuffer) != nil { // without root
		err = os.NewSyscallError("setsockopt SO_RCVBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, sniffBuffer))
	}
	err = errors.Join(err,
		os.NewSyscallError("setsockopt SO_TIMESTAMPNS", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index})),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// read takes frames until the capture ends.
func (s *Sniffer) read() {
	defer close(s.done)
	var ended error
	err := s.raw.Read(func(fd uintptr) bool {
		ended = s.take(int(fd))
		return ended != nil
	})
	s.fail(errors.Join(err, ended))
}

// take takes the frames that the kernel has for the sniffer. The error says that no more
// will come.
func (s *Sniffer) take(fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		f, err := readFrame(fd, s.data, s.control)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENETDOWN): // the link is down; frames may come again
			s.lost = errors.Join(s.lost, err)
		case err != nil:
			return err
		case s.keep == nil || s.keep(f):
			s.frames = append(s.frames, f)
		}
	}
}

func readFrame(fd int, data, control []byte) (Frame, error) {
	n, nc, _, from, err := unix.Recvmsg(fd, data, control, 0)
	if err != nil {
		return Frame{}, err
	}
	f := Frame{At: time.Now(), Data: slices.Clone(data[:n])}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	messages, _ := unix.ParseSocketControlMessage(control[:nc])
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			f.At = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return f, nil
}

func (s *Sniffer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing { // while closing, the error is that of the closed file
		s.lost = errors.Join(s.lost, err)
	}
}

// Frames returns the kept frames that passed before, in the order of the kernel.
func (s *Sniffer) Frames() []Frame {
	// Those that the kernel has and read did not take yet, as on a busy machine. What
	// fails here fails in read as well.
	_ = s.raw.Control(func(fd uintptr) { _ = s.take(int(fd)) })
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.frames)
}

// Wait waits for at least n kept frames, and returns them all.
func (s *Sniffer) Wait(ctx context.Context, n int) ([]Frame, error) {
	err := Until(ctx, func() error {
		if got := len(s.Frames()); got < n {
			return fmt.Errorf("%d of %d frames came", got, n)
		}
		return nil
	})
	return s.Frames(), err
}

// Close ends the capture. The error says why it may have missed frames: the
// link went, or the kernel had to drop some.
func (s *Sniffer) Close() error {
	_ = s.Frames() // takes what passed before
	if err := s.dropped(); err != nil {
		s.fail(err)
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.file.Close()
	<-s.done
	return s.lost
}

func (s *Sniffer) dropped() error {
	var stats *unix.TpacketStats
	var statsErr error
	err := s.raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(err, statsErr); err == nil && stats.Drops > 0 {
		err = fmt.Errorf("%d frames dropped", stats.Drops)
	}
	return err
}

// EtherType returns the frame's type (RFC 7042): 0x0800 is IPv4, 0x0806 ARP, 0x86dd
// IPv6, 0x8035 RARP.
func (f Frame) EtherType() uint16 {
	if len(f.Data) < 14 {
		return 0
	}
	return binary.BigEndian.Uint16(f.Data[12:])
}

// MACs returns the frame's source and destination.
func (f Frame) MACs() (from, to net.HardwareAddr) {
	if len(f.Data) < 14 {
		return nil, nil
	}
	return f.Data[6:12], f.Data[:6]
}

// Addrs returns the source and destination of an IPv4 or IPv6 packet, and the
// sender and target of an ARP one; otherwise zero Addrs.
func (f Frame) Addrs() (from, to netip.Addr) {
	at := func(offset, size int) netip.Addr {
		if len(f.Data) < 14+offset+size {
			return netip.Addr{}
		}
		a, _ := netip.AddrFromSlice(f.Data[14+offset:][:size])
		return a
	}
	switch f.EtherType() {
	case unix.ETH_P_IP:
		return at(12, 4), at(16, 4)
	case unix.ETH_P_IPV6:
		return at(8, 16), at(24, 16)
	case unix.ETH_P_ARP:
		return at(14, 4), at(24, 4)
	}
	return netip.Addr{}, netip.Addr{}
}

// Concerns reports whether the packet in the frame is from a or to a. An ARP packet
// also concerns the address that it asks for.
func (f Frame) Concerns(a netip.Addr) bool {
	from, to := f.Addrs()
	return a.IsValid() && (from == a || to == a)
}

// Echo is an ICMP (RFC 792) or ICMPv6 echo message (RFC 4443).
type Echo struct {
	Reply   bool // otherwise a request
	ID, Seq uint16
}

// Echo returns the echo message in the frame. It does not look behind IPv6 extension
// headers.
func (f Frame) Echo() (e Echo, ok bool) {
	const ethernet = 14
	if len(f.Data) <= ethernet {
		return e, false
	}
	packet := f.Data[ethernet:]
	var proto, request, reply byte
	size := 40
	switch f.EtherType() {
	case unix.ETH_P_IP:
		proto, request, reply, size = unix.IPPROTO_ICMP, 8, 0, 4*int(packet[0]&0xf)
	case unix.ETH_P_IPV6:
		proto, request, reply = unix.IPPROTO_ICMPV6, 128, 129
	default:
		return e, false
	}
	if len(packet) < size+8 || size < 20 {
		return e, false
	}
	next, message := packet[6], packet[size:]
	if f.EtherType() == unix.ETH_P_IP {
		next = packet[9]
	}
	if next != proto || message[0] != request && message[0] != reply {
		return e, false
	}
	return Echo{message[0] == reply, binary.BigEndian.Uint16(message[4:]), binary.BigEndian.Uint16(message[6:])}, true
}
