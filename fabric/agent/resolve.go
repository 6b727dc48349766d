package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/plural"
)

const (
	answerTime   = 10 * time.Second // for a resolver; a hook waits twice that
	maxQuestions = 64               // open questions to a resolver, also to one that never returns
	maxAnswer    = 500              // bytes of another program's error that the agent passes on
)

// WithResolver lets the agent ask r for the addresses of guests whose hypervisor does
// not know them. Without a resolver the agent refuses such guests.
func WithResolver(r fabric.Resolver) Option { return func(a *Agent) { a.resolver = r } }

// unanswered is the error of a guest that could not be resolved.
type unanswered struct{ error }

func (u unanswered) Unwrap() error { return u.error }

// resolve gives an unresolved guest its addresses. A guest that is here keeps those
// that it has; for another guest it asks the resolver.
func (t *task) resolve(ctx context.Context, vm fabric.VM) (fabric.VM, error) {
	if !vm.Unresolved() {
		return vm, nil
	}
	s, done := t.state.open()
	have, known := s.answered(vm)
	refused := s.draining() || vm.Validate() != nil // admit refuses it whatever the answer
	done()
	if known || refused || !vm.Resolve || t.resolver == nil && t.registry != nil {
		return have, nil
	}
	asked, err := t.ask(ctx, vm)
	if err != nil {
		return vm, err
	}
	s, done = t.state.open()
	defer done()
	err = s.acceptable(asked, true)
	if err == nil {
		err = s.free(asked)
	}
	if err != nil {
		return vm, unanswered{fmt.Errorf("the resolver answered wrong: %w", err)}
	}
	return asked, nil
}

// describe is resolve for a guest that need not run on this node.
func (a *Agent) describe(ctx context.Context, vm fabric.VM) (fabric.VM, error) {
	if !vm.Unresolved() {
		return vm, nil
	}
	s, done := a.state.open()
	have, known := s.answered(vm)
	done()
	if known {
		return have, nil
	}
	if !vm.Resolve || a.resolver == nil && a.registry != nil {
		return a.allocated(ctx, vm)
	}
	return a.ask(ctx, vm)
}

// answered gives the guest the addresses that the resolver or the registry gave it
// when it was brought up; false: it is not here.
func (s *state) answered(vm fabric.VM) (fabric.VM, bool) {
	g, here := s.guests[vm.Name]
	if !here || g.want.State == fabric.Absent || !resolvesTo(vm, g.want.VM) {
		return vm, false
	}
	return withNICs(vm, g.want.VM.NICs), true
}

// resolvesTo reports whether b is the unresolved guest a with an answer of the
// resolver or the registry.
func resolvesTo(a, b fabric.VM) bool {
	if !a.Unresolved() || b.Unresolved() || a.Resolve != b.Resolve || a.UUID != b.UUID || len(a.NICs) != len(b.NICs) {
		return false
	}
	for n := 0; n < len(a.NICs) && !a.Resolve; n++ {
		asks, has := a.NICs[n], b.NICs[n].Static()
		if !slices.Equal(asks.Pools, has.Pools) || !slices.Equal(asks.Addresses, has.Addresses) || !slices.Equal(asks.Routes, has.Routes) {
			return false
		}
	}
	return true
}

// ask gives a guest the addresses of the resolver's answer. It does not apply the
// cluster's rules to them.
func (a *Agent) ask(ctx context.Context, vm fabric.VM) (fabric.VM, error) {
	if a.resolver == nil {
		return vm, unanswered{a.because(fabric.ResolverNone, errors.New("it does not say what it has, and this node has no resolver"))}
	}
	began := time.Now()
	nics, err := a.question(ctx, vm)
	switch {
	case err != nil && ctx.Err() != nil:
		return vm, unanswered{fmt.Errorf("the resolver was not waited for (%w); start the guest again", context.Cause(ctx))}
	case errors.Is(err, context.DeadlineExceeded):
		return vm, unanswered{a.because(fabric.ResolverSilent, fmt.Errorf("the resolver did not answer within %v", answerTime))}
	case err != nil:
		return vm, unanswered{a.because(fabric.ResolverFailed, fmt.Errorf("no addresses from the resolver: %w", shortened{err}))}
	case len(nics) != len(vm.NICs):
		return vm, unanswered{fmt.Errorf("the resolver answered wrong: %s, but the guest has %s of the fabric; correct its inventory, or the guest's interfaces", count(nics), count(vm.NICs))}
	}
	resolved := withNICs(vm, nics)
	if err := complete(resolved, fabric.ValidateName); err != nil {
		return vm, unanswered{fmt.Errorf("the resolver answered wrong: %w", err)}
	}
	a.log.Info("resolved", "vm", vm.Name, "prefixes", len(resolved.Prefixes()), "took", time.Since(began))
	return resolved, nil
}

// question calls the resolver. It waits for answerTime at most, even if the resolver
// ignores its context.
func (a *Agent) question(ctx context.Context, vm fabric.VM) ([]fabric.NIC, error) {
	q := fabric.Query{VM: vm.Name, UUID: vm.UUID, MACs: make([]fabric.MAC, len(vm.NICs))}
	for n, nic := range vm.NICs {
		q.MACs[n] = nic.MAC
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	select {
	case a.questions <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	type answer struct {
		nics []fabric.NIC
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		defer func() { <-a.questions }()
		nics, err := a.resolver.Resolve(ctx, q)
		answers <- answer{nics, err}
	}()
	select {
	case got := <-answers:
		return got.nics, got.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// shortened is an error of another program, cut to one short line.
type shortened struct{ error }

func (s shortened) Unwrap() error { return s.error }

func (s shortened) Error() string {
	text := strings.Join(strings.FieldsFunc(s.error.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return strings.ToValidUTF8(text[:min(len(text), maxAnswer)], "")
}

func count(nics []fabric.NIC) string { return plural.Of(len(nics), "NIC", "NICs") }

// asks reports whether a running guest needs an answer of the resolver.
func (a *Agent) asks(d fabric.Desired) bool {
	if d.State == 0 || d.State == fabric.Absent || !d.VM.Unresolved() {
		return false
	}
	s, done := a.state.open()
	defer done()
	_, have := s.answered(d.VM)
	as, _, _ := s.described(d)
	return !have && as.VM.Unresolved()
}

// unresolve records the guests of a source that run here without resolved
// addresses, in place of those recorded before. The pass leaves ports of such
// guests as they are.
func (a *Agent) unresolve(source string, guests []fabric.Desired) {
	vms := make([]string, len(guests))
	for i, d := range guests {
		vms[i] = d.VM.Name
	}
	a.inventory.unresolved(source, vms)
}

// forgetUnknown notes that a guest without resolved addresses does not run any more.
func (a *Agent) forgetUnknown(vm string, asOf time.Time) {
	a.inventory.resolved(vm)
	s, done := a.state.open()
	defer done()
	if _, known := s.guests[vm]; !known && s.handled[vm].Before(asOf) {
		s.handled[vm] = asOf // a request that waits for the resolver is outdated then
	}
}

// applyChanges applies changes of guests that need the resolver, side by side: a slow
// answer for one guest does not delay the others.
func (a *Agent) applyChanges(ctx context.Context, guests []fabric.Desired) {
	var wg sync.WaitGroup
	for _, d := range guests {
		wg.Go(func() { a.applyChange(ctx, d) })
	}
	wg.Wait()
}
