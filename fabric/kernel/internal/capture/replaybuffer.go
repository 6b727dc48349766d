package capture

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// recordAtMost and recordBytes bound the frames that a replay buffer keeps.
	recordAtMost = 32768 // frames
	recordBytes  = 32 << 20
	// recordFor is the greatest age of frames at a diversion: older ones are not
	// sent again, unless they wait in the port's queue. It covers how far the guest
	// was behind with what its hypervisor had read when it stopped, the time from
	// there until this process had a processor for the diversion, and a margin. Tests
	// with ten processes for each processor saw 0.6 s and 0.3 s.
	recordFor = time.Second
	// waitingFor is the greatest age of frames that wait in the port's queue. The
	// queue ends with the hypervisor's process, and all that is in it is lost there.
	waitingFor = 10 * time.Second
	// countEvery is how often the buffer reads the counts of the link, while frames
	// come.
	countEvery = 50 * time.Millisecond
	// recordBuffer holds the frames that come while this process has no processor:
	// 10,000 full frames a second for recordFor, with the kernel's overhead.
	recordBuffer = 32 << 20
)

// Buffer keeps the last IP packets that went into a port, and knows when the
// guest was last heard. Run takes them from the kernel; who opens a buffer has it run,
// and closes it.
type Buffer struct {
	Index  int32
	file   *os.File
	counts func() (Counts, error) // of the link
	done   chan struct{}

	mu   sync.Mutex
	kept recording
}

// open locks what is kept for the caller, until it calls done.
func (r *Buffer) open() (kept *recording, done func()) {
	r.mu.Lock()
	return &r.kept, r.mu.Unlock
}

// recording has the frames of a [Buffer]. A goroutine that has it, by
// [Buffer.open], has it alone.
type recording struct {
	buffer  []byte
	control []byte
	frames  []Frame // in their order
	bytes   int
	pace    pace
	queue   queue
}

// Frame is a packet that went into a port.
type Frame struct {
	at     time.Time
	number uint64 // of all frames that went into the port since the recording began
	data   []byte // behind a virtio_net_hdr
}

// Record opens a buffer of the packets that go into a link from now on. counts returns
// the kernel's counts of that link.
func Record(index int32, counts func() (Counts, error)) (*Buffer, error) {
	f, err := Socket(index, unix.PACKET_VNET_HDR)
	if err != nil {
		return nil, err
	}
	_ = Control(f, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recordBuffer) })
	return &Buffer{Index: index, file: f, counts: counts, done: make(chan struct{}), kept: recording{buffer: make([]byte, maxFrame), control: make([]byte, 256)}}, nil
}

// Close ends Run, and waits for it.
func (r *Buffer) Close() {
	r.file.Close()
	<-r.done
}

// readAtOnce is how many frames the buffer reads before it lets go of its lock.
const readAtOnce = 64

// Run takes the packets from the kernel until Close.
func (r *Buffer) Run() {
	defer close(r.done)
	raw, err := r.file.SyscallConn()
	if err != nil {
		return
	}
	var counted time.Time
	_ = raw.Read(func(fd uintptr) bool {
		var counts *Counts
		if time.Since(counted) >= countEvery {
			counts, counted = r.count(), time.Now()
		}
		for {
			kept, done := r.open()
			more, err := kept.read(int(fd), readAtOnce)
			if !more && counts != nil {
				kept.queue.update(*counts)
			}
			done()
			if err != nil || !more {
				return err != nil
			}
		}
	}) // until the file is closed
}

// count reads the counts of the link; nil if that is gone.
func (r *Buffer) count() *Counts {
	c, err := r.counts()
	if err != nil {
		return nil
	}
	return &c
}

// read takes up to n frames from the socket and reports whether there may be more.
func (r *recording) read(fd, n int) (more bool, err error) {
	for range n {
		size, nc, _, from, err := unix.Recvmsg(fd, r.buffer, r.control, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINVAL):
			// The link went down, or the header cannot describe a frame.
			continue
		case err != nil:
			return false, err
		}
		at := timestamp(r.control[:nc])
		ll, ok := from.(*unix.SockaddrLinklayer)
		switch {
		case !ok:
		case ll.Pkttype != unix.PACKET_OUTGOING:
			r.pace.heard(at)
		default:
			number := r.queue.into
			r.queue.into++
			if size > vnetHeader && (Frame{data: r.buffer[:size]}).Destination().IsValid() {
				r.pace.sent(at)
				r.keep(Frame{at, number, slices.Clone(r.buffer[:size])})
			}
		}
	}
	return true, nil
}

// keep appends a frame, and drops the oldest frames that are too many or too old.
func (r *recording) keep(f Frame) {
	r.frames = append(r.frames, f)
	r.bytes += len(f.data)
	old := func(one Frame) bool {
		return one.at.Before(f.at.Add(-waitingFor)) || one.at.Before(f.at.Add(-recordFor)) && !r.queue.waits(one.number)
	}
	gone := 0
	for ; len(r.frames)-gone > recordAtMost || r.bytes > recordBytes || old(r.frames[gone]); gone++ {
		r.bytes -= len(r.frames[gone].data)
		r.frames[gone] = Frame{}
	}
	r.frames = r.frames[gone:]
}

func timestamp(control []byte) time.Time {
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// catchUp reads the frames that the kernel has for the replay buffer.
func (r *recording) catchUp(file *os.File) {
	// The only error is that of a closed socket: then the buffer already has all
	// frames.
	_ = Control(file, func(fd int) error {
		_, err := r.read(fd, recordAtMost)
		return err
	})
}

// ReplayFrom returns the time from which on a guest that has stopped by now may not
// have taken the frames to it: the hypervisor has not read them, or the guest was
// behind with what had been read.
func (r *Buffer) ReplayFrom(now time.Time) time.Time {
	counts := r.count()
	kept, done := r.open()
	defer done()
	kept.catchUp(r.file)
	if counts != nil {
		kept.queue.update(*counts)
	}
	since := now.Add(-recordFor)
	if taken := kept.pace.taken(); taken.After(since) {
		since = taken
	}
	for _, f := range kept.frames {
		if f.at.Before(since) && kept.queue.waits(f.number) {
			since = f.at.Add(-reaction) // some frames came between the counts and the last one that the buffer had seen
			break
		}
	}
	return since
}

// Take removes the frames since a time that fit from the buffer, and returns them.
func (r *Buffer) Take(since time.Time, fits func(Frame) bool) (taken []Frame) {
	kept, done := r.open()
	defer done()
	kept.catchUp(r.file)
	kept.frames = slices.DeleteFunc(kept.frames, func(f Frame) bool {
		chosen := !f.at.Before(since) && fits(f)
		if chosen {
			taken = append(taken, f)
			kept.bytes -= len(f.data)
		}
		return chosen
	})
	return taken
}

// Type returns the EtherType.
func (f Frame) Type() uint16 { return etherType(f.data[vnetHeader:]) }

// Destination returns the IP destination.
func (f Frame) Destination() netip.Addr {
	_, to := addresses(f.data[vnetHeader:])
	return to
}

// Source returns the IP source.
func (f Frame) Source() netip.Addr {
	from, _ := addresses(f.data[vnetHeader:])
	return from
}

// Bytes returns the length from the IP header on.
func (f Frame) Bytes() int { return len(f.data) - vnetHeader - ethernetHeader }
