package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/plan"
	"github.com/vmfabric/vmfabric/internal/oneline"
	"github.com/vmfabric/vmfabric/internal/plural"
)

const (
	passEvery     = 30 * time.Second       // between passes, in case no backend reported a change
	passRetry     = time.Second            // until the next pass, after one that could not repair everything
	passBusy      = 100 * time.Millisecond // until the next pass, if another task works on a guest to be repaired
	passRest      = 50 * time.Millisecond  // least time between passes: changes come in bursts
	listEvery     = time.Minute            // between full lists of a source, in case it missed a change
	listRetry     = time.Second            // until the next list, after a source did not answer
	listGrace     = 5 * time.Second        // a list may lack a guest that was handled, or admitted, so shortly before it began
	listAgain     = listGrace + listRetry  // until the next list, after one that lacked such a guest
	handledMemory = 10 * time.Minute       // how long the agent remembers the last request about a guest
)

// Adopt loads the wanted state, takes over the ports and routes that exist, and makes
// those that are missing. It removes none. Call it once, before BGP sessions open:
// then the first update to a reflector has all routes, and the End-of-RIB marker (RFC
// 4724) follows it.
//
// Adopt does not fail if wanted state cannot be read: the agent then takes the
// ports in the kernel for wanted, says so in [Agent.Status], and removes nothing.
func (a *Agent) Adopt(ctx context.Context) error {
	ports, err := a.dataplane.Actual(ctx)
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	there := map[string]bool{}
	for _, p := range ports {
		there[p.Name] = true
	}
	a.recallDrain(ctx)
	a.recallBlackholes(ctx)
	desired, storeErr := a.store.All(ctx)
	if storeErr == nil && a.store.Fresh() && len(ports) > 0 {
		storeErr = fmt.Errorf("the state is empty although %s here; they are kept as they are. Detach those that are not wanted, then restart the agent", plural.Of(len(ports), "port is", "ports are"))
	}
	if storeErr != nil {
		a.inventory.damaged()
		a.conditions.say("store", "wanted state: "+oneLine(storeErr)+" (nothing is removed meanwhile)")
		a.log.Error("wanted state not fully readable; removing nothing", "err", storeErr)
	}
	for _, d := range desired {
		if d.VM.Origin != "" && a.boot != "" && d.Boot != "" && d.Boot != a.boot {
			// The machine was booted since, so the guest does not run. When it
			// starts again, its hypervisor asks for it.
			if err := a.store.Delete(ctx, d.VM.Name); err != nil {
				a.log.Warn("guest of an earlier boot not forgotten yet; trying again", "vm", d.VM.Name, "err", err)
				a.unfinished(d, err)
			}
			continue
		}
		a.adopt(d, there)
	}
	a.adoptOrphans(ports)
	a.recallMoves(ctx)
	a.recallGone(ctx)
	a.settleDiversions(ctx) // notes which diversions an earlier agent left
	a.recallDiversions()
	a.repair(ctx, plan.Decide(a.wanted(), ports, nil, false).Repairs)
	return nil
}

// unfinished lets the pass finish the removal of a guest.
func (a *Agent) unfinished(d fabric.Desired, trouble error) {
	s, done := a.state.open()
	defer done()
	g := &guest{want: d, arrival: arrivalOf(d), trouble: trouble}
	g.want.State = fabric.Absent
	s.guests[d.VM.Name] = g
}

// adopt takes over a guest from the store. there has the names of all ports that
// exist. A guest keeps its network even if the cluster file does not permit it any
// more.
func (a *Agent) adopt(d fabric.Desired, there map[string]bool) {
	s, done := a.state.open()
	defer done()
	name := d.VM.Name
	if err := complete(d.VM, fabric.ValidateKnownName); err != nil {
		a.conditions.say("guest "+name, fmt.Sprintf("guest %s: %v; attach it anew", name, err))
		a.inventory.damaged()
		return
	}
	if err := s.reserve(d.VM); err != nil {
		a.conditions.say("guest "+name, fmt.Sprintf("guest %s: %v", name, err))
		a.inventory.damaged()
		return
	}
	a.permitted(d.VM)
	d.Leaving = false                         // the source reports it again if it still holds
	if now := a.clock(); d.Since.After(now) { // the clock was set back since
		d.Since = now
	}
	a.adoptOwnership(&d)
	s.guests[name] = &guest{want: d, reported: a.reportedBefore(d, there), has: owned(d) && d.Epoch > 0, arrival: arrivalOf(d), kept: true, unasked: a.others()}
	s.unsettled[name] = true
}

