package hypervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// ErrTimeout is that a daemon did not answer in time.
var ErrTimeout = errors.New("timed out")

// Unreachable is that no daemon answers on a socket, or none that serves.
type Unreachable struct {
	Source string // libvirt
	Socket string
	Err    error
	Remedy string // start libvirtd
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

// since is the error with the time from which on it holds: " since 12:03:04".
func (e *Unreachable) since(when string) string {
	return fmt.Sprintf("%s: no answer on %s%s (%s); %s", e.Source, e.Socket, when, OneLine(e.Err), e.Remedy)
}

// OneLine is an error's text without line breaks.
func OneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
