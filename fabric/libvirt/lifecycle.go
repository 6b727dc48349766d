package libvirt

import golibvirt "github.com/digitalocean/go-libvirt"

// phase is what a state of a domain (virDomainState, with its reason) says of
// the guest.
type phase uint8

const (
	unsaid   phase = iota // nothing that the fabric acts on: it is as it was before
	starting              // it does not run yet
	runs                  // it runs here
	halted                // it stands still, here: the next thing to happen to it is that it goes on
	moving                // it stands still for a migration, at whichever end
	leaving               // it runs elsewhere, or is about to
	off
)

// phases has every state and reason of libvirt's. One that is shutting down, or
// crashed, has not begun to run if it did not run before: so it is for a moment
// at the destination of a migration that was aborted (libvirt 11.3, QEMU 10).
var phases = map[golibvirt.DomainState]map[int32]phase{
	golibvirt.DomainNostate: {int32(golibvirt.DomainNostateUnknown): unsaid},
	golibvirt.DomainRunning: {
		int32(golibvirt.DomainRunningUnknown):           runs,
		int32(golibvirt.DomainRunningBooted):            runs,
		int32(golibvirt.DomainRunningMigrated):          runs,
		int32(golibvirt.DomainRunningRestored):          runs,
		int32(golibvirt.DomainRunningFromSnapshot):      runs,
		int32(golibvirt.DomainRunningUnpaused):          runs,
		int32(golibvirt.DomainRunningMigrationCanceled): runs,
		int32(golibvirt.DomainRunningSaveCanceled):      runs,
		int32(golibvirt.DomainRunningWakeup):            runs,
		int32(golibvirt.DomainRunningCrashed):           runs,
		int32(golibvirt.DomainRunningPostcopy):          runs,
		int32(golibvirt.DomainRunningPostcopyFailed):    runs,
	},
	golibvirt.DomainBlocked: {int32(golibvirt.DomainBlockedUnknown): runs},
	golibvirt.DomainPaused: {
		int32(golibvirt.DomainPausedUnknown):      unsaid,
		int32(golibvirt.DomainPausedUser):         halted,
		int32(golibvirt.DomainPausedMigration):    moving,
		int32(golibvirt.DomainPausedSave):         halted,
		int32(golibvirt.DomainPausedDump):         halted,
		int32(golibvirt.DomainPausedIoerror):      halted,
		int32(golibvirt.DomainPausedWatchdog):     halted,
		int32(golibvirt.DomainPausedFromSnapshot): halted,
		int32(golibvirt.DomainPausedShuttingDown): unsaid,
		int32(golibvirt.DomainPausedSnapshot):     halted,
		int32(golibvirt.DomainPausedCrashed):      unsaid,
		int32(golibvirt.DomainPausedStartingUp):   starting,
		int32(golibvirt.DomainPausedPostcopy):     leaving, // of the source alone
		// The guest stands still between the nodes: nothing is better than what was.
		int32(golibvirt.DomainPausedPostcopyFailed): unsaid,
		int32(golibvirt.DomainPausedAPIError):       unsaid, // at a destination: it could not be made to run
	},
	golibvirt.DomainShutdown: {
		int32(golibvirt.DomainShutdownUnknown): unsaid,
		int32(golibvirt.DomainShutdownUser):    unsaid,
	},
	golibvirt.DomainShutoff: {
		int32(golibvirt.DomainShutoffUnknown):      off,
		int32(golibvirt.DomainShutoffShutdown):     off,
		int32(golibvirt.DomainShutoffDestroyed):    off,
		int32(golibvirt.DomainShutoffCrashed):      off,
		int32(golibvirt.DomainShutoffMigrated):     off,
		int32(golibvirt.DomainShutoffSaved):        off,
		int32(golibvirt.DomainShutoffFailed):       off,
		int32(golibvirt.DomainShutoffFromSnapshot): off,
		int32(golibvirt.DomainShutoffDaemon):       off,
	},
	golibvirt.DomainCrashed: {
		int32(golibvirt.DomainCrashedUnknown):  unsaid,
		int32(golibvirt.DomainCrashedPanicked): unsaid,
	},
	golibvirt.DomainPmsuspended: {int32(golibvirt.DomainPmsuspendedUnknown): halted},
}

// phaseOf looks a state up. A reason that libvirt has got since says what its
// state says for sure.
func phaseOf(state, reason int32) phase {
	if p, known := phases[golibvirt.DomainState(state)][reason]; known {
		return p
	}
	switch golibvirt.DomainState(state) {
	case golibvirt.DomainRunning:
		return runs
	case golibvirt.DomainShutoff:
		return off
	}
	return unsaid
}

