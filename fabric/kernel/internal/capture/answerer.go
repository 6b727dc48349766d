package capture

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Answerer sends Ethernet frames to guests that may have just set their links up.
//
// A link that has just got its carrier drops what goes through its queue, until a worker of
// the kernel has put the queue in place (linkwatch), which a busy node does late; a guest
// asks at once. Until then frames go past the queue. They do not otherwise, because packet
// sockets, such as tcpdump's, do not see such frames.
type Answerer struct{ queued, direct *os.File }

// NewAnswerer opens the sockets of an Answerer.
func NewAnswerer() (*Answerer, error) {
	queued, err := Socket(0)
	if err != nil {
		return nil, err
	}
	direct, err := Socket(0, unix.PACKET_QDISC_BYPASS)
	if err != nil {
		return nil, errors.Join(err, queued.Close())
	}
	a := &Answerer{queued, direct}
	for _, f := range []*os.File{queued, direct} {
		_ = Control(f, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, packetBuffer) })
	}
	return a, nil
}

// Close closes the sockets.
func (a *Answerer) Close() error { return errors.Join(a.queued.Close(), a.direct.Close()) }

// Send sends a frame by a link. It does not wait for room in the link's queue.
func (a *Answerer) Send(index int32, frame []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: NetworkUint16(etherType(frame)), Ifindex: int(index)}
	file := a.queued
	if !running(a.queued, index) {
		file = a.direct
	}
	return Control(file, func(fd int) error { return unix.Sendto(fd, frame, 0, to) })
}