// adoptOrphans takes over ports of ours whose guest the store does not have. If
// such a port has carrier, a guest uses it and only its file is lost. Then the
// agent makes up the guest from the kernel's addresses and routes.
func (a *Agent) adoptOrphans(ports []fabric.PortState) {
	s, done := a.state.open()
	defer done()
	orphans, there := map[string]*fabric.Desired{}, map[string]bool{}
	for _, p := range ports {
		there[p.Name] = true
		if _, known := s.guests[p.VM]; known || p.Cluster != a.cluster().Name || !p.Carrier && !a.inventory.isDamaged() {
			continue
		}
		d := orphans[p.VM]
		if d == nil {
			d = &fabric.Desired{VM: fabric.VM{Name: p.VM}, State: fabric.Live, Since: a.began, Boot: a.boot}
			orphans[p.VM] = d
		}
		for len(d.VM.NICs) <= p.Index && p.Index < fabric.MaxNICs {
			d.VM.NICs = append(d.VM.NICs, fabric.NIC{})
		}
		if p.Index < fabric.MaxNICs {
			d.VM.NICs[p.Index] = p.NIC
		}
		if !p.Carrier {
			d.State = fabric.Wired
		}
	}
	for _, vm := range sortedKeys(orphans) {
		d := *orphans[vm]
		err := errors.Join(fabric.ValidateKnownName(vm), d.VM.ValidateNICs())
		if err == nil {
			err = s.reserve(d.VM)
		}
		if err != nil {
			a.conditions.say("guest "+vm, fmt.Sprintf("port %s is ours, but nothing says what guest %s is: %s; attach the guest, or remove the link", fabric.PortName(vm, 0), vm, oneLine(err)))
			a.inventory.damaged()
			continue
		}
		a.conditions.say("guest "+vm, fmt.Sprintf("guest %s: no state is kept of it, its port was taken over as it is; attach it, or detach it", vm))
		s.guests[vm] = &guest{want: d, reported: a.reportedBefore(d, there), orphan: true}
		a.log.Warn("port without state taken over", "vm", vm, "state", d.State)
	}
}

// Run keeps the node in its wanted state until ctx ends, then returns nil. It leaves
// ports, routes and announcements as they are.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range a.sources {
		wg.Go(func() { a.follow(ctx, s) })
	}
	wg.Go(func() { a.serve(ctx) })
	wg.Go(func() { a.listen(ctx) })
	wg.Go(func() { a.keepMoves(ctx) })
	wg.Go(func() { a.keepRegistered(ctx) })
	defer a.alarm.stop()
	defer a.events.deliver(ctx, a.log)()
	defer wg.Wait()

	wait := time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-a.wake:
		case <-a.dataplane.Changed():
		case <-a.speaker.Changed():
		}
		timer.Stop()
		began := time.Now()
		wait = passEvery
		if !a.pass(ctx) {
			wait = passRetry
		}
		// A pass takes time in proportion to the number of guests. Leave the
		// processor to hooks and events for four times as long.
		rest := time.NewTimer(max(passRest, 4*time.Since(began)))
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
	}
}

// listen handles the dataplane's first frames and the speaker's competing routes
// until ctx ends.
func (a *Agent) listen(ctx context.Context) {
	heard, competitors := a.dataplane.Heard(), a.speaker.Competitors()
	for {
		select {
		case <-ctx.Done():
			return
		case port := <-heard:
			a.heardAt(ctx, port)
		case r := <-competitors:
			a.competes(ctx, r)
		}
	}
}

// pass compares the actual ports and routes with the wanted ones, and repairs what
// differs. It reports whether it could repair everything and had nothing to remove.
func (a *Agent) pass(ctx context.Context) bool {
	ports, err := a.dataplane.Actual(ctx)
	if err != nil {
		a.conditions.set("dataplane", err)
		return false
	}
	a.conditions.set("dataplane", nil)
	routes, err := a.speaker.Actual(ctx)
	if err != nil {
		a.conditions.set("speaker", err)
		return false
	}
	a.conditions.set("speaker", nil)

	a.keepBlackholes(ctx)
	prune := a.inventory.complete() // before a.wanted: if the inventory is complete now, wanted has all its guests
	if prune {
		a.dropOrphans(ctx, ports)
	}
	pl := plan.Decide(a.wanted(), ports, routes, prune)
	well := a.repair(ctx, pl.Repairs)
	clean := a.prune(ctx, pl)
	a.settleDiversions(ctx)
	a.emitSessions(ctx)
	return well && clean
}

