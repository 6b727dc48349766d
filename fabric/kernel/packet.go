package kernel

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

// Frames are taken and sent by packet(7) sockets, with a header that says what
// the kernel has still to do to them (PACKET_VNET_HDR, struct virtio_net_hdr of
// <linux/virtio_net.h>): a frame from a socket of this machine, or from another
// guest, may have no checksum yet, and may be of 64 KiB, to be cut into segments.
const (
	vnetHeader     = 10 // bytes
	vnetNeedsCsum  = 1  // VIRTIO_NET_HDR_F_NEEDS_CSUM, in its first byte
	vnetHdrLen     = 2  // where in it are: the length of the headers,
	vnetCsumStart  = 6  // and where the checksummed begins
	ethernetHeader = 14 // bytes
	maxFrame       = vnetHeader + ethernetHeader + 1<<16 + 4096
)

// packetSocket opens a packet socket on a link; index 0 is for one that only sends.
func packetSocket(index int32, options ...int) (*os.File, error) {
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
			os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkUint16(unix.ETH_P_ALL), Ifindex: int(index)})),
		)
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// networkUint16 is htons.
func networkUint16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// etherType gives the type of an Ethernet frame.
func etherType(frame []byte) uint16 {
	if len(frame) < ethernetHeader {
		return 0
	}
	return binary.BigEndian.Uint16(frame[12:])
}

// destination gives the IP destination of an Ethernet frame, or the zero Addr.
func destination(frame []byte) netip.Addr {
	var at, size int
	switch etherType(frame) {
	case unix.ETH_P_IP:
		at, size = ethernetHeader+16, 4
	case unix.ETH_P_IPV6:
		at, size = ethernetHeader+24, 16
	}
	if size == 0 || len(frame) < at+size {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(frame[at : at+size])
	return a
}

// hop is how frames get to a neighbour.
type hop struct {
	index    int32
	from, to fabric.MAC
	bare     bool // the link's frames have no Ethernet header
}

// sender sends frames that were recorded.
type sender struct{ file *os.File }

func newSender() (*sender, error) {
	f, err := packetSocket(0, unix.PACKET_VNET_HDR)
	if err != nil {
		return nil, err
	}
	_ = control(f, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, packetBuffer) })
	return &sender{file: f}, nil
}

func (s *sender) close() error { return s.file.Close() }

// sendPatience is how long a frame waits for room in the link's queue.
const (
	sendPatience = 20 * time.Millisecond
	sendAgain    = 100 * time.Microsecond
)

// send sends a recorded frame, which it changes, to a neighbour.
func (s *sender) send(ctx context.Context, h hop, frame []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: networkUint16(etherType(frame[vnetHeader:])), Ifindex: int(h.index), Halen: 6}
	if h.bare {
		if frame[0]&vnetNeedsCsum != 0 {
			shift(frame[vnetCsumStart:])
		}
		shift(frame[vnetHdrLen:])
		copy(frame[ethernetHeader:], frame[:vnetHeader])
		frame = frame[ethernetHeader:]
		to.Halen = 0
	} else {
		copy(frame[vnetHeader:], h.to[:])
		copy(frame[vnetHeader+6:], h.from[:])
		copy(to.Addr[:], h.to[:])
	}
	for begin := time.Now(); ; {
		err := control(s.file, func(fd int) error { return unix.Sendto(fd, frame, 0, to) })
		full := errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN)
		if !full || time.Since(begin) > sendPatience || pause(ctx, sendAgain) != nil {
			return err
		}
	}
}

// shift takes an Ethernet header off a length of a virtio_net_hdr.
func shift(b []byte) {
	if v := nativeUint16(b); v >= ethernetHeader {
		putUint16(b, v-ethernetHeader)
	}
}

func control(f *os.File, do func(fd int) error) error {
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
