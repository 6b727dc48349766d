package libvirt

import (
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	undefined = golibvirt.DomainEventUndefined
	removed   = int(golibvirt.DomainEventUndefinedRemoved)
	stopped   = golibvirt.DomainEventStopped
)

func TestUndefinedGuestIsGone(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)

	// Its XML cannot be read any more, so it may be anybody's.
	d.set("off", shutoff, 1, ours("off", 10))
	off := d.remove("off")
	d.eventOf(off, undefined, removed)
	gone := requireGone(t, s, "off")
	assert.Equal(t, bare(off), gone.VM)

	t.Run("not one that runs", func(t *testing.T) {
		runsHere(t, d, s, "web")
		d.event("web", undefined, removed)
		requireNext(t, s, "web", fabric.Live)
		d.set("web", paused, byUser, "")
		d.event("web", golibvirt.DomainEventSuspended, 0)
		requireNext(t, s, "web", fabric.Live)
		d.eventOf(d.remove("web"), stopped, int(golibvirt.DomainEventStoppedDestroyed))
		gone := requireGone(t, s, "web")
		assert.Len(t, gone.VM.NICs, 1)
		requireQuiet(t, s)
	})
	t.Run("not one that only stopped, or has another name", func(t *testing.T) {
		runsHere(t, d, s, "db")
		d.set("db", shutoff, 1, "")
		d.event("db", stopped, 0)
		requireNext(t, s, "db", fabric.Absent)
		d.event("db", undefined, int(golibvirt.DomainEventUndefinedRenamed))
		requireNext(t, s, "db", fabric.Absent)
		old := d.remove("db")
		d.eventOf(old, undefined, int(golibvirt.DomainEventUndefinedRenamed))
		requireQuiet(t, s)
	})
	t.Run("not one that is defined again", func(t *testing.T) {
		d.set("mx", shutoff, 1, ours("mx", 13))
		d.event("mx", undefined, removed)
		requireNext(t, s, "mx", fabric.Absent)
	})
	t.Run("nor one that is a stranger and runs", func(t *testing.T) {
		d.set("other", running, 1, foreign("other"))
		d.event("other", golibvirt.DomainEventStarted, 0)
		d.event("other", undefined, removed)
		requireQuiet(t, s)
		d.eventOf(d.remove("other"), stopped, 0)
		requireGone(t, s, "other")
	})
}

// A transient domain that libvirt forgets may go on elsewhere, or be started again
// from a file.
func TestDomainThatMovedIsNotGone(t *testing.T) {
	const migrated, failed = int(golibvirt.DomainEventStoppedMigrated), int(golibvirt.DomainEventStoppedFailed)
	for name, c := range map[string]struct {
		begin  func(*testing.T, *daemon, *Source, string)
		detail int
		gone   bool
	}{
		"moved":                {runsHere, migrated, false},
		"saved":                {runsHere, int(golibvirt.DomainEventStoppedSaved), false},
		"crashed":              {runsHere, failed, true},
		"shut down":            {runsHere, 0, true},
		"did not arrive":       {arrivesHere, failed, false},
		"stopped as it came":   {arrivesHere, 0, false},
		"killed at the source": {leavesHere, failed, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t).start()
			s := follow(t, d)
			c.begin(t, d, s, "web")
			d.eventOf(d.remove("web"), stopped, c.detail)
			if c.gone {
				requireGone(t, s, "web")
			} else {
				requireNext(t, s, "web", fabric.Absent)
			}
			requireQuiet(t, s)
		})
	}

	t.Run("nor one that was refused before anybody saw it", func(t *testing.T) {
		d := newDaemon(t).start()
		s := follow(t, d)
		d.set("web", running, 1, ours("web", 10))
		d.eventOf(d.remove("web"), stopped, failed)
		requireQuiet(t, s)
	})
}

// leavesHere has a source know a guest that stopped for its migration.
func leavesHere(t *testing.T, d *daemon, s *Source, name string) {
	t.Helper()
	runsHere(t, d, s, name)
	d.set(name, paused, migrating, "")
	d.event(name, golibvirt.DomainEventSuspended, suspendedMigrated)
	requireSettled(t, s, name, fabric.Live, true, false)
}

func TestNewsOfOneDomainMerge(t *testing.T) {
	over, moved := news{last: true}, news{last: true, outlived: true}
	begins, asks := news{fresh: true}, news{}
	for name, c := range map[string]struct {
		news []news
		gone bool
	}{
		"stopped, then undefined":       {[]news{over, over}, true},
		"stopped, then asked about":     {[]news{over, asks}, true},
		"moved, then undefined":         {[]news{moved, over}, false},
		"stopped, then begins":          {[]news{over, begins}, false},
		"moved, came back, and stopped": {[]news{moved, begins, over}, true},
	} {
		n := c.news[0]
		for _, newer := range c.news[1:] {
			n = merge(n, newer)
		}
		require.Equal(t, c.gone, n.gone(), name)
	}
}
