package libvirt

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// constants gives those of the libvirt client's constants that have one of
// these types, by type: a table that is to have all of them cannot miss one
// that libvirt gets.
func constants(t *testing.T, types ...string) map[string]map[string]int32 {
	t.Helper()
	pkg, err := build.Import("github.com/digitalocean/go-libvirt", ".", build.FindOnly)
	require.NoError(t, err)
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(pkg.Dir, "const.gen.go"), nil, 0)
	require.NoError(t, err)
	found := map[string]map[string]int32{}
	for _, name := range types {
		found[name] = map[string]int32{}
	}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, spec := range g.Specs {
			v := spec.(*ast.ValueSpec)
			typ, ok := v.Type.(*ast.Ident)
			if !ok || found[typ.Name] == nil {
				continue
			}
			n := 0
			if lit, ok := v.Values[0].(*ast.BasicLit); ok { // or iota, which is 0
				n, err = strconv.Atoi(lit.Value)
				require.NoError(t, err)
			}
			found[typ.Name][v.Names[0].Name] = int32(n)
		}
	}
	for _, name := range types {
		require.NotEmpty(t, found[name], name)
	}
	return found
}

// What libvirt says of a domain, and what it means for the guest, where it was
// arriving, live, and not seen before.
func TestEveryState(t *testing.T) {
	wired, live, left, absent := "wired", "live", "live, leaving", "absent"
	always := func(s string) [3]string { return [3]string{s, s, s} }
	asBefore := [3]string{wired, live, wired}
	want := map[string][3]string{
		"NostateUnknown": asBefore,
		"RunningUnknown": always(live), "RunningBooted": always(live), "RunningMigrated": always(live), "RunningRestored": always(live),
		"RunningFromSnapshot": always(live), "RunningUnpaused": always(live), "RunningMigrationCanceled": always(live), "RunningSaveCanceled": always(live),
		"RunningWakeup": always(live), "RunningCrashed": always(live), "RunningPostcopy": always(live), "RunningPostcopyFailed": always(live),
		"BlockedUnknown": always(live),
		"PausedUnknown":  asBefore, "PausedUser": always(live), "PausedMigration": {wired, left, wired}, "PausedSave": always(live), "PausedDump": always(live),
		"PausedIoerror": always(live), "PausedWatchdog": always(live), "PausedFromSnapshot": always(live), "PausedShuttingDown": asBefore,
		"PausedSnapshot": always(live), "PausedCrashed": asBefore, "PausedStartingUp": always(wired), "PausedPostcopy": always(left),
		"PausedPostcopyFailed": asBefore, "PausedAPIError": asBefore,
		"ShutdownUnknown": asBefore, "ShutdownUser": asBefore,
		"ShutoffUnknown": always(absent), "ShutoffShutdown": always(absent), "ShutoffDestroyed": always(absent), "ShutoffCrashed": always(absent),
		"ShutoffMigrated": always(absent), "ShutoffSaved": always(absent), "ShutoffFailed": always(absent), "ShutoffFromSnapshot": always(absent), "ShutoffDaemon": always(absent),
		"CrashedUnknown": asBefore, "CrashedPanicked": asBefore,
		"PmsuspendedUnknown": always(live),
	}
	reasons := map[string]string{
		"DomainNostate": "DomainNostateReason", "DomainRunning": "DomainRunningReason", "DomainBlocked": "DomainBlockedReason",
		"DomainPaused": "DomainPausedReason", "DomainShutdown": "DomainShutdownReason", "DomainShutoff": "DomainShutoffReason",
		"DomainCrashed": "DomainCrashedReason", "DomainPmsuspended": "DomainPMSuspendedReason",
	}
	types := []string{"DomainState"}
	for _, typ := range reasons {
		types = append(types, typ)
	}
	all, seen := constants(t, types...), 0
	for name, state := range all["DomainState"] {
		require.Contains(t, reasons, name, "a state that the table does not know")
		require.Len(t, phases[golibvirt.DomainState(state)], len(all[reasons[name]]), name)
		for reasonName, reason := range all[reasons[name]] {
			short := strings.TrimPrefix(reasonName, "Domain")
			if !assert.Contains(t, want, short, "a reason that the table does not know") {
				continue
			}
			seen++
			for i, was := range []standing{{state: fabric.Wired}, {state: fabric.Live}, {}} {
				as := stateOf(state, reason, was)
				assert.Equal(t, want[short][i], inWords(fabric.Desired{State: as.state, Leaving: as.leaving}), "%s, which was %v", short, was)
			}
		}
	}
	assert.Equal(t, len(want), seen)
}

