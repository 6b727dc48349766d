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

// view is what a source knows of the instances, and changes with every read, list
// and link. It has no lock: its owner has.
type view struct {
	dialect
	log    *slog.Logger
	links  Links
	queue  *hypervisor.Queue
	daemon *hypervisor.Daemon[*conn]

	listed     bool                 // a list has been taken on this connection, so known is complete
	known      map[string]*observed // guests that are not absent, by name
	read       map[key]time.Time    // when an instance was last read, of the fabric or not
	seen       map[key]lastSeen
	migrations map[key]time.Time // of instances to other servers: when they ended; zero: under way
	conditions map[key]condition
	stopped    stoppedInstances
}

// observed is a guest of the fabric as it was last seen.
type observed struct {
	key   key // the instance that is the guest
	vm    fabric.VM
	state fabric.State
	at    time.Time
	// until is set if the guest's start was seen by its link: until then LXD may
	// still report it as stopped.
	until time.Time
}

// condition says why an instance of the fabric is no guest, or not as it is
// configured.
type condition struct {
	text         string
	nameConflict bool // another instance of the same name is the guest
}

// before orders instances so that of several with one name the one that is to be
// the guest comes first.
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

// take takes the read of an instance at a time, and returns the guest that it is.
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
	if !i.unreadable() {
		v.seen[k] = lastSeen{i.uuid(), at}
	}
	vm, ours, err := v.guest(i)
	var was fabric.State
	if mine {
		was = last.state
	}
	if i.Code == codeStopped && !mine {
		err = nil // a stopped instance may have faults; whoever starts it gets the error
	}
	switch {
	case err != nil && mine:
		vm = last.vm
	case !ours && mine && i.Code != codeStopped:
		// Its keys were removed: it keeps its addresses until it ends.
		seen := *last
		seen.state, seen.at = stateOf(i.Code, fabric.VM{}, last.state), at
		v.known[i.Name] = &seen
		v.setCondition(k, nil, false)
		return fabric.Desired{VM: v.bare(i), State: seen.state, Since: at}, true
	case !ours && mine: // its keys were removed, and it has ended
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

// nameConflict says why an instance is no guest while another with its name is.
func (v *view) nameConflict(i instance, other *observed) error {
	return fmt.Errorf("its name is that of the instance in project %s, and a node has one guest of a name; rename one: %s",
		other.key.project, v.command(i, "rename", i.Name, "NAME"))
}

// setCondition sets the fault of an instance, and logs a new one; nil: it has none.
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

// owns reports whether the guest with its name is this instance.
func (v *view) owns(k key) bool {
	last := v.known[k.name]
	return last != nil && last.key == k
}
