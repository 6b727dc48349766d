package libvirt

import (
	"errors"
	"fmt"
	"io/fs"
)

// silence is that nobody answers on a socket.
type silence struct {
	path string
	err  error
}

func (e *silence) Unwrap() error { return e.err }
func (e *silence) Error() string { return e.since("") }

// since says for how long: " since 12:03:04".
func (e *silence) since(when string) string {
	daemon := daemonOf(e.path)
	way := "start " + daemon
	switch {
	case errors.Is(e.err, fs.ErrPermission):
		way = "run as root"
	case errors.Is(e.err, errTimeout):
		way = "restart " + daemon
	case errors.Is(e.err, errHooks):
		way = "look for hooks that hang"
	}
	return fmt.Sprintf("libvirt: no answer on %s%s (%s); %s", e.path, when, oneLine(e.err), way)
}
