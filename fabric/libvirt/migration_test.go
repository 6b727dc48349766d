package libvirt

import (
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	suspendedMigrated = int(golibvirt.DomainEventSuspendedMigrated)
	suspendedPostcopy = int(golibvirt.DomainEventSuspendedPostcopy)
	resumedUnpaused   = int(golibvirt.DomainEventResumedUnpaused)
	resumedMigrated   = int(golibvirt.DomainEventResumedMigrated)
)

// runsHere has a source know a guest that runs.
func runsHere(t *testing.T, d *daemon, s *Source, name string) {
	t.Helper()
	d.set(name, running, int(golibvirt.DomainRunningBooted), ours(name, 10))
	d.event(name, golibvirt.DomainEventStarted, 0)
	requireNext(t, s, name, fabric.Live)
}

// arrivesHere has a source know a guest that is to run.
func arrivesHere(t *testing.T, d *daemon, s *Source, name string) {
	t.Helper()
	d.arrive(name, ours(name, 10))
	d.event(name, golibvirt.DomainEventStarted, int(golibvirt.DomainEventStartedMigrated))
	requireNext(t, s, name, fabric.Wired)
	require.Zero(t, d.asked(procJobStats), "libvirtd logs such a question as an error")
}

// A daemon that does not answer for a while must hold up no cutover.
func TestCutoverIsToldBeforeAnythingIsAsked(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	runsHere(t, d, s, "web")
	release := d.hook("web")
	for _, detail := range []int{suspendedMigrated, suspendedPostcopy} {
		before := time.Now()
		d.event("web", golibvirt.DomainEventSuspended, detail)
		left := requireNext(t, s, "web", fabric.Live)
		assert.True(t, left.Leaving)
		assert.Equal(t, "203.0.113.10", left.VM.NICs[0].Addresses[0].String())
		assert.False(t, left.Since.Before(before))

		d.event("web", golibvirt.DomainEventResumed, resumedUnpaused)
		back := requireNext(t, s, "web", fabric.Live)
		assert.False(t, back.Leaving)
		assert.True(t, back.Since.After(left.Since))
	}
	release()
	requireSettled(t, s, "web", fabric.Live, false, false)

	arrivesHere(t, d, s, "db")
	defer d.hook("db")()
	d.event("db", golibvirt.DomainEventResumed, resumedMigrated)
	requireNext(t, s, "db", fabric.Live)
}

func TestCutoverIsConfirmed(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	runsHere(t, d, s, "web")
	d.set("web", paused, migrating, "")
	d.event("web", golibvirt.DomainEventSuspended, suspendedMigrated)
	requireSettled(t, s, "web", fabric.Live, true, false)
	d.set("web", paused, int(golibvirt.DomainPausedPostcopy), "")
	d.event("web", golibvirt.DomainEventSuspended, suspendedPostcopy)
	requireSettled(t, s, "web", fabric.Live, true, false)
	d.set("web", paused, postcopyFailed, "")
	d.event("web", golibvirt.DomainEventSuspended, int(golibvirt.DomainEventSuspendedPostcopyFailed))
	requireSettled(t, s, "web", fabric.Live, true, false)
	assert.Zero(t, d.asked(procJobStats), "who was here knows")

	t.Run("or corrected", func(t *testing.T) {
		d.set("web", running, int(golibvirt.DomainRunningMigrationCanceled), "")
		d.event("web", golibvirt.DomainEventSuspended, suspendedMigrated) // late
		requireEventually(t, s, fabric.Live, false)
		requireQuiet(t, s)
	})
}

// requireEventually takes changes until one says this.
func requireEventually(t *testing.T, s *Source, state fabric.State, leaving bool) {
	t.Helper()
	for {
		if c := next(t, s); c.Guest.State == state && c.Guest.Leaving == leaving {
			return
		}
	}
}