// dropOrphans removes orphans whose ports are all of kind Adopt and gone: their
// owner removed the links, and nobody will report the end of such a guest. The pass
// calls it only if all state could be read, since unreadable state may describe the
// guest.
func (a *Agent) dropOrphans(ctx context.Context, ports []fabric.PortState) {
	there := map[string]bool{}
	for _, p := range ports {
		there[p.Name] = true
	}
	gone := func(g *guest) bool {
		return g != nil && g.orphan && !slices.ContainsFunc(g.want.VM.Ports(a.cluster()), func(p fabric.Port) bool { return p.NIC.Kind != fabric.Adopt || there[p.Name] })
	}
	s, done := a.state.open()
	names := slices.DeleteFunc(sortedKeys(s.guests), func(vm string) bool { return !gone(s.guests[vm]) })
	done()
	for _, vm := range names {
		t, end, free := a.tryBegin(vm)
		if !free {
			a.alarm.after(passBusy)
			continue
		}
		t.dropOrphan(ctx, gone)
		end()
	}
}

// dropOrphan removes one orphan, unless a request has described it meanwhile.
func (t *task) dropOrphan(ctx context.Context, gone func(*guest) bool) {
	s, done := t.state.open()
	g := s.guests[t.vm]
	if !gone(g) {
		done()
		return
	}
	d := g.want
	done()
	t.log.Info("a guest without state has no port any more", "vm", t.vm)
	d.State = fabric.Absent
	if err := t.tearDown(ctx, d, false); err != nil {
		t.settle(d, false, err)
		t.signal()
	}
}

// repair brings guests to their wanted state again, and reports whether all attempts
// succeeded. It leaves a guest on which another task works for the next pass, so that
// the other guests do not wait for that task.
func (a *Agent) repair(ctx context.Context, repairs []plan.Repair) bool {
	well := true
	for _, r := range repairs {
		t, end, free := a.tryBegin(r.VM)
		if !free {
			a.alarm.after(passBusy)
			continue
		}
		a.log.Info("repair", "vm", r.VM, "why", r.Why)
		a.counts.repaired(r.Kind)
		if err := t.reconcile(ctx, r.NICs); err != nil && ctx.Err() == nil {
			a.log.Warn("repair", "vm", r.VM, "err", err)
			well = false
		}
		end()
	}
	return well
}

// prune removes ports and routes that no guest has. It reports whether there were
// none. If there were some, another pass follows soon: a guest may have come
// meanwhile.
func (a *Agent) prune(ctx context.Context, pl plan.Plan) bool {
	if len(pl.Routes) == 0 && len(pl.Ports) == 0 {
		a.conditions.set("prune", nil)
		return true
	}
	locked := map[string]bool{}
	for _, p := range pl.Ports {
		if locked[p.VM] {
			continue
		}
		if _, end, free := a.tryBegin(p.VM); free {
			locked[p.VM] = true
			defer end()
		}
	}
	var ports []string
	var routes []netip.Prefix
	s, done := a.state.open()
	for _, p := range pl.Ports {
		if _, held := s.reserved.PortHolder(p.Name); !held && locked[p.VM] {
			ports = append(ports, p.Name)
		}
	}
	for _, r := range pl.Routes {
		if _, held := s.reserved.Holder(r); !held {
			routes = append(routes, r)
		}
	}
	done()
	var err error
	if len(routes) > 0 {
		a.log.Info("withdraw what no guest has", "prefix", routes[0], "prefixes", len(routes))
		a.counts.repaired(fabric.RepairLeftover)
		if err = a.speaker.Remove(ctx, routes...); err == nil {
			a.emitPruned(pl.Ports, routes, nil)
		}
	}
	if len(ports) > 0 {
		a.log.Info("remove ports that no guest has", "port", ports[0], "ports", len(ports))
		a.counts.repaired(fabric.RepairLeftover)
		removed := a.dataplane.Remove(ctx, ports...)
		if err = errors.Join(err, removed); removed == nil {
			a.emitPruned(pl.Ports, nil, ports)
		}
	}
	a.conditions.set("prune", err)
	return false
}

