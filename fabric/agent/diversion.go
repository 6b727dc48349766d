package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

const (
	// unconfirmedFor is how long this node diverts a guest's packets without the
	// confirmation of its own hypervisor, whose event may come a little later than
	// the first frame at the destination.
	unconfirmedFor = 5 * time.Second
	// unconfirmedRest is how long this node ignores further Arrived notices for a
	// guest after an unconfirmed diversion.
	unconfirmedRest = 10 * time.Minute
	// diversionMemory is how long Status lists a diversion after its end.
	diversionMemory = 5 * time.Minute
	maxDiversions   = 256
)

// diversionLog keeps the diversions that Status lists. It is safe for concurrent use.
type diversionLog struct {
	mu  sync.Mutex
	all []fabric.DiversionStatus // the oldest first
}

// begin adds a diversion, and ends an earlier one of the same prefixes.
func (l *diversionLog) begin(d fabric.DiversionStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finish(d.Prefixes, "they go to another node", d.Since)
	if l.all = append(l.all, d); len(l.all) > maxDiversions {
		l.all = slices.Delete(l.all, 0, len(l.all)-maxDiversions)
	}
}

// confirm records that the hypervisor stopped or ended the guest.
func (l *diversionLog) confirm(vm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.all {
		if l.all[i].VM == vm && l.all[i].Ended.IsZero() {
			l.all[i].Confirmed = true
		}
	}
}

// end records that the diversion of prefixes is over, and why.
func (l *diversionLog) end(ps []netip.Prefix, outcome string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finish(ps, outcome, now)
}

func (l *diversionLog) finish(ps []netip.Prefix, outcome string, now time.Time) {
	for i := range l.all {
		if d := &l.all[i]; d.Ended.IsZero() && slices.ContainsFunc(d.Prefixes, func(p netip.Prefix) bool { return slices.Contains(ps, p) }) {
			d.Ended, d.Outcome = now, outcome
		}
	}
}

// known reports whether the log has a diversion of a prefix that is under way.
func (l *diversionLog) known(p netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, func(d fabric.DiversionStatus) bool { return d.Ended.IsZero() && slices.Contains(d.Prefixes, p) })
}

// list gives the diversions for Status, and a problem for each that ended without
// confirmation.
func (l *diversionLog) list(now time.Time) (all []fabric.DiversionStatus, problems []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(d fabric.DiversionStatus) bool { return !d.Ended.IsZero() && now.Sub(d.Ended) > diversionMemory })
	for _, d := range l.all {
		if d.Outcome == notLeft {
			problems = append(problems, fmt.Sprintf("guest %s: node %s said at %s that it runs there, and the hypervisor here did not say that it left; its packets went there for %v and come here again; see whether it runs on both nodes, and what runs on %s",
				d.VM, d.Node, d.Since.Format(time.TimeOnly), d.Ended.Sub(d.Since).Round(time.Second), d.Node))
		}
	}
	return append([]fabric.DiversionStatus{}, l.all...), problems
}

// notLeft is the outcome of a diversion that the hypervisor did not confirm in time.
const notLeft = "the hypervisor here did not say that the guest left"

// runsOn is the outcome of a diversion that the hypervisor contradicted.
const runsOn = "the hypervisor here says that the guest runs here"

// believes reports whether Arrived of another node suffices to divert the guest's
// packets there.
func (g *guest) believes(now time.Time) bool {
	return g.departure.state.Stops() || g.doubted.IsZero() || now.Sub(g.doubted) > unconfirmedRest
}

// unconfirmed lists the guests whose diversion has lasted for unconfirmedFor without
// confirmation.
func (s *state) unconfirmed(now time.Time) (vms []string) {
	for vm, g := range s.guests {
		if g.departure.state == migration.Diverted && g.want.State == fabric.Live && now.Sub(g.departure.since) >= unconfirmedFor {
			vms = append(vms, vm)
		}
	}
	return vms
}

// disbelieve ends the unconfirmed diversion of a guest. It remembers the destination:
// the guest may still be about to leave.
func (t *task) disbelieve(ctx context.Context) {
	s, done := t.state.open()
	untrue := slices.Contains(s.unconfirmed(time.Now()), t.vm)
	done()
	if untrue {
		t.step(ctx, migration.WordUnconfirmed, fabric.Node{}, notLeft)
	}
}
