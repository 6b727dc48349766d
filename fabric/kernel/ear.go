package kernel

import (
	"errors"
	"os"

	"github.com/vmfabric/vmfabric/fabric"
	"golang.org/x/sys/unix"
)

// ear listens for the first frame from a guest that is about to arrive: QEMU
// sends some for the guest when it begins to run (RARP, RFC 903).
type ear struct {
	index int32
	mac   fabric.MAC // of the guest; zero: any
	file  *os.File
	stop  chan struct{}
	done  chan struct{}
}

// listen tells name on heard, once.
func listen(name string, index int32, mac fabric.MAC, heard chan<- string) (*ear, error) {
	f, err := packetSocket(index, unix.PACKET_IGNORE_OUTGOING)
	if err != nil {
		return nil, err
	}
	e := &ear{index: index, mac: mac, file: f, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(e.done)
		came := e.wait()
		f.Close()
		if !came {
			return
		}
		select {
		case heard <- name:
		case <-e.stop:
		}
	}()
	return e, nil
}

// wait returns when a frame of the guest's has come, or with false when the ear
// is closed.
func (e *ear) wait() (came bool) {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return false
	}
	frame := make([]byte, ethernetHeader)
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
				came = ok && ll.Pkttype != unix.PACKET_OUTGOING && n == len(frame) && (e.mac.IsZero() || e.mac == fabric.MAC(frame[6:12]))
				if came {
					return true
				}
			}
		}
	})
	return err == nil && came
}

func (e *ear) close() {
	close(e.stop)
	e.file.Close() // which may be closed already
	<-e.done
}
