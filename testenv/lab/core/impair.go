package core

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Impairment is what a path does to frames, in each direction.
type Impairment struct {
	Loss  float64       // this part of them is lost, 0 to 1
	Delay time.Duration // each takes so long
	MTU   int           // packets that are larger are lost without a word; 0: none
}

// impaired is a piece of cable between the switch and a host that a process of the lab
// carries the frames over: kernels without netem can do no more than drop.
type impaired struct {
	files   []*os.File        // at the host's end, and at the other
	running [2]sync.WaitGroup // what carries on what comes there
}

// Impair puts an impairment between a host and the underlay, until the returned function
// is called. Nothing is lost by its coming and going; some frames may come twice.
func (l *Lab) Impair(h *Host, by Impairment) (undo func() error, err error) {
	sw, err := l.switchOf(h)
	if err != nil {
		return nil, err
	}
	bridge, err := sw.Link("br0")
	if err != nil {
		return nil, err
	}
	near, far := "i"+h.port[:min(len(h.port), 13)], "j"+h.port[:min(len(h.port), 13)]
	if err := l.Cable(sw, near, sw, far); err != nil {
		return nil, err
	}
	c := &impaired{}
	for _, name := range []string{h.port, far} {
		f, err := sw.frames(name)
		if err != nil {
			return nil, errors.Join(err, c.close(), sw.DeleteLink(near))
		}
		c.files = append(c.files, f)
	}
	for i, from := range c.files {
		c.running[i].Go(func() { carry(from, c.files[1-i], by) })
	}
	err = errors.Join(
		sw.onLink(near, "join the bridge", func(port netlink.Link) error { return sw.nl.LinkSetMaster(port, bridge) }),
		sw.onLink(h.port, "leave the bridge", sw.nl.LinkSetNoMaster),
	)
	undo = sync.OnceValue(func() error {
		return errors.Join(
			l.Reconnect(h), c.drain(0, 0), // what the host sends has its own way now
			sw.onLink(near, "leave the bridge", sw.nl.LinkSetNoMaster), c.drain(1, rest),
			c.close(), sw.DeleteLink(near),
		)
	})
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// rest is time for frames that nobody has read yet when the cable ends. A busy machine may
// stall meanwhile.
const rest = 300 * time.Millisecond

// drain ends what carries frames on that come at an end, after a while, once all of them
// are handed on.
func (c *impaired) drain(end int, after time.Duration) error {
	err := c.files[end].SetReadDeadline(time.Now().Add(after))
	c.running[end].Wait()
	return err
}

func (c *impaired) close() error {
	var err error
	for _, f := range c.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// vnetHeader is the length of what stands before each frame: how it is to be cut, and
// which checksum is not computed yet (struct virtio_net_hdr). Frames are handed on with
// it as they are.
const vnetHeader = 10

// frames opens all that a link of the host receives, and what is written is sent there.
func (h *Host) frames(link string) (*os.File, error) {
	l, err := h.Link(link)
	if err != nil {
		return nil, err
	}
	var fd int
	if err = h.Do(func() (err error) {
		fd, err = packetSocket(l.Attrs().Index, nil)
		return err
	}); err != nil {
		return nil, fmt.Errorf("frames of %s of %s: %w", link, h.name, err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt PACKET_IGNORE_OUTGOING", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)),
		os.NewSyscallError("setsockopt PACKET_VNET_HDR", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)),
	)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "frames "+link), nil
}

// mostCarried is how many frames wait on a path at a time.
const mostCarried = 1 << 14

// carry hands frames on until the deadline for reads, and those that had come by then.
func carry(from, to *os.File, by Impairment) {
	type late struct {
		due   time.Time
		frame []byte
	}
	waiting := make(chan late, mostCarried)
	var sender sync.WaitGroup
	sender.Go(func() {
		for l := range waiting {
			time.Sleep(time.Until(l.due))
			_, _ = to.Write(l.frame) // the link may be down, or gone
		}
	})
	buf := make([]byte, vnetHeader+1<<16)
	read := from.Read
	for left := mostCarried; left > 0; { // more may come all the time
		n, err := read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			read = func(buf []byte) (int, error) { left--; return come(from, buf) }
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil || rand.Float64() < by.Loss || by.MTU > 0 && sizeOf(buf[:n]) > by.MTU {
			continue
		}
		select {
		case waiting <- late{time.Now().Add(by.Delay), slices.Clone(buf[:n])}:
		default: // the path is full
		}
	}
	close(waiting)
	sender.Wait()
}

// come reads a frame that has come already, whatever the deadline: on a busy machine some
// lie there. The error is EAGAIN when there is none.
func come(from *os.File, buf []byte) (n int, err error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, unix.EAGAIN
	}
	var readErr error
	if err := raw.Control(func(fd uintptr) { n, readErr = unix.Read(int(fd), buf) }); err != nil {
		return 0, unix.EAGAIN
	}
	return n, readErr
}

// sizeOf returns the size of the packet in a frame, or that of the largest of those that
// it is cut into.
func sizeOf(b []byte) int {
	const gsoType, headerLen, gsoSize, ethernet = 1, 2, 4, 14
	if len(b) < vnetHeader+ethernet {
		return 0
	}
	if b[gsoType] == 0 {
		return len(b) - vnetHeader - ethernet
	}
	at := func(n int) int { return int(b[n]) | int(b[n+1])<<8 }
	return at(headerLen) - ethernet + at(gsoSize)
}
