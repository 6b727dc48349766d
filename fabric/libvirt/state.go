package libvirt

import (
	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
)

// stateOf gives the state of a guest from that of its domain (virDomainState
// and its reasons), was being the guest's state before, or zero.
//
// A domain that is paused keeps its address: whoever paused it, the next thing
// to happen to it is that it goes on, here. That is not so while a migration
// arrives, or once it has left: then the guest runs, or is about to run, on
// the other node.
func stateOf(state, reason int32, was fabric.State) fabric.State {
	switch golibvirt.DomainState(state) {
	case golibvirt.DomainShutoff:
		return fabric.Absent
	case golibvirt.DomainPaused:
		switch golibvirt.DomainPausedReason(reason) {
		case golibvirt.DomainPausedMigration, golibvirt.DomainPausedStartingUp, golibvirt.DomainPausedPostcopy:
			return fabric.Wired
		case golibvirt.DomainPausedPostcopyFailed:
			// Both nodes say this, and the guest stands still between them:
			// nothing is better than what was.
			if was == fabric.Live {
				return fabric.Live
			}
			return fabric.Wired
		}
	}
	return fabric.Live
}
