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
	"github.com/vmfabric/vmfabric/fabric/internal/plural"
)

const (
	passEvery     = 30 * time.Second       // a full pass, in case a change went unseen
	passRetry     = time.Second            // the next pass while a guest is in trouble
	passBusy      = 100 * time.Millisecond // the next pass while somebody is at work on a guest that is to be repaired
	passRest      = 50 * time.Millisecond  // between passes; changes come in bursts
	listEvery     = time.Minute            // a full list from a source, likewise
	listRetry     = time.Second            // after a source did not answer
	listGrace     = 5 * time.Second        // a guest handled this short before a list began may be missing in it
	handledMemory = 10 * time.Minute       // how long the last request about a guest is remembered
)

// Adopt loads the wanted state and makes it so: ports and routes that are
// there are taken over as they are, what is missing is made. It removes
// nothing. Call it once, before BGP sessions open, so that the first thing
// that a reflector hears is the whole truth (and the End-of-RIB marker of RFC
// 4724 comes after it).
//
// Wanted state that cannot be read is no error here: the agent takes what the
// kernel holds for wanted, says so in [Agent.Status], and removes nothing.
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
	desired, storeErr := a.store.All(ctx)
	if f, ok := a.store.(interface{ Fresh() bool }); ok && storeErr == nil && f.Fresh() && len(ports) > 0 {
		storeErr = fmt.Errorf("the state is empty although %s here; they are kept as they are. Detach those that are not wanted, then restart the agent", plural.Of(len(ports), "port is", "ports are"))
	}
	if storeErr != nil {
		a.inventory.damaged()
		a.conditions.say("store", "wanted state: "+oneLine(storeErr)+" (nothing is removed meanwhile)")
		a.log.Error("wanted state not fully readable; removing nothing", "err", storeErr)
	}
	for _, d := range desired {
		if d.VM.Origin != "" && a.boot != "" && d.Boot != "" && d.Boot != a.boot {
			// The machine was booted since: no guest survived it, and the
			// hypervisor asks for those that start again.
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
	a.settleDiversions(ctx) // so that it is known which there are
	a.repair(ctx, plan.Decide(a.wanted(), ports, nil, false).Repairs)
	return nil
}

// unfinished has the pass finish the removal of a guest.
func (a *Agent) unfinished(d fabric.Desired, trouble error) {
	s, done := a.state.open()
	defer done()
	g := &guest{want: d, arrival: arrivalOf(d), trouble: trouble}
	g.want.State = fabric.Absent
	s.guests[d.VM.Name] = g
}

// adopt takes a guest over from the store, and those of its ports that are
// there. Rules that changed since do not take the network away from a guest
// that has it.
func (a *Agent) adopt(d fabric.Desired, there map[string]bool) {
	s, done := a.state.open()
	defer done()
	name := d.VM.Name
	if err := completeAsKnown(d.VM); err != nil {
		a.conditions.say("guest "+name, fmt.Sprintf("guest %s: %v; attach it anew", name, err))
		a.inventory.damaged()
		return
	}
	if err := s.reserve(d.VM); err != nil {
		a.conditions.say("guest "+name, fmt.Sprintf("guest %s: %v", name, err))
		a.inventory.damaged()
		return
	}
	if err := a.cluster.Permits(d.VM); err != nil {
		a.conditions.say("guest "+name, fmt.Sprintf("guest %s: %v (it keeps what it had until it is detached)", name, err))
	}
	d.Leaving = false                         // the source says if it is so still
	if now := a.clock(); d.Since.After(now) { // the clock was set back since
		d.Since = now
	}
	a.adoptOwnership(&d)
	s.guests[name] = &guest{want: d, reported: a.toldBefore(d, there), has: owned(d) && d.Epoch > 0, arrival: arrivalOf(d), kept: true, unasked: a.others()}
	s.unsettled[name] = true
}

// adoptOrphans takes ports over that are ours but that the store does not
// know. Where somebody holds the other end a guest is using it, so its file
// was lost: the kernel's word is taken for it.
func (a *Agent) adoptOrphans(ports []fabric.PortState) {
	s, done := a.state.open()
	defer done()
	orphans, there := map[string]*fabric.Desired{}, map[string]bool{}
	for _, p := range ports {
		there[p.Name] = true
		if _, known := s.guests[p.VM]; known || p.Cluster != a.cluster.Name || !p.Carrier && !a.inventory.isDamaged() {
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
		s.guests[vm] = &guest{want: d, reported: a.toldBefore(d, there), orphan: true}
		a.log.Warn("port without state taken over", "vm", vm, "state", d.State)
	}
}

// Run keeps the node as it is wanted until ctx ends, then returns nil. Ports,
// routes and announcements stay as they are.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, s := range a.sources {
		wg.Go(func() { a.follow(ctx, s) })
	}
	wg.Go(func() { a.serve(ctx) })
	wg.Go(func() { a.listen(ctx) })
	wg.Go(func() { a.keepMoves(ctx) })
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
		// A pass costs in proportion to the guests: leave the processor four
		// times as long to those who are not being repaired.
		rest := time.NewTimer(max(passRest, 4*time.Since(began)))
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
	}
}

