package libvirt

import (
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
)

// standing is how a guest is here: the State and the Leaving of a
// [fabric.Desired]. The zero value is that of a guest that was not seen yet.
type standing struct {
	state   fabric.State
	leaving bool
}

// stateOf gives the standing of a guest from the state of its domain
// (virDomainState and its reasons), and from what it was before.
//
// A domain that is paused keeps its address: whoever paused it, the next thing
// to happen to it is that it goes on, here. That is not so while it migrates:
// libvirt says the same at both ends, so that what was says which end this is.
func stateOf(state, reason int32, was standing) standing {
	wired, live, leaving := standing{state: fabric.Wired}, standing{state: fabric.Live}, standing{fabric.Live, true}
	switch golibvirt.DomainState(state) {
	case golibvirt.DomainShutoff:
		return standing{state: fabric.Absent}
	case golibvirt.DomainPaused:
		switch golibvirt.DomainPausedReason(reason) {
		case golibvirt.DomainPausedStartingUp:
			return wired
		case golibvirt.DomainPausedMigration:
			if was.state == fabric.Live {
				return leaving
			}
			return wired
		case golibvirt.DomainPausedPostcopy: // of the source alone
			return leaving
		case golibvirt.DomainPausedPostcopyFailed:
			// The guest stands still between the nodes: nothing is better than
			// what was.
			if was.state == fabric.Live {
				return was
			}
			return wired
		}
	}
	return live
}

// needsSide reports whether the state of a domain that was not seen before
// leaves open at which end of a migration it is.
func needsSide(state, reason int32) bool {
	if golibvirt.DomainState(state) != golibvirt.DomainPaused {
		return false
	}
	r := golibvirt.DomainPausedReason(reason)
	return r == golibvirt.DomainPausedMigration || r == golibvirt.DomainPausedPostcopyFailed
}

// askSide gives what a domain was before it was paused for a migration. The
// statistics of the job tell the ends apart: libvirt refuses them at the
// destination. A source may have no job any more, when whoever asked for the
// migration went away before he knew how it ended.
func askSide(c *conn, dom golibvirt.Domain, reason int32) (was standing, err error) {
	failed := golibvirt.DomainPausedReason(reason) == golibvirt.DomainPausedPostcopyFailed
	_, _, err = c.lv.DomainGetJobStats(dom, 0)
	var refused golibvirt.Error
	switch {
	case isNoDomain(err):
	case err == nil:
		return standing{state: fabric.Live, leaving: failed}, nil
	case errors.As(err, &refused) && failed:
		return standing{state: fabric.Live}, nil // it ran here
	case errors.As(err, &refused):
		return standing{state: fabric.Wired}, nil
	}
	return standing{}, err
}
