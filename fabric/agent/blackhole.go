package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Blackhole discards packets to an address of a guest of this node for a time: the
// speaker announces it with the community of RFC 7999, and the node forwards nothing to
// it. It outlasts restarts of the agent, and ends by itself. Another call for the
// address sets the time anew. If the store cannot keep it, nothing changes. After any
// other error the agent keeps trying.
func (a *Agent) Blackhole(ctx context.Context, addr netip.Addr, last time.Duration) (fabric.Blackhole, error) {
	if !addr.IsValid() || last < fabric.MinBlackhole || last > fabric.MaxBlackhole {
		return fabric.Blackhole{}, fmt.Errorf("blackhole %s for %v %w: at least %v and at most %v", addr, last, fabric.ErrRefused, fabric.MinBlackhole, fabric.MaxBlackhole)
	}
	leave, _ := a.turns.enter(wholeNode, false)
	defer leave()
	p, now := fabric.HostPrefix(addr), a.clock()
	s, done := a.state.open()
	vm, held := s.reserved.Holder(p)
	g := s.guests[vm]
	had := s.blackholes
	done()
	if !held || g == nil || g.want.State == fabric.Absent {
		return fabric.Blackhole{}, fmt.Errorf("blackhole %s %w: no guest of node %s has it as an address of its own; ask on the node that has it", addr, fabric.ErrRefused, a.node)
	}
	b := fabric.Blackhole{Prefix: p, VM: vm, Since: now, Until: now.Add(last)}
	all := slices.DeleteFunc(slices.Clone(had), func(other fabric.Blackhole) bool { return other.Prefix == p || !other.Until.After(now) })
	if len(all) >= fabric.MaxBlackholes {
		return fabric.Blackhole{}, fmt.Errorf("blackhole %s %w: node %s has %d already; lift one", addr, fabric.ErrRefused, a.node, len(all))
	}
	return b, a.setBlackholes(ctx, append(all, b), vm)
}

// LiftBlackhole ends the blackhole of an address before its time. Without one it does
// nothing. Its errors mean the same as those of [Agent.Blackhole].
func (a *Agent) LiftBlackhole(ctx context.Context, addr netip.Addr) error {
	leave, _ := a.turns.enter(wholeNode, false)
	defer leave()
	s, done := a.state.open()
	had := s.blackholes
	done()
	i := slices.IndexFunc(had, func(b fabric.Blackhole) bool { return addr.IsValid() && b.Prefix == fabric.HostPrefix(addr) })
	if i < 0 {
		return nil
	}
	return a.setBlackholes(ctx, slices.Delete(slices.Clone(had), i, i+1), had[i].VM)
}

// Blackholes lists the blackholes of this node that have not ended.
func (a *Agent) Blackholes(context.Context) ([]fabric.Blackhole, error) {
	s, done := a.state.open()
	defer done()
	now := a.clock()
	return slices.DeleteFunc(slices.Clone(s.blackholes), func(b fabric.Blackhole) bool { return !b.Until.After(now) }), nil
}

// setBlackholes puts blackholes into force, and has a guest announced accordingly.
func (a *Agent) setBlackholes(ctx context.Context, all []fabric.Blackhole, vm string) error {
	if err := a.store.KeepBlackholes(ctx, all); err != nil {
		return fmt.Errorf("node %s: keep blackholes: %w", a.node, err)
	}
	s, done := a.state.open()
	s.blackholes = all
	done()
	a.awaitBlackholes(all)
	err := a.discard(ctx, all)
	t, end := a.begin(vm)
	defer end()
	if failed := t.reconcile(ctx, nil); err == nil {
		err = failed
	}
	if err != nil {
		a.signal()
		err = fmt.Errorf("%w; the agent keeps trying", err)
	}
	return err
}

// awaitBlackholes has a pass come when the next blackhole ends.
func (a *Agent) awaitBlackholes(all []fabric.Blackhole) {
	for _, b := range all {
		a.alarm.after(max(0, b.Until.Sub(a.clock())) + time.Millisecond)
	}
}

// discard has the dataplane discard what the blackholes say.
func (a *Agent) discard(ctx context.Context, all []fabric.Blackhole) error {
	err := a.dataplane.Discard(ctx, all)
	if err != nil {
		err = fmt.Errorf("discard packets: %w", err)
	}
	a.conditions.set("blackhole", err)
	return err
}

// recallBlackholes loads the blackholes from the store.
func (a *Agent) recallBlackholes(ctx context.Context) {
	all, err := a.store.KeptBlackholes(ctx)
	a.conditions.set("blackholes kept", err)
	s, done := a.state.open()
	s.blackholes = all
	done()
	a.awaitBlackholes(all)
}

// keepBlackholes lifts the blackholes whose time is over, and keeps the others in force.
// The pass then announces the guests accordingly.
func (a *Agent) keepBlackholes(ctx context.Context) {
	leave, free := a.turns.enter(wholeNode, true)
	if !free {
		return
	}
	defer leave()
	now := a.clock()
	s, done := a.state.open()
	had := s.blackholes
	left := slices.DeleteFunc(slices.Clone(had), func(b fabric.Blackhole) bool { return !b.Until.After(now) })
	s.blackholes = left
	done()
	if len(had) == 0 {
		return
	}
	if len(left) < len(had) {
		a.log.Info("blackhole ended", "prefixes", len(had)-len(left))
		if err := a.store.KeepBlackholes(ctx, left); err != nil {
			a.log.Warn("blackholes not kept", "err", err)
		}
	}
	_ = a.discard(ctx, left) // a condition tells of an error
}

// blackholeOf gives the blackhole of an address that has not ended; zero: there is none.
func (s *state) blackholeOf(addr netip.Addr, now time.Time) fabric.Blackhole {
	for _, b := range s.blackholes {
		if b.Prefix == fabric.HostPrefix(addr) && b.Until.After(now) {
			return b
		}
	}
	return fabric.Blackhole{}
}

// blackholed lists the prefixes to which packets are to be discarded.
func (s *state) blackholed() (all []netip.Prefix) {
	now := s.clock()
	for _, b := range s.blackholes {
		if b.Until.After(now) {
			all = append(all, b.Prefix)
		}
	}
	return all
}
