package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// packetBuffer holds some thousand frames.
const packetBuffer = 8 << 20

// A packet(7) socket gives and takes frames with a header that describes the work
// that is left to the kernel (PACKET_VNET_HDR, struct virtio_net_hdr of
// <linux/virtio_net.h>). A frame from a socket of this machine, or from another
// guest, may have no checksum yet, and may have 64 KiB, which the kernel has to cut
// into segments.
const (
	vnetHeader     = 10 // bytes
	vnetNeedsCsum  = 1  // VIRTIO_NET_HDR_F_NEEDS_CSUM, in its first byte
	vnetHdrLen     = 2  // offset in it of the length of the headers,
	vnetCsumStart  = 6  // and of the start of the checksummed part
	ethernetHeader = 14 // bytes
	maxFrame       = vnetHeader + ethernetHeader + 1<<16 + 4096
)

// Socket opens a packet socket on a link. With index 0 it only sends.
func Socket(index int32, options ...int) (*os.File, error) {
	// Protocol 0: nothing arrives before the socket is bound to the link.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("packet socket: %w; give the service CAP_NET_RAW, and AF_PACKET where RestrictAddressFamilies= is set", err)
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o, 1); err != nil && o != unix.PACKET_IGNORE_OUTGOING { // Linux 4.20
			unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if index != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer)
		err = errors.Join(
			os.NewSyscallError("setsockopt SO_TIMESTAMPNS", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
			os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: NetworkUint16(unix.ETH_P_ALL), Ifindex: int(index)})),
		)
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// running reports whether a link runs, by any socket: the kernel has then put its queue in
// place, and does not drop what is sent to it.
func running(socket *os.File, index int32) bool {
	request, err := unix.NewIfreq("")
	if err != nil {
		return true
	}
	request.SetUint32(uint32(index))
	err = Control(socket, func(fd int) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, request); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request)
	})
	return err != nil || request.Uint16()&unix.IFF_RUNNING != 0
}

// NetworkUint16 is htons.
func NetworkUint16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// etherType returns the type of an Ethernet frame.
func etherType(frame []byte) uint16 {
	if len(frame) < ethernetHeader {
		return 0
	}
	return binary.BigEndian.Uint16(frame[12:])
}

// addresses returns the IP source and destination of an Ethernet frame, or zero Addrs.
func addresses(frame []byte) (from, to netip.Addr) {
	var at, size int
	switch etherType(frame) {
	case unix.ETH_P_IP:
		at, size = ethernetHeader+12, 4
	case unix.ETH_P_IPV6:
		at, size = ethernetHeader+8, 16
	}
	if size == 0 || len(frame) < at+2*size {
		return netip.Addr{}, netip.Addr{}
	}
	from, _ = netip.AddrFromSlice(frame[at : at+size])
	to, _ = netip.AddrFromSlice(frame[at+size : at+2*size])
	return from, to
}

// Hop is the way of frames to a neighbour.
type Hop struct {
	Index    int32 // of the link
	From, To fabric.MAC
	Bare     bool // the link's frames have no Ethernet header
}

// Sender sends frames.
type Sender struct{ file *os.File }

// NewSender opens the socket of a Sender.
func NewSender() (*Sender, error) {
	f, err := Socket(0, unix.PACKET_VNET_HDR)
	if err != nil {
		return nil, err
	}
	_ = Control(f, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, packetBuffer) })
	return &Sender{file: f}, nil
}

// Close closes the socket.
func (s *Sender) Close() error { return s.file.Close() }

const (
	// sendPatience is how long a frame waits for room in the link's queue.
	sendPatience = 20 * time.Millisecond
	sendAgain    = 100 * time.Microsecond
)

// Send sends a recorded frame to a neighbour. It changes the frame.
func (s *Sender) Send(ctx context.Context, h Hop, f Frame) error {
	frame := f.data
	to := &unix.SockaddrLinklayer{Protocol: NetworkUint16(etherType(frame[vnetHeader:])), Ifindex: int(h.Index), Halen: 6}
	if h.Bare {
		if frame[0]&vnetNeedsCsum != 0 {
			shift(frame[vnetCsumStart:])
		}
		shift(frame[vnetHdrLen:])
		copy(frame[ethernetHeader:], frame[:vnetHeader])
		frame = frame[ethernetHeader:]
		to.Halen = 0
	} else {
		copy(frame[vnetHeader:], h.To[:])
		copy(frame[vnetHeader+6:], h.From[:])
		copy(to.Addr[:], h.To[:])
	}
	room := time.NewTicker(sendAgain)
	defer room.Stop()
	for begin := time.Now(); ; {
		err := Control(s.file, func(fd int) error { return unix.Sendto(fd, frame, 0, to) })
		full := errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN)
		if !full || time.Since(begin) > sendPatience {
			return err
		}
		select {
		case <-room.C:
		case <-ctx.Done():
			return err
		}
	}
}

// shift subtracts an Ethernet header from a length in a virtio_net_hdr.
func shift(b []byte) {
	if v := binary.NativeEndian.Uint16(b); v >= ethernetHeader {
		binary.NativeEndian.PutUint16(b, v-ethernetHeader)
	}
}

// Control calls do with the descriptor of a socket.
func Control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}
