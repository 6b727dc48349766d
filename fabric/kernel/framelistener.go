package kernel

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// frameListener listens at a link for the first frame of a guest.
type frameListener struct {
	index int32
	mac   fabric.MAC // of the guest, where that is what it is known by; zero: any
	file  *os.File
	stop  chan struct{}
	done  chan struct{}
}

// listen tells on heard, once, the name of a port whose guest is about to
// arrive, when it has begun to run: QEMU sends a frame for it then (RARP, RFC 903).
func listen(name string, index int32, mac fabric.MAC, heard chan<- string) (*frameListener, error) {
	e, err := openFrameListener(index, ethernetHeader, func(frame []byte) bool {
		return len(frame) == ethernetHeader && (mac.IsZero() || mac == fabric.MAC(frame[6:12]))
	}, func(e *frameListener) {
		select {
		case heard <- name:
		case <-e.stop:
		}
	})
	if err == nil {
		e.mac = mac
	}
	return e, err
}

// openFrameListener calls tell, once, when a frame has come of which the first bytes are
// those of the guest.
func openFrameListener(index int32, bytes int, theirs func(frame []byte) bool, tell func(*frameListener)) (*frameListener, error) {
	f, err := packetSocket(index, unix.PACKET_IGNORE_OUTGOING)
	if err != nil {
		return nil, err
	}
	e := &frameListener{index: index, file: f, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(e.done)
		defer f.Close() // last: the kernel takes its time for it
		if e.wait(make([]byte, bytes), theirs) {
			tell(e)
		}
	}()
	return e, nil
}

// wait returns when a frame of the guest's has come, or with false when the frame listener
// is closed.
func (e *frameListener) wait(frame []byte, theirs func([]byte) bool) (came bool) {
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
				came = ok && ll.Pkttype != unix.PACKET_OUTGOING && theirs(frame[:n])
				if came {
					return true
				}
			}
		}
	})
	return err == nil && came
}

func (e *frameListener) close() {
	close(e.stop)
	e.file.Close() // which may be closed already
	<-e.done
}
