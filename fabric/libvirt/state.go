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
	switch phaseOf(state, reason) {
	case runs, halted:
		return standing{state: fabric.Live}
	case leaving:
		return standing{fabric.Live, true}
	case moving:
		if was.state == fabric.Live {
			return standing{fabric.Live, true}
		}
	case unsaid:
		if was.state == fabric.Live {
			return was
		}
	case off:
		return standing{state: fabric.Absent}
	}
	return standing{state: fabric.Wired}
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

// askSide gives what a domain was before it was paused for a migration, or
// while it is restored from a file, which is the same state. The statistics of
// the job tell these apart: they are of a migration at its source, and refused
// at the destination.
func askSide(c *conn, dom golibvirt.Domain, reason int32) (was standing, err error) {
	_, job, err := c.lv.DomainGetJobStats(dom, 0)
	var refused golibvirt.Error
	if isNoDomain(err) || err != nil && !errors.As(err, &refused) {
		return standing{}, err
	}
	failed := golibvirt.DomainPausedReason(reason) == golibvirt.DomainPausedPostcopyFailed
	switch {
	case goesOut(job):
		return standing{state: fabric.Live, leaving: failed}, nil
	case failed && err != nil:
		return standing{state: fabric.Live}, nil // it ran here
	}
	return standing{state: fabric.Wired}, nil
}

// goesOut reports whether a job is a migration to elsewhere.
func goesOut(job []golibvirt.TypedParam) bool {
	for _, p := range job {
		if p.Field == golibvirt.DomainJobOperationStr {
			operation, _ := p.Value.I.(int32)
			return golibvirt.DomainJobOperation(operation) == golibvirt.DomainJobOperationStrMigrationOut
		}
	}
	return false
}
