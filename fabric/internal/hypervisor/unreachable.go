package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"

	"github.com/vmfabric/vmfabric/internal/oneline"
)

// The reasons why a connection to a daemon is of no use.
var (
	ErrTimeout = errors.New("timed out")
	ErrClosed  = errors.New("it closed the connection")
)

// Unreachable is the error that no daemon answers on a socket, or none that works.
type Unreachable struct {
	Source string // such as libvirt
	Socket string
	Err    error
	Remedy string // such as "start libvirtd"
}

// NewUnreachable makes an error with the usual remedy for a daemon.
func NewUnreachable(source, daemon, socket string, err error) *Unreachable {
	remedy := "start " + daemon
	switch {
	case errors.Is(err, fs.ErrPermission):
		remedy = "run as root"
	case errors.Is(err, ErrTimeout):
		remedy = "restart " + daemon
	}
	return &Unreachable{source, socket, err, remedy}
}

func (e *Unreachable) Unwrap() error { return e.Err }
func (e *Unreachable) Error() string { return e.since("") }

// since returns the error's text with the time since when it holds, such as " since
// 12:03:04".
func (e *Unreachable) since(when string) string {
	return fmt.Sprintf("%s: no answer on %s%s (%s); %s", e.Source, e.Socket, when, oneline.Of(e.Err.Error()), e.Remedy)
}

// Reason shortens an error of a connection to its cause. Reason of nil is nil.
func Reason(err error) error {
	var errno syscall.Errno
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &op) && op.Op == "dial" && errors.As(err, &errno):
		return fmt.Errorf("connect: %w", errno)
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return ErrClosed
	}
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}
