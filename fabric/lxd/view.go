package lxd

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// view is what a source knows of the instances, and how that changes with what
// is read, listed and seen of links. It has no lock: that is its owner's.
type view struct {
	dialect
	log    *slog.Logger
	links  Links
	queue  *hypervisor.Queue
	daemon *hypervisor.Daemon[*conn]

	listed     bool                 // known is complete: there was a list since connecting
	known      map[string]*observed // guests that are not absent, by name
	read       map[key]time.Time    // when an instance was last read, ours or not
	conditions map[key]condition
	stopped    stoppedInstances
}

// observed is a guest of ours as it was last seen.
type observed struct {
	key   key // whose name the guest has
	vm    fabric.VM
	state fabric.State
	at    time.Time
	// until is not zero of one that was seen to start by its link: before it,
	// LXD may take it for stopped yet.
	until time.Time
}

// condition is why an instance of ours is no guest, or not as it is written.
type condition struct {
	text         string
	nameConflict bool // only because another has its name
}

// before orders instances such that of several with one name, the one that
// shall be the guest comes first.
func (v *view) before(a, b instance) int {
	rank := func(i instance) int {
		rank := 0
		if !v.owns(i.key()) {
			rank += 4
		}
		if stateOf(i.Code, fabric.VM{}, 0) != fabric.Live {
			rank += 2
		}
		if i.key().project != defaultProject {
			rank++
		}
		return rank
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Project, b.Project))
}

// take takes up what was read of an instance at a time, and gives the guest
// that it is.
func (v *view) take(i instance, at time.Time) (d fabric.Desired, ours bool) {
	k := i.key()
	last := v.known[i.Name]
	mine := last != nil && last.key == k
	if mine && (v.read[k].After(at) || i.unreadable()) {
		return fabric.Desired{VM: last.vm, State: last.state, Since: last.at}, true
	}
	if v.read[k].After(at) {
		return d, false
	}
	v.read[k] = at
	vm, ours, err := v.guest(i)
	var was fabric.State
	if mine {
		was = last.state
	}
	if i.Code == codeStopped && !mine {
		err = nil // nothing is amiss as long as nobody starts it; who does is told
	}
	switch {
	case err != nil && mine:
		vm = last.vm
	case !ours && mine && i.Code != codeStopped:
		// Its keys were taken away: it has what it had, until it ends.
		seen := *last
		seen.state, seen.at = stateOf(i.Code, fabric.VM{}, last.state), at
		v.known[i.Name] = &seen
		v.setCondition(k, nil, false)
		return fabric.Desired{VM: v.bare(i), State: seen.state, Since: at}, true
	case !ours && mine: // likewise, and it has ended
		delete(v.known, i.Name)
		v.stopped.remove(k)
		v.setCondition(k, nil, false)
		return absent(last.vm, at), true
	case !ours:
		v.stopped.remove(k)
		v.setCondition(k, err, false)
		return d, false
	}
	d = fabric.Desired{VM: vm, State: stateOf(i.Code, vm, was), Since: at}
	seen := &observed{key: k, vm: vm, state: d.State, at: at}
	if mine && d.State != fabric.Live && v.starts(last) {
		d.State, seen.state, seen.until = fabric.Live, fabric.Live, last.until
	}
	v.setStopped(k, vm, i.Code == codeStopped && seen.until.IsZero())
	if last != nil && !mine {
		if d.State != fabric.Absent {
			err = v.nameConflict(i, last)
		}
		v.setCondition(k, err, true)
		return d, false
	}
	v.setCondition(k, err, false)
	if d.State == fabric.Absent {
		delete(v.known, i.Name)
	} else {
		v.known[i.Name] = seen
	}
	return d, true
}

// nameConflict says why an instance is no guest while another of its name is.
func (v *view) nameConflict(i instance, other *observed) error {
	return fmt.Errorf("its name is that of the instance in project %s, and a node has one guest of a name; rename one: %s",
		other.key.project, v.command(i, "rename", i.Name, "NAME"))
}

// setCondition says what is wrong with an instance of ours, in the log once;
// nil: nothing is.
func (v *view) setCondition(k key, err error, nameConflict bool) {
	if err == nil {
		delete(v.conditions, k)
		return
	}
	text := "instance " + k.name
	if k.project != defaultProject {
		text += " in project " + k.project
	}
	text += ": " + oneline.Of(err.Error())
	if v.conditions[k].text != text {
		v.log.Warn("instance not as the fabric needs it", "vm", k.name, "err", text)
	}
	v.conditions[k] = condition{text, nameConflict}
}

// owns reports whether the guest of its name is this instance.
func (v *view) owns(k key) bool {
	last := v.known[k.name]
	return last != nil && last.key == k
}