// What happens to a domain, and what the source does about it.
func TestEveryEvent(t *testing.T) {
	want := map[string]step{
		"DefinedAdded": nothing, "DefinedUpdated": nothing, "DefinedRenamed": nothing, "DefinedFromSnapshot": nothing,
		"UndefinedRemoved": forget, "UndefinedRenamed": ask,
		"StartedBooted": begin, "StartedMigrated": begin, "StartedRestored": begin, "StartedFromSnapshot": begin, "StartedWakeup": begin, "StartedRecreated": begin,
		"SuspendedPaused": ask, "SuspendedMigrated": leave, "SuspendedIoerror": ask, "SuspendedWatchdog": ask, "SuspendedRestored": ask,
		"SuspendedFromSnapshot": ask, "SuspendedAPIError": ask, "SuspendedPostcopy": leave, "SuspendedPostcopyFailed": ask,
		"ResumedUnpaused": goOn, "ResumedMigrated": arrive, "ResumedFromSnapshot": goOn, "ResumedPostcopy": arrive, "ResumedPostcopyFailed": goOn,
		"StoppedShutdown": over, "StoppedDestroyed": over, "StoppedCrashed": over, "StoppedMigrated": over, "StoppedSaved": over, "StoppedFailed": over,
		"StoppedFromSnapshot": over, "StoppedRecreated": over,
		"ShutdownFinished": nothing, "ShutdownGuest": nothing, "ShutdownHost": nothing,
		"PmsuspendedMemory": ask, "PmsuspendedDisk": ask,
		"CrashedPanicked": ask, "CrashedCrashloaded": ask,
	}
	details := map[string]string{
		"DomainEventDefined": "DomainEventDefinedDetailType", "DomainEventUndefined": "DomainEventUndefinedDetailType",
		"DomainEventStarted": "DomainEventStartedDetailType", "DomainEventSuspended": "DomainEventSuspendedDetailType",
		"DomainEventResumed": "DomainEventResumedDetailType", "DomainEventStopped": "DomainEventStoppedDetailType",
		"DomainEventShutdown": "DomainEventShutdownDetailType", "DomainEventPmsuspended": "DomainEventPMSuspendedDetailType",
		"DomainEventCrashed": "DomainEventCrashedDetailType",
	}
	types := []string{"DomainEventType"}
	for _, typ := range details {
		types = append(types, typ)
	}
	all, seen := constants(t, types...), 0
	for name, event := range all["DomainEventType"] {
		require.Contains(t, details, name, "an event that the table does not know")
		require.Len(t, steps[golibvirt.DomainEventType(event)], len(all[details[name]]), name)
		for detailName, detail := range all[details[name]] {
			short := strings.TrimPrefix(detailName, "DomainEvent")
			if assert.Contains(t, want, short, "a detail that the table does not know") {
				seen++
				assert.Equal(t, want[short], stepOf(event, detail), short)
			}
		}
		assert.Contains(t, []step{ask, begin, over}, stepOf(event, 99), "%s of a newer libvirt", name)
	}
	assert.Equal(t, len(want), seen)
	assert.Equal(t, ask, stepOf(99, 0))
}

// An aborted migration at the destination, as libvirt 11.3 and QEMU 10 have it.
func TestAbortedArrivalIsNotBegun(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	arrivesHere(t, d, s, "web")
	d.set("web", int(golibvirt.DomainShutdown), int(golibvirt.DomainShutdownUnknown), "")
	d.event("web", golibvirt.DomainEventShutdown, int(golibvirt.DomainEventShutdownHost))
	requireQuiet(t, s)
	guests, err := s.Guests(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]fabric.State{"web": fabric.Wired}, states(guests))
	// Whatever else is asked about it meanwhile.
	d.event("web", golibvirt.DomainEventSuspended, int(golibvirt.DomainEventSuspendedPaused))
	requireSettled(t, s, "web", fabric.Wired, false, false)
	d.set("web", shutoff, int(golibvirt.DomainShutoffFailed), "")
	d.event("web", golibvirt.DomainEventStopped, int(golibvirt.DomainEventStoppedFailed))
	requireNext(t, s, "web", fabric.Absent)
}

// That a guest goes on ends no arrival: only that it has migrated does.
func TestOnlyRunningEndsAnArrival(t *testing.T) {
	for name, c := range map[string]struct {
		detail int
		state  fabric.State
	}{
		"unpaused": {resumedUnpaused, fabric.Wired}, "from a snapshot": {int(golibvirt.DomainEventResumedFromSnapshot), fabric.Wired},
		"post-copy failed": {int(golibvirt.DomainEventResumedPostcopyFailed), fabric.Wired},
		"migrated":         {resumedMigrated, fabric.Live}, "post-copy": {int(golibvirt.DomainEventResumedPostcopy), fabric.Live},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t).start()
			s := follow(t, d)
			arrivesHere(t, d, s, "web")
			release := d.hook("web")
			defer release()
			d.event("web", golibvirt.DomainEventResumed, c.detail)
			if c.state == fabric.Live {
				requireNext(t, s, "web", fabric.Live)
				return
			}
			requireQuiet(t, s)
			release()
			requireNext(t, s, "web", fabric.Wired)
		})
	}
}