// step is what the source does about a lifecycle event.
type step uint8

const (
	nothing step = iota
	ask          // libvirt is asked how the domain is
	begin        // a life of the domain begins: its XML is read, and libvirt asked
	arrive       // the guest runs, which ends its arrival; told at once
	goOn         // it runs again: told at once of one that ran here before, of another libvirt is asked
	leave        // it stopped to run elsewhere: told at once of one that ran here
	over         // that life is over
)

// steps has every lifecycle event of libvirt's and its details.
var steps = map[golibvirt.DomainEventType]map[int32]step{
	// What runs is as it was started; a new definition waits for the next start.
	golibvirt.DomainEventDefined: {
		int32(golibvirt.DomainEventDefinedAdded):        nothing,
		int32(golibvirt.DomainEventDefinedUpdated):      nothing,
		int32(golibvirt.DomainEventDefinedRenamed):      nothing,
		int32(golibvirt.DomainEventDefinedFromSnapshot): nothing,
	},
	golibvirt.DomainEventUndefined: {
		int32(golibvirt.DomainEventUndefinedRemoved): ask,
		int32(golibvirt.DomainEventUndefinedRenamed): ask,
	},
	golibvirt.DomainEventStarted: {
		int32(golibvirt.DomainEventStartedBooted):       begin,
		int32(golibvirt.DomainEventStartedMigrated):     begin,
		int32(golibvirt.DomainEventStartedRestored):     begin,
		int32(golibvirt.DomainEventStartedFromSnapshot): begin,
		int32(golibvirt.DomainEventStartedWakeup):       begin,
		int32(golibvirt.DomainEventStartedRecreated):    begin,
	},
	golibvirt.DomainEventSuspended: {
		int32(golibvirt.DomainEventSuspendedPaused):         ask,
		int32(golibvirt.DomainEventSuspendedMigrated):       leave,
		int32(golibvirt.DomainEventSuspendedIoerror):        ask,
		int32(golibvirt.DomainEventSuspendedWatchdog):       ask,
		int32(golibvirt.DomainEventSuspendedRestored):       ask,
		int32(golibvirt.DomainEventSuspendedFromSnapshot):   ask,
		int32(golibvirt.DomainEventSuspendedAPIError):       ask,
		int32(golibvirt.DomainEventSuspendedPostcopy):       leave,
		int32(golibvirt.DomainEventSuspendedPostcopyFailed): ask,
	},
	golibvirt.DomainEventResumed: {
		int32(golibvirt.DomainEventResumedUnpaused):       goOn,
		int32(golibvirt.DomainEventResumedMigrated):       arrive,
		int32(golibvirt.DomainEventResumedFromSnapshot):   goOn,
		int32(golibvirt.DomainEventResumedPostcopy):       arrive,
		int32(golibvirt.DomainEventResumedPostcopyFailed): goOn,
	},
	golibvirt.DomainEventStopped: {
		int32(golibvirt.DomainEventStoppedShutdown):     over,
		int32(golibvirt.DomainEventStoppedDestroyed):    over,
		int32(golibvirt.DomainEventStoppedCrashed):      over,
		int32(golibvirt.DomainEventStoppedMigrated):     over,
		int32(golibvirt.DomainEventStoppedSaved):        over,
		int32(golibvirt.DomainEventStoppedFailed):       over,
		int32(golibvirt.DomainEventStoppedFromSnapshot): over,
		int32(golibvirt.DomainEventStoppedRecreated):    over,
	},
	// It is about to end, and keeps its address until it has; of a guest that was
	// arriving, it says that it never will.
	golibvirt.DomainEventShutdown: {
		int32(golibvirt.DomainEventShutdownFinished): nothing,
		int32(golibvirt.DomainEventShutdownGuest):    nothing,
		int32(golibvirt.DomainEventShutdownHost):     nothing,
	},
	golibvirt.DomainEventPmsuspended: {
		int32(golibvirt.DomainEventPmsuspendedMemory): ask,
		int32(golibvirt.DomainEventPmsuspendedDisk):   ask,
	},
	golibvirt.DomainEventCrashed: {
		int32(golibvirt.DomainEventCrashedPanicked):    ask,
		int32(golibvirt.DomainEventCrashedCrashloaded): ask,
	},
}

// stepOf looks an event up. What libvirt has got since is asked about, and what
// begins or ends a life does so whatever the detail.
func stepOf(event, detail int32) step {
	if s, known := steps[golibvirt.DomainEventType(event)][detail]; known {
		return s
	}
	switch golibvirt.DomainEventType(event) {
	case golibvirt.DomainEventStarted:
		return begin
	case golibvirt.DomainEventStopped:
		return over
	}
	return ask
}
