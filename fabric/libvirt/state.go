package libvirt

import (
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
)

// standing has the State and the Leaving of a guest's [fabric.Desired]. Its zero
// value is that of a guest that was not seen yet.
type standing struct {
	state   fabric.State
	leaving bool
}

// stateOf returns the standing of a guest from the state of its domain
// (virDomainState and its reasons), and from its standing before.
//
// A paused domain keeps its address: whatever paused it, it will go on here. A
// domain that is paused for a migration may not: libvirt gives the same state at
// both ends, so the standing before shows which end this is.
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

// needsSide reports whether the state of a domain that was not seen before leaves
// open at which end of a migration it is.
func needsSide(state, reason int32) bool {
	if golibvirt.DomainState(state) != golibvirt.DomainPaused {
		return false
	}
	r := golibvirt.DomainPausedReason(reason)
	return r == golibvirt.DomainPausedMigration || r == golibvirt.DomainPausedPostcopyFailed
}

// askSide returns the standing of a domain before it was paused for a migration, or
// for its restoring from a file, which has the same state. The statistics of its
// job tell them apart: at the source of a migration they say so, and at the
// destination libvirt refuses them.
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
		return standing{state: fabric.Live}, nil // it ran here before
	}
	return standing{state: fabric.Wired}, nil
}

// goesOut reports whether a job is a migration to another host.
func goesOut(job []golibvirt.TypedParam) bool {
	for _, p := range job {
		if p.Field == golibvirt.DomainJobOperationStr {
			operation, _ := p.Value.I.(int32)
			return golibvirt.DomainJobOperation(operation) == golibvirt.DomainJobOperationStrMigrationOut
		}
	}
	return false
}
