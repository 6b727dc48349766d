package lxd

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
)

// silence is that nobody answers on a socket, or nobody who can be of use.
type silence struct {
	daemon, path string
	err          error
}

func (e *silence) Unwrap() error { return e.err }
func (e *silence) Error() string { return e.since("") }

// since says for how long: " since 12:03:04".
func (e *silence) since(when string) string {
	way := "start " + e.daemon
	switch {
	case errors.Is(e.err, fs.ErrPermission):
		way = "run as root"
	case errors.Is(e.err, errTimeout):
		way = "restart " + e.daemon
	case hasCode(e.err, http.StatusServiceUnavailable):
		way = "wait until it is up, and see its log if it does not come"
	}
	return fmt.Sprintf("%s: no answer on %s%s (%s); %s", e.daemon, e.path, when, oneLine(e.err), way)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