// wanted is the planner's view of the guests.
func (a *Agent) wanted() map[string]plan.Guest {
	hops := a.missingHops()
	s, done := a.state.open()
	defer done()
	now := time.Now()
	blackholed := s.blackholed()
	maps.DeleteFunc(s.handled, func(_ string, at time.Time) bool { return now.Sub(at) > handledMemory })
	maps.DeleteFunc(s.expected, func(vm string, at time.Time) bool {
		over := now.Sub(at) > expectation
		if over {
			a.moves.closeExpected(vm)
		}
		return over
	})
	view := make(map[string]plan.Guest, len(s.guests))
	for name, g := range s.guests {
		w := plan.Guest{
			Managed: g.want.VM.Origin != "", Retry: g.trouble != nil || g.want.State == fabric.Absent,
			Leaving: g.departure.state.Stops() || g.departure.state.Diverts(), Fresh: s.fresh(g, now), Standby: g.want.Standby,
			Defends: g.defends(now), Holder: s.saysHolder(g, g.want), NICs: g.nics, Hops: hops, Blackholed: blackholed,
		}
		if g.want.State != fabric.Absent {
			w.Ports, w.Live = g.want.VM.Ports(a.cluster()), announced(g.want)
			w.Draining = s.draining()
		}
		view[name] = w
	}
	for _, name := range a.inventory.unresolvedGuests() {
		if _, here := view[name]; !here {
			view[name] = plan.Guest{Unknown: true}
		}
	}
	return view
}

// follow applies the changes of one source until ctx ends. list runs beside it: a
// list waits for the slowest guest, and the cutover of another guest must not wait
// for it. For the same reason only list asks the resolver. Changes to different
// guests are applied side by side; of two changes to one guest the newer counts, in
// whichever order they are applied.
func (a *Agent) follow(ctx context.Context, s fabric.Source) {
	var work sync.WaitGroup
	defer work.Wait()
	lost := make(chan struct{}, 1)
	work.Go(func() { a.list(ctx, s, lost) })
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-s.Changes():
			if !c.Lost && !a.asks(c.Guest) {
				work.Go(func() {
					a.applyChange(ctx, c.Guest)
					if c.Gone {
						a.goneForGood(ctx, c.Guest.VM)
					}
				})
				continue
			}
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}
}

// list asks a source for all of its guests: at the start, when changes were lost, every
// listEvery, and once more soon after a list that lacked a guest which it may have been
// too early for. Of a start that ended with its hypervisor nobody says that it failed.
func (a *Agent) list(ctx context.Context, s fabric.Source, lost <-chan struct{}) {
	for ctx.Err() == nil {
		began, wait := time.Now(), listEvery
		switch guests, err := s.Guests(ctx); {
		case err == nil:
			if early := a.applyList(ctx, s.Name(), guests, began); early {
				wait = listAgain
			}
		case errors.Is(err, os.ErrNotExist):
			a.listed(s.Name()) // this machine has no such hypervisor, and so no guests of it
			wait = listRetry
		default:
			// The source itself reports it if that is a problem: see
			// fabric.Diagnoser.
			a.log.Debug("source does not answer", "source", s.Name(), "err", err)
			wait = listRetry
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-lost:
		case <-again.C:
		}
		again.Stop()
	}
}

// listed notes that a source has listed its guests. The first time it wakes the pass,
// which may be allowed to remove ports and routes now.
func (a *Agent) listed(source string) {
	if a.inventory.listed(source) {
		a.signal()
	}
}

// applyList applies a full list that a source began at began. Guests of the source
// that the list lacks are gone, except those that were handled or admitted since
// shortly before began: then it is too early to say.
func (a *Agent) applyList(ctx context.Context, source string, guests []fabric.Desired, began time.Time) (early bool) {
	listed := map[string]bool{}
	var unresolved []fabric.Desired
	for _, d := range guests {
		if d.State == 0 && !a.undescribed(d) {
			continue
		}
		listed[d.VM.Name] = true
		if d.Since.IsZero() {
			d.Since = began
		}
		switch {
		case d.State == 0:
		case a.asks(d):
			unresolved = append(unresolved, d)
		default:
			a.applyChange(ctx, d)
		}
	}
	a.unresolve(source, unresolved)
	var gone []string
	s, done := a.state.open()
	for name, g := range s.guests {
		switch surely := began.Add(-listGrace); {
		case g.want.VM.Origin != source || listed[name]:
		case s.handled[name].Before(surely) && g.admitted.Before(surely):
			gone = append(gone, name)
		case g.want.State != fabric.Absent:
			early = true
		}
	}
	done()
	for _, name := range gone {
		a.log.Info("guest is gone", "vm", name, "source", source)
		a.applyChange(ctx, fabric.Desired{VM: fabric.VM{Name: name, Origin: source}, State: fabric.Absent, Since: began})
	}
	a.conditions.clearFunc(func(about string) bool {
		name, refused := strings.CutPrefix(about, refusedKey(source, ""))
		return refused && !listed[name]
	})
	a.listed(source)
	a.applyChanges(ctx, unresolved)
	return early
}

