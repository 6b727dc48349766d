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
	// unconfirmedFor is how long packets are sent to a node on its word alone,
	// while nothing here says that the guest has left: its hypervisor's word may
	// come a little later than the first frame over there.
	unconfirmedFor = 5 * time.Second
	// unconfirmedRest is how long no such word is acted upon after one of them
	// turned out to be nothing.
	unconfirmedRest = 10 * time.Minute
	// diversionMemory is how long one that ended is told.
	diversionMemory = 5 * time.Minute
	maxDiversions   = 256
)

// diversionLog keeps the diversions that are told. It is safe for concurrent use.
type diversionLog struct {
	mu  sync.Mutex
	all []fabric.DiversionStatus // the oldest first
}

// begin notes that packets are sent on; to another node, the one before ends.
func (l *diversionLog) begin(d fabric.DiversionStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finish(d.Prefixes, "they go to another node", d.Since)
	if l.all = append(l.all, d); len(l.all) > maxDiversions {
		l.all = slices.Delete(l.all, 0, len(l.all)-maxDiversions)
	}
}

// confirm notes that the hypervisor stopped the guest.
func (l *diversionLog) confirm(vm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.all {
		if l.all[i].VM == vm && l.all[i].Ended.IsZero() {
			l.all[i].Confirmed = true
		}
	}
}

// end notes that packets for prefixes come here again, and why.
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

// known reports whether a diversion of a prefix that is under way is told.
func (l *diversionLog) known(p netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, func(d fabric.DiversionStatus) bool { return d.Ended.IsZero() && slices.Contains(d.Prefixes, p) })
}

// list gives what is told, and lines about diversions that nothing here confirmed.
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

// notLeft is the outcome of a diversion that was the other node's word alone.
const notLeft = "the hypervisor here did not say that the guest left"

// runsOn is the outcome of one that the hypervisor contradicted.
const runsOn = "the hypervisor here says that the guest runs here"

// believes reports whether the word of another node alone, that a guest runs
// there, has packets sent there for a moment.
func (g *guest) believes(now time.Time) bool {
	return g.departure.state.Stops() || g.doubted.IsZero() || now.Sub(g.doubted) > unconfirmedRest
}

// unconfirmed lists the guests whose packets went to another node, on its word
// alone, for long enough.
func (s *state) unconfirmed(now time.Time) (vms []string) {
	for vm, g := range s.guests {
		if g.departure.state == migration.Diverted && g.want.State == fabric.Live && now.Sub(g.departure.since) >= unconfirmedFor {
			vms = append(vms, vm)
		}
	}
	return vms
}

// disbelieve has the packets of a guest come here again that did not leave. Where
// it was to go to is remembered: it may be about to.
func (t *task) disbelieve(ctx context.Context) {
	s, done := t.state.open()
	untrue := slices.Contains(s.unconfirmed(time.Now()), t.vm)
	done()
	if untrue {
		t.step(ctx, migration.WordUnconfirmed, fabric.Node{}, notLeft)
	}
}
