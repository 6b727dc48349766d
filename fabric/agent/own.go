package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/ownership"
	"github.com/vmfabric/vmfabric/internal/plural"
)

// grant is an ownership that the registry gave this node for a start. The zero value: it
// gave none.
type grant struct {
	epoch  uint64
	before string // the node that owned the guest before; empty: none did
}

// own makes this node the owner of a guest that is about to start here, in a registry
// that all nodes share. It refuses the start if another node acquired the guest since
// this one asked the others. There is no grant if the registry does not answer, nor for
// a guest that runs already, here or at the node that it comes from: such a guest waits
// for no registry, which is told afterwards (recordOwner).
//
// A guest that had no address yet has no owner either: the answer that gave it its
// addresses made this node the owner, and nothing is left to ask.
func (t *task) own(ctx context.Context, vm fabric.VM, r request, found inquiry) (grant, error) {
	s, done := t.state.open()
	start := s.settles(vm, r, found.holder)
	done()
	if !found.registered || found.owner.Node == "" || !r.undo || start.want.Incoming {
		return grant{}, nil
	}
	least := max(found.epoch, start.was.Epoch) + 1
	if found.allNew && found.owner.Node == t.node && found.owner.Epoch >= least {
		return grant{epoch: found.owner.Epoch}, nil
	}
	owner, err := t.acquireSoon(ctx, fabric.AcquireRequest{Guest: vm.Identity(), VM: vm.Name, Node: t.node, Over: found.owner.Epoch, Least: least})
	switch {
	case errors.Is(err, fabric.ErrRefused):
		return grant{}, err
	case err != nil:
		t.log.Warn("the registry does not know yet where a guest runs", "vm", vm.Name, "err", err)
		return grant{}, nil
	}
	is := grant{epoch: owner.Epoch}
	if found.owner.Epoch > 0 {
		is.before = found.owner.Node
	}
	return is, nil
}

// starts reports whether a request starts a guest here that does not arrive by a
// migration, as far as this node knows by itself.
func (t *task) starts(vm fabric.VM, r request) bool {
	s, done := t.state.open()
	defer done()
	return r.undo && !s.settles(vm, r, holder{}).want.Incoming
}

// takeGrant returns the ownership that a guest did not use, and forgets it.
func (s *state) takeGrant(vm string) (unused grant) {
	if g := s.guests[vm]; g != nil {
		unused, g.grant = g.grant, grant{}
	}
	return unused
}

// handBack makes the node that owned a guest before its owner again, after a start here
// that failed: the guest may run there all the time. It returns at once.
func (a *Agent) handBack(vm fabric.VM, unused grant) {
	if unused.before == "" || unused.before == a.node {
		return
	}
	a.registration.handBack(fabric.AcquireRequest{Guest: vm.Identity(), VM: vm.Name, Node: unused.before, Over: unused.epoch})
	signal(a.registration.wake)
}

// handAllBack tells the registry of the ownerships that were not used. It tries again
// later what fails, unless another node has acquired the guest since.
func (a *Agent) handAllBack(ctx context.Context) {
	var failed error
	for _, r := range a.registration.takeUnused() {
		if failed == nil { // else it may be away: do not wait for it again
			if _, err := a.acquireSoon(ctx, r); !errors.Is(err, fabric.ErrRefused) {
				failed = err
			}
		}
		if failed != nil {
			a.log.Warn("the registry does not know yet that a guest did not start here", "vm", r.VM, "err", failed)
			a.registration.handBack(r)
		}
	}
}

// acquireSoon asks the registry once, for a short time.
func (a *Agent) acquireSoon(ctx context.Context, r fabric.AcquireRequest) (fabric.Owner, error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	return a.registry.Acquire(ctx, r)
}

// ownedBefore gives the epoch of the other node that owned the guest last, as the
// registry knows it; zero: none did.
func (a allotment) ownedBefore(self string) uint64 {
	if a.owner.Node == self {
		return 0
	}
	return a.owner.Epoch
}

// nextEpoch gives the epoch with which a guest begins to run here.
func (s *state) nextEpoch(g *guest, own uint64) uint64 {
	if !s.fenced {
		return ownership.Next(s.clock(), g.heard, own)
	}
	next := ownership.Following(g.grant.epoch, g.heard, own)
	g.acquired, g.grant, g.unowned = next == g.grant.epoch, grant{}, unowned{}
	return next
}

// recorded reports whether the registry has a guest's addresses, and its owner if there
// is one.
func (s *state) recorded(g *guest) bool { return g.registered && !s.lacksOwner(g) }

// lacksOwner reports whether the registry may not know that a guest runs here.
func (s *state) lacksOwner(g *guest) bool { return s.fenced && g.has && !g.acquired }

// unowned says since when and why the registry has not been told that a guest runs here,
// although the agent tried. The zero value: it has not tried in vain.
type unowned struct {
	since time.Time
	why   string
}

// tried notes an attempt to let the registry know of a guest.
func (s *state) tried(g *guest, err error) {
	switch {
	case !s.lacksOwner(g):
		g.unowned = unowned{}
	case err != nil:
		g.unowned.why = oneLine(err)
		if g.unowned.since.IsZero() {
			g.unowned.since = s.clock()
		}
	}
}