// applyChange applies the report of a source about one guest. By such a report a
// guest becomes wired or live, or is removed. Only hooks withdraw a guest and leave
// its port.
func (a *Agent) applyChange(ctx context.Context, d fabric.Desired) {
	name := d.VM.Name
	s, done := a.state.open()
	if s.outdated(name, d.Since) {
		done()
		return
	}
	w := s.weigh(d)
	done()
	d = w.said
	var err error
	switch {
	case !w.about:
		return
	case d.State == fabric.Absent:
		if w.ours {
			err = a.remove(ctx, name, d.Since)
		} else {
			a.forgetUnknown(name, d.Since)
		}
	case d.Leaving && w.live:
		if !w.leaving {
			a.stopped(ctx, name, d.Since)
		}
	case d.Leaving && w.known: // it is not announced, and must not be
	case w.leaving && d.State == fabric.Live:
		a.resumed(ctx, name, d.Since)
	case w.same:
		if d.State == fabric.Live {
			a.runsHere(ctx, name, d.Since)
		}
	case w.arriving && d.State == fabric.Live:
		a.run(ctx, d.VM, d.Since, d.VM.Origin)
	default:
		err = a.ensure(ctx, d.VM, request{asOf: d.Since, run: d.Run, settle: func(prev fabric.Desired, known, incoming bool) (fabric.State, bool) {
			if d.State == fabric.Live || known && prev.State == fabric.Live {
				return fabric.Live, false
			}
			return fabric.Wired, incoming || known && prev.Incoming
		}})
		switch { // an agent before this one knew more, and lost it
		case err != nil:
		case d.Leaving:
			a.stopped(ctx, name, d.Since)
		case d.State == fabric.Live:
			a.runsHere(ctx, name, d.Since)
		}
	}
	if errors.Is(err, fabric.ErrRefused) {
		var u unanswered
		if errors.As(err, &u) {
			err = fmt.Errorf("guest %s runs, but %w", name, u)
		}
		a.log.Warn("guest runs, but is refused", "vm", name, "err", err)
		a.conditions.set(refusedKey(d.VM.Origin, name), err)
		return
	}
	a.conditions.set(refusedKey(d.VM.Origin, name), nil)
	if err != nil {
		a.log.Warn("guest not as wanted yet", "vm", name, "err", err)
	}
}

// weighed is a source's report about a guest, compared with the state of the guest.
type weighed struct {
	said     fabric.Desired // the report, with the addresses that the guest keeps while it runs
	about    bool           // the report is about a guest of the fabric
	known    bool           // this node has a guest of that name
	ours     bool           // that guest is the one in the report
	same     bool           // the guest is already as reported
	live     bool           // the guest is wanted live
	leaving  bool           // the guest was stopped to run on another node
	arriving bool           // the guest is arriving from another node
}

// weigh compares a source's report with the state of the guest. It notes the run, and
// how the description differs from that with which the guest started.
func (s *state) weigh(d fabric.Desired) (w weighed) {
	var g *guest
	g, w.known = s.guests[d.VM.Name]
	d.VM, _ = s.answered(d.VM)
	d, w.about = s.describedAs(d)
	w.said = d
	if !w.known {
		return w
	}
	w.same = g.want.State >= d.State && g.trouble == nil && sameVM(g.want.VM, d.VM) && (d.State != fabric.Live || !g.want.Incoming)
	w.ours = g.want.VM.Origin == d.VM.Origin && (d.State != fabric.Absent || isOf(g.want.VM, d.VM))
	if w.same && d.Run != "" {
		g.want.Run = d.Run
	}
	w.live = w.ours && g.want.State == fabric.Live
	w.leaving = w.live && g.departure.state.Stops()
	w.arriving = w.ours && g.arrival.Awaits()
	return w
}

func sameVM(a, b fabric.VM) bool {
	if a.Name != b.Name || a.UUID != b.UUID || a.Origin != b.Origin || a.Resolve != b.Resolve || switches(a) != switches(b) ||
		a.NoMetadata != b.NoMetadata || a.Isolated != b.Isolated || !a.Firewall.Equal(b.Firewall) || len(a.NICs) != len(b.NICs) {
		return false
	}
	for i := range a.NICs {
		x, y := a.NICs[i], b.NICs[i]
		if x.Kind != y.Kind || x.MAC != y.MAC || x.Queues != y.Queues || x.MTU != y.MTU ||
			len(x.Addresses) != len(y.Addresses) || len(without(x.Prefixes(), y.Prefixes())) > 0 || len(x.Routes) != len(y.Routes) {
			return false
		}
	}
	return true
}

func oneLine(err error) string { return oneline.Of(err.Error()) }
