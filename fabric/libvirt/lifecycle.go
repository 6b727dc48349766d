package libvirt

import golibvirt "github.com/digitalocean/go-libvirt"

// phase is the meaning of a domain's state (virDomainState, with its reason) for
// the guest.
type phase uint8

const (
	unsaid   phase = iota // nothing that the fabric acts on: the guest is as it was before
	starting              // it does not run yet
	runs                  // it runs here
	halted                // it is paused here, and will go on here
	moving                // it is paused for a migration, at the source or at the destination
	leaving               // it runs elsewhere, or is about to
	off
)

// phases has every state and reason of libvirt's. A domain that is shutting down,
// or has crashed, has not begun to run if it did not run before: a destination has
// such a domain for a moment after an aborted migration (libvirt 11.3, QEMU 10).
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
		int32(golibvirt.DomainPausedPostcopy):     leaving, // only at the source
		// The guest stands still between the nodes: its state before is the best
		// guess.
		int32(golibvirt.DomainPausedPostcopyFailed): unsaid,
		int32(golibvirt.DomainPausedAPIError):       unsaid, // at a destination: libvirt could not resume it
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

// phaseOf returns the phase of a state. Of a reason that is newer than the table
// only a running or a stopped state is certain.
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

// step is the source's reaction to a lifecycle event.
type step uint8

const (
	nothing step = iota
	ask          // ask libvirt for the domain's state
	begin        // a life of the domain begins: read its XML and its state
	arrive       // the guest runs, so its arrival is over: emit that at once
	goOn         // it runs again: emit that at once if it ran here before, else ask
	leave        // it stopped to run elsewhere: emit that at once if it ran here
	over         // the life is over
	forget       // libvirt forgets the domain, at once or when it stops
)

// steps has every lifecycle event of libvirt's and its details.
var steps = map[golibvirt.DomainEventType]map[int32]step{
	// A running domain stays as it was started; a new definition waits for the next
	// start.
	golibvirt.DomainEventDefined: {
		int32(golibvirt.DomainEventDefinedAdded):        nothing,
		int32(golibvirt.DomainEventDefinedUpdated):      nothing,
		int32(golibvirt.DomainEventDefinedRenamed):      nothing,
		int32(golibvirt.DomainEventDefinedFromSnapshot): nothing,
	},
	golibvirt.DomainEventUndefined: {
		int32(golibvirt.DomainEventUndefinedRemoved): forget,
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
	// The guest is about to end, and keeps its address until it has ended. If it
	// was arriving, it never will.
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

// stepOf returns the step of an event. The source asks libvirt about an event or
// detail that is newer than the table; every detail of a start or a stop begins or
// ends a life.
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
