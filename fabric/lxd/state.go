package lxd

import "github.com/vmfabric/vmfabric/fabric"

// Status codes of the API (LXD, doc/rest-api.md).
const (
	codeStarted  = 101
	codeStopped  = 102
	codeRunning  = 103
	codeFreezing = 109
	codeFrozen   = 110
	codeThawed   = 111
	codeError    = 112
	codeReady    = 113 // running, and the guest has reported that it is up

	// Of operations.
	codeSuccess   = 200
	codeFailure   = 400
	codeCancelled = 401
)

// stateOf returns the state of a guest from the code of its instance; was is the
// guest's state before, or zero.
//
// A frozen instance keeps its address: it will go on here, or be stopped. A stopped
// one keeps a port that the fabric makes: LXD does not start it without.
func stateOf(code int, vm fabric.VM, was fabric.State) fabric.State {
	switch code {
	case codeRunning, codeReady, codeStarted, codeFreezing, codeFrozen, codeThawed:
		return fabric.Live
	case codeStopped:
		if made(vm) {
			return fabric.Wired
		}
		return fabric.Absent
	case codeError:
		// LXD does not know the state (the instance's monitor does not answer): the
		// state before is the best guess.
		if was != 0 {
			return was
		}
	}
	return fabric.Wired // starting, stopping, or a code that is newer than this list
}

// made reports whether the fabric makes a port of the guest.
func made(vm fabric.VM) bool {
	for _, nic := range vm.NICs {
		if nic.Kind == fabric.Veth {
			return true
		}
	}
	return false
}