// The agent need not listen at once: what is over when it does is not told.
func TestCutoverThatIsOverIsNotTold(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	runsHere(t, d, s, "web")
	release := d.hook("web")
	d.event("web", golibvirt.DomainEventSuspended, suspendedMigrated)
	require.Eventually(t, func() bool { return s.queue.Waiting()["web"].Leaving }, patience, time.Millisecond)
	d.event("web", golibvirt.DomainEventResumed, resumedUnpaused)
	require.Eventually(t, func() bool { return !s.queue.Waiting()["web"].Leaving }, patience, time.Millisecond)
	release()
	requireSettled(t, s, "web", fabric.Live, false, false)
}

func TestArrivalIsNoDeparture(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	arrivesHere(t, d, s, "web")
	// libvirt does not say this at the destination; if it did, it would not be
	// that the guest leaves.
	d.event("web", golibvirt.DomainEventSuspended, suspendedMigrated)
	requireNext(t, s, "web", fabric.Wired)
	requireQuiet(t, s)

	t.Run("nor is a start from a file", func(t *testing.T) {
		d.restore("file", ours("file", 12))
		d.event("file", golibvirt.DomainEventStarted, int(golibvirt.DomainEventStartedRestored))
		requireNext(t, s, "file", fabric.Wired)
		requireQuiet(t, s)
	})
	t.Run("of a guest that nobody knows", func(t *testing.T) {
		d.arrive("new", ours("new", 11))
		release := d.hook("new")
		d.event("new", golibvirt.DomainEventResumed, resumedMigrated)
		requireQuiet(t, s)
		release()
		requireNext(t, s, "new", fabric.Wired)
	})
	t.Run("paused", func(t *testing.T) {
		d.set("web", paused, byUser, "")
		d.event("web", golibvirt.DomainEventSuspended, 0)
		requireNext(t, s, "web", fabric.Live)
		requireQuiet(t, s)
	})
	t.Run("after another life here", func(t *testing.T) {
		runsHere(t, d, s, "db")
		release := d.hook("db")
		d.event("db", golibvirt.DomainEventStopped, int(golibvirt.DomainEventStoppedMigrated))
		d.arrive("db", "") // before anybody has looked
		release()
		requireNext(t, s, "db", fabric.Wired)
		d.event("db", golibvirt.DomainEventStarted, int(golibvirt.DomainEventStartedMigrated))
		requireNext(t, s, "db", fabric.Wired)
		requireQuiet(t, s)
	})
}

// A source that is new to a node, as after a restart of the agent, sees the
// same state at both ends of a migration.
func TestFirstSightInTheMiddleOfAMigration(t *testing.T) {
	d := newDaemon(t).start()
	d.set("out", paused, migrating, ours("out", 10))
	d.arrive("in", ours("in", 11))
	d.set("left", paused, postcopyFailed, ours("left", 12))
	d.arrive("came", ours("came", 13))
	d.set("came", paused, postcopyFailed, "")
	d.set("gone", paused, int(golibvirt.DomainPausedPostcopy), ours("gone", 14))
	d.restore("file", ours("file", 15))
	s := follow(t, d)
	want := map[string]standing{
		"out": {fabric.Live, true}, "in": {state: fabric.Wired}, "left": {fabric.Live, true},
		"came": {state: fabric.Live}, "gone": {fabric.Live, true}, "file": {state: fabric.Wired},
	}
	for range 2 {
		guests, err := s.Guests(t.Context())
		require.NoError(t, err)
		got := map[string]standing{}
		for _, g := range guests {
			got[g.VM.Name] = standing{g.State, g.Leaving}
		}
		assert.Equal(t, want, got)
		assert.Equal(t, 5, d.asked(procJobStats), "asked once of each")
	}
	d.set("in", running, int(golibvirt.DomainRunningMigrated), "")
	d.event("in", golibvirt.DomainEventResumed, resumedMigrated)
	requireSettled(t, s, "in", fabric.Live, false, false)
}