// ownersProblem says for people of which guests the registry does not know that they run
// here, if the agent could not tell it so; empty: there are none.
func (s *state) ownersProblem() string {
	const most = 3
	var names []string
	var first unowned
	for _, name := range sortedKeys(s.guests) {
		g := s.guests[name]
		if !s.lacksOwner(g) {
			continue
		}
		names = append(names, name) // also one that waits because the registry did not answer for another
		if is := g.unowned; !is.since.IsZero() && (first.since.IsZero() || is.since.Before(first.since)) {
			first = is
		}
	}
	if first.since.IsZero() {
		return ""
	}
	which := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		which += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("the registry does not know that %s here since %s (%s), so the nodes decide by their own words alone which has one; it is told every %v until it does: %s",
		plural.Of(len(names), "guest runs", "guests run"), first.since.Format(time.DateTime), which, registerEvery, first.why)
}

// recordOwner lets the registry know that a guest runs here. given are the guest's
// allocations. If by the registry another node began to run the guest later, that node
// is asked: the owner stays while it has the guest, or does not answer, which is an
// [*fabric.OwnerError], and the agent comes back to it.
func (a *Agent) recordOwner(ctx context.Context, vm fabric.VM, given []fabric.Allocation) error {
	s, done := a.state.open()
	g := s.guests[vm.Name]
	runs := g != nil && g.has && g.want.VM.Identity() == vm.Identity()
	var epoch uint64
	if runs {
		epoch = g.epoch()
	}
	done()
	is := ownerOf(given)
	if !a.fenced || !runs || is.Node == "" {
		return nil
	}
	if is.Epoch > epoch && is.Node != a.node && !a.letGoOf(ctx, is.Node, vm) {
		return &fabric.OwnerError{VM: vm.Name, Owner: is}
	}
	if is.Epoch < epoch || is.Node != a.node {
		if _, err := a.registry.Acquire(ctx, fabric.AcquireRequest{Guest: vm.Identity(), VM: vm.Name, Node: a.node, Over: is.Epoch, Least: epoch}); err != nil {
			return fmt.Errorf("that it runs here: %w", err)
		}
	}
	s, done = a.state.open()
	defer done()
	if g := s.guests[vm.Name]; g != nil && g.epoch() == epoch {
		g.acquired = true
	}
	return nil
}

// epoch is the one with which the guest runs here, or is about to.
func (g *guest) epoch() uint64 { return max(g.want.Epoch, g.taken) }

// letGoOf reports whether a node says that it does not have a guest, not even one that
// does not run there yet.
func (a *Agent) letGoOf(ctx context.Context, node string, vm fabric.VM) bool {
	n := fabric.Notice{Kind: fabric.Describing, VM: vm.Name, Identity: vm.Identity(), Prefixes: vm.Prefixes()}
	answers, _ := a.askAll(ctx, n, []string{node})
	answer, answered := answers[node]
	return answered && !(answer.Held && answer.Identity == vm.Identity())
}

// recordNode lets this node's own registry know on which node a guest is.
func (a *Agent) recordNode(ctx context.Context, guest fabric.Identity, vm string, has []fabric.Allocation, node string) error {
	if is := ownerOf(has); len(has) > 0 && is.Node != node {
		_, err := a.registry.Acquire(ctx, fabric.AcquireRequest{Guest: guest, VM: vm, Node: node, Over: is.Epoch})
		return err
	}
	return nil
}

// ownerOf gives the owner of the guest that has all these allocations.
func ownerOf(has []fabric.Allocation) fabric.Owner {
	if len(has) == 0 {
		return fabric.Owner{}
	}
	return has[0].Owner()
}

// owners reads the owners of guests that would be withdrawn for a competing route of a
// node that does not answer. It has nothing if the registry does not answer.
func (a *Agent) owners(ctx context.Context, lost map[string]loss) map[fabric.Identity]fabric.Owner {
	if !a.fenced {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	is := map[fabric.Identity]fabric.Owner{}
	for vm, l := range lost {
		guest := a.identityOf(vm)
		if l.other || guest == "" {
			continue
		}
		has, err := a.allocationsOf(ctx, guest)
		if err != nil {
			return nil
		}
		if len(has) > 0 {
			is[guest] = ownerOf(has)
		}
	}
	return is
}

// identityOf gives the identity of a guest of this node; empty: there is none.
func (a *Agent) identityOf(vm string) fabric.Identity {
	s, done := a.state.open()
	defer done()
	if g := s.guests[vm]; g != nil {
		return g.want.VM.Identity()
	}
	return ""
}

// keepsByRegistry reports whether a guest stays announced although a node that does not
// answer has a competing route: by the registry, this node is its owner. A node that
// begins to run the guest becomes its owner, unless it cannot reach the registry either.
func (s *state) keepsByRegistry(vm string, l loss, owners map[fabric.Identity]fabric.Owner) bool {
	g := s.guests[vm]
	if g == nil || l.other {
		return false
	}
	if is := owners[g.want.VM.Identity()]; is.Node != s.node || is.Epoch < g.want.Epoch {
		return false
	}
	if g.contests == nil {
		g.contests = map[string]remark{}
	}
	g.contests[l.node] = remark{text: fmt.Sprintf(
		"guest %s: a route for it via %s comes before this node's at %s, and the agent there does not answer; by the registry %s has the guest, which stays announced: see what runs on %[2]s",
		vm, l.node, l.reflector, s.node), at: time.Now()}
	return true
}

// knownOwner gives the owner of a guest as it was when the registry was last read. If it
// was not read since the agent started, that is an unnamed node with the highest epoch that
// it can have, for a guest that starts. A guest that runs already, of which this node's
// state is lost, may have begun to run elsewhere since.
func (a *Agent) knownOwner(ctx context.Context, guest fabric.Identity, starts bool) fabric.Owner {
	has, _ := a.allocationsOf(ctx, guest)
	if ownerOf(has).Epoch == 0 && starts && a.fenced {
		return fabric.Owner{Epoch: a.highestEpoch()}
	}
	return ownerOf(has)
}