// listen follows what the dataplane and the speaker tell of moves.
func (a *Agent) listen(ctx context.Context) {
	heard, rivals := a.dataplane.Heard(), a.speaker.Competitors()
	for {
		select {
		case <-ctx.Done():
			return
		case port := <-heard:
			a.heardAt(ctx, port)
		case r := <-rivals:
			a.competes(ctx, r)
		}
	}
}

// pass compares everything with what is wanted and repairs what differs. It
// reports whether all is well.
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

	prune := a.inventory.complete() // before the guests: all whom that speaks of are among them
	if prune {
		a.dropOrphans(ctx, ports)
	}
	pl := plan.Decide(a.wanted(), ports, routes, prune)
	well := a.repair(ctx, pl.Repairs)
	clean := a.prune(ctx, pl)
	a.settleDiversions(ctx)
	a.tellSessions(ctx)
	return well && clean
}

// dropOrphans forgets guests that were taken over for their ports alone, which had
// another owner, who has removed them: nobody is going to say that such a guest
// ended. Not while state cannot be read: what it is may be there.
func (a *Agent) dropOrphans(ctx context.Context, ports []fabric.PortState) {
	there := map[string]bool{}
	for _, p := range ports {
		there[p.Name] = true
	}
	gone := func(g *guest) bool {
		return g != nil && g.orphan && !slices.ContainsFunc(g.want.VM.Ports(&a.cluster), func(p fabric.Port) bool { return p.NIC.Kind != fabric.Adopt || there[p.Name] })
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

// dropOrphan is dropOrphans for one, unless somebody has said meanwhile what it is.
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
	if err := t.tearDown(ctx, d); err != nil {
		t.settle(d, false, err)
		t.signal()
	}
}

// repair brings guests to what is wanted of them again, and reports whether
// all are there. A guest that somebody is at work on is left for the next pass:
// whatever that one waits for, the others do not.
func (a *Agent) repair(ctx context.Context, repairs []plan.Repair) bool {
	well := true
	for _, r := range repairs {
		t, end, free := a.tryBegin(r.VM)
		if !free {
			a.alarm.after(passBusy)
			continue
		}
		a.log.Info("repair", "vm", r.VM, "why", r.Why)
		if err := t.reconcile(ctx, r.NICs); err != nil && ctx.Err() == nil {
			a.log.Warn("repair", "vm", r.VM, "err", err)
			well = false
		}
		end()
	}
	return well
}

// prune removes what nobody wants. It reports whether there was nothing to
// remove: a guest may come while it works, so another pass looks again.
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
		if err = a.speaker.Remove(ctx, routes...); err == nil {
			a.tellPruned(pl.Ports, routes, nil)
		}
	}
	if len(ports) > 0 {
		a.log.Info("remove ports that no guest has", "port", ports[0], "ports", len(ports))
		removed := a.dataplane.Remove(ctx, ports...)
		if err = errors.Join(err, removed); removed == nil {
			a.tellPruned(pl.Ports, nil, ports)
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
	maps.DeleteFunc(s.handled, func(_ string, at time.Time) bool { return now.Sub(at) > handledMemory })
	maps.DeleteFunc(s.expected, func(_ string, at time.Time) bool { return now.Sub(at) > expectation })
	view := make(map[string]plan.Guest, len(s.guests))
	for name, g := range s.guests {
		w := plan.Guest{
			Managed: g.want.VM.Origin != "", Retry: g.trouble != nil || g.want.State == fabric.Absent,
			Leaving: g.departure.state.Stops() || g.departure.state.Diverts(), Fresh: s.fresh(g, now), Standby: g.want.Standby,
			Defends: g.defends(), Holder: s.saysHolder(g, g.want), NICs: g.nics, Hops: hops,
		}
		if g.want.State != fabric.Absent {
			w.Ports, w.Live = g.want.VM.Ports(&a.cluster), announced(g.want)
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

// follow keeps step with one source until ctx ends. Lists are made beside the
// reading of changes: a list waits for the slowest guest, and the cutover of
// another one cannot. So it is there that a resolver is asked. Nor does a change
// wait for that of another guest; of one guest the newest counts, whichever is
// taken up first.
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
				work.Go(func() { a.applyChange(ctx, c.Guest) })
				continue
			}
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}
}

// list asks a source for all of its guests at the start, when changes were
// lost, and now and then.
func (a *Agent) list(ctx context.Context, s fabric.Source, lost <-chan struct{}) {
	for ctx.Err() == nil {
		began, wait := time.Now(), listEvery
		switch guests, err := s.Guests(ctx); {
		case err == nil:
			a.applyList(ctx, s.Name(), guests, began)
		case errors.Is(err, os.ErrNotExist):
			a.listed(s.Name()) // it has no guests to be waited for
			wait = listRetry
		default:
			// Whether that is a problem, the source itself knows best: see Diagnoser.
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

// listed notes that the guests of a source are known.
func (a *Agent) listed(source string) {
	if a.inventory.listed(source) {
		a.signal()
	}
}

// applyList applies a full list. Guests of the source that are not in it are
// gone, but for those that were handled while it was made.
func (a *Agent) applyList(ctx context.Context, source string, guests []fabric.Desired, began time.Time) {
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
		if g.want.VM.Origin == source && !listed[name] && s.handled[name].Before(began.Add(-listGrace)) {
			gone = append(gone, name)
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
}

// applyChange applies what a source says of one guest. A source raises a guest, or
// says that it is gone; going down in steps is for the hooks.
func (a *Agent) applyChange(ctx context.Context, d fabric.Desired) {
	name := d.VM.Name
	if a.outdated(name, d.Since) {
		return
	}
	s, done := a.state.open()
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
	case d.Leaving && w.known: // it is not announced, nor to be
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

// weighed is the word of a source, against what is known of the guest.
type weighed struct {
	said     fabric.Desired // with what the guest keeps while it runs
	about    bool           // it is about a guest of the fabric
	known    bool           // which this node has
	ours     bool           // and which is the one that the source speaks of
	same     bool           // nothing is to be done
	live     bool           // it is wanted live
	leaving  bool           // it was stopped to run elsewhere
	arriving bool           // it is to arrive
}

// weigh takes up the word of a source.
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
	if a.Name != b.Name || a.UUID != b.UUID || a.Origin != b.Origin || a.Resolve != b.Resolve || len(a.NICs) != len(b.NICs) {
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

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
