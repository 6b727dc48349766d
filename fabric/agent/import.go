package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/census"
)

const (
	askedAtOnce    = 32   // nodes that are asked for their guests at a time
	recordedAtOnce = 8    // requests to the registry at a time
	mostParts      = 1000 // of one node's list
)

// Import compares what the guests of all nodes have with what the registry has of them.
// With write it then records what is missing and in no conflict. It changes nothing of a
// guest, and may be repeated. The registry must be [fabric.Registry.Shared]: one of a
// node's own has the node's guests anyway.
func (a *Agent) Import(ctx context.Context, write bool) (fabric.Import, error) {
	switch {
	case a.registry == nil:
		return fabric.Import{}, a.noRegistry()
	case !a.registry.Shared():
		return fabric.Import{}, fmt.Errorf("import %w: this node has a registry of its own, and it has what the node's guests have, as those of the other nodes have; give the cluster one that all nodes share", fabric.ErrRefused)
	}
	guests, silent := a.everyGuest(ctx)
	all, err := a.registry.Allocations(ctx, fabric.AllocationFilter{})
	if err != nil {
		return fabric.Import{}, ofRegistry(err)
	}
	plan := census.Decide(a.cluster(), guests, all, len(silent) == 0)
	if write {
		a.record(ctx, &plan)
	}
	is := fabric.Import{Guests: plan.Guests, Known: plan.Known, Entries: plan.Entries, Silent: silent}
	if is.Entries == nil {
		is.Entries = []fabric.ImportEntry{}
	}
	if is.Silent == nil {
		is.Silent = []string{}
	}
	return is, nil
}

// everyGuest asks all nodes for their guests. silent says why some did not answer.
func (a *Agent) everyGuest(ctx context.Context) (guests []census.Guest, silent []string) {
	nodes, _ := a.Nodes(ctx)
	type said struct {
		entries []fabric.GuestEntry
		err     error
	}
	answers := make([]said, len(nodes))
	atOnce(len(nodes), askedAtOnce, func(i int) {
		answers[i].entries, answers[i].err = a.allGuestsOf(ctx, nodes[i])
	})
	for i, is := range answers {
		if is.err != nil {
			silent = append(silent, oneLine(is.err))
			continue
		}
		for _, e := range is.entries {
			// What it would ask pools for it does not have, and so it runs without.
			wants := slices.DeleteFunc(a.wants(e.VM), func(w fabric.Want) bool { return !w.Prefix.IsValid() })
			guests = append(guests, census.Guest{Node: nodes[i], Entry: e, Wants: wants})
		}
	}
	return guests, silent
}

// allGuestsOf lists all guests of a node.
func (a *Agent) allGuestsOf(ctx context.Context, node string) (all []fabric.GuestEntry, err error) {
	after := ""
	for range mostParts {
		part, more, err := a.guestsOf(ctx, node, after)
		if err != nil {
			return nil, err
		}
		if all = append(all, part...); !more {
			return all, nil
		}
		after = part[len(part)-1].VM.Name
	}
	return nil, fmt.Errorf("node %s: its list of guests has no end; see what runs there", node)
}

// record has the registry record a plan, and puts the outcomes into it.
func (a *Agent) record(ctx context.Context, plan *census.Plan) {
	errs := make([]error, len(plan.Requests))
	atOnce(len(plan.Requests), recordedAtOnce, func(i int) {
		ctx, cancel := context.WithTimeout(ctx, registryTime)
		defer cancel()
		_, errs[i] = a.takeAddresses(ctx, plan.Requests[i])
	})
	for i, of := range plan.Of {
		switch {
		case of < 0:
		case errs[of] == nil:
			plan.Entries[i].Outcome = fabric.Recorded
		default:
			plan.Entries[i].Outcome, plan.Entries[i].Text = fabric.Conflict, oneLine(errs[of])
		}
	}
}

// atOnce calls f for each number below n, at most so many at the same time, and waits.
func atOnce(n, most int, f func(int)) {
	slots := make(chan struct{}, most)
	var all sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	all.Wait()
}
