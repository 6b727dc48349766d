package simulate

import (
	"flag"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var hunt = flag.Uint64("mutants", 0, "look for each mutant in at most so many histories")

// mutant is a fault that the simulated cluster is to find.
type mutant struct{ name, file, old, new string }

var mutants = []mutant{
	// Whose an address is.
	{"epochs are not compared", "internal/ownership/ownership.go", "case same && theirs.Epoch > mine.Epoch:", "case same && theirs.Epoch > 0:"},
	{"the later start gives way to none", "internal/ownership/ownership.go", "case same && theirs.Epoch > mine.Epoch:", "case same && theirs.Epoch > mine.Epoch+1<<62:"},
	{"of two guests the newer keeps the address", "internal/ownership/ownership.go", "case before(mine, theirs):", "case !before(mine, theirs):"},
	{"a start beside another guest is not refused", "internal/ownership/ownership.go", "		return Refuse, HeldByOther", "		return Keep, HeldByOther"},
	{"a route says of no guest which it is", "internal/ownership/ownership.go", "	if Same(mine.Identity, theirs.Identity) {\n		return Ask, NoEpoch", "	if Same(mine.Identity, \"\") {\n		return Ask, NoEpoch"},
	{"the older guest does not come first", "internal/plan/plan.go", "		r.Preference, r.First = fabric.Fresh, true", "		r.First = false"},
	{"a silent node keeps what it had", "internal/ownership/ownership.go", "case p.RouteGone || p.Behind || p.Silent >= SilentFor:", "case p.Silent < 0:"},
	{"what another node has let go stays withdrawn", "fence.go", "	default:\n		a.log.Info(\"the other node has let go; announced here again\", \"vm\", vm, \"node\", node)\n		t.reclaim(ctx)", "	default:\n		_ = t.reclaim"},
	{"nobody is told who has a guest", "peerqueue.go", "case owned(d) && (slices.Contains(d.Unreleased, node)", "case false && owned(d) && (slices.Contains(d.Unreleased, node)"},
	{"nobody is waited for", "fence.go", "d.Unreleased = slices.Clone(others); len(d.Unreleased) == 0 {", "d.Unreleased = nil; true {"},
	{"a preference stays raised", "fence.go", "return awaited || now.Sub(g.claimed) < freshAtLeast", "return awaited || now.Sub(g.claimed) >= 0"},
	{"an answered claim is not settled", "fence.go", "		a.released(ctx, vm, node, nil)\n		return", "		return"},
	{"a restart forgets who has a guest", "run.go", "has: owned(d) && d.Epoch > 0, arrival", "has: false, arrival"},
	{"a migration that was not announced is a start", "agent.go", "|| other.same && !is.known && s.tells(vm.Origin)", "|| other.same && !is.known && false && s.tells(vm.Origin)"},

	{"a start ignores the epoch that it was answered", "agent.go", "g.heard = max(g.heard, other.epoch, found.ownedBefore(s.node))", "_ = other.epoch"},
	{"an agent that starts asks nobody who has its guests", "run.go", "unasked: a.others()}", "unasked: nil}"},
	{"any word of a silent node withdraws what is behind it", "internal/ownership/ownership.go", "p.RouteGone || p.Behind ||", "p.RouteGone ||"},

	// The registry's word.
	{"an address is taken from a guest whose node is silent", "addresses.go", "return n == h.Node || s.peers.met[n] || begun", "return n == \"\" && s.peers.met[n] && begun"},
	{"the registry is not compared with what runs", "allocate.go", "g.acquired = g.acquired && is.Node == s.node && is.Epoch >= g.epoch()", "_ = is.Node"},
	{"nobody is written as the owner", "own.go", "	if is.Epoch < epoch || is.Node != a.node {", "	if false && is.Epoch < epoch {"},
	{"a node whose guest was acquired elsewhere never gets it back", "own.go", "is.Node != a.node && !a.letGoOf(ctx, is.Node, vm)", "is.Node != a.node"},
	{"the epoch of a start without the registry is that of before", "internal/ownership/ownership.go", "return max(granted, fabric.RegistryEpoch, heard+1, own+1)", "return max(granted, fabric.RegistryEpoch, heard, own)"},

	// Reservations.
	{"a refused start holds what it asked for", "ownership.go", "s.acceptable(vm, known) != nil || s.free(vm) != nil", "s.acceptable(vm, known) != nil || s.reserve(vm) != nil"},
	{"a guest that is gone holds what it had", "agent.go", "	s.reserved.Keep(vm, reservation.Set{})\n", "	_ = reservation.Set{}\n"},

	// Up and down.
	{"a guest is not withdrawn on its way down", "agent.go", "if err := t.withdraw(ctx, holds.Prefixes); err != nil {", "if err := t.withdraw(ctx, nil); err != nil {"},
	{"ports that nobody wants stay", "internal/plan/plan.go", "		if !wantedPort[p.Name] {", "		if false && !wantedPort[p.Name] {"},
	{"state stays on the disk", "agent.go", "	if err := t.store.Delete(ctx, vm); err != nil {\n		return fmt.Errorf(\"forget: %w\", err)\n	}\n", ""},
	{"an agent that did not look at the ports claims a guest", "fence.go", "	g.nics = plan.NICStates{} //", "	g.nics = maps.Clone(nics) //"},
	{"a guest of an earlier boot leaks", "run.go", "				a.unfinished(d, err)", "				_ = a.unfinished"},
	{"a guest that is not listed any more stays", "run.go", "case s.handled[name].Before(surely)", "case false && s.handled[name].Before(surely)"},
	{"old news counts", "agent.go", "return !asOf.IsZero() && s.handled[vm].After(asOf)", "return false && s.handled[vm].After(asOf)"},
	{"carrier does not matter", "internal/plan/plan.go", "case there && !have.Carrier &&", "case false && there && !have.Carrier &&"},
	{"a guest that is expected comes before a drained node", "../vm.go", "Draining Preference = 50 ", "Draining Preference = 5 "},
	{"a guest that is expected comes before where it runs", "../vm.go", "Standby  Preference = 10 ", "Standby  Preference = 150 "},
	{"faults of ports are not repaired", "internal/plan/plan.go", "case len(have.Faults) > 0:", "case false && len(have.Faults) > 0:"},

	// What guests are told.
	{"an arriving guest is told nothing", "arrive.go", "		ports[i].Incoming = d.Incoming && d.State == fabric.Wired\n", "		ports[i].Incoming = d.Incoming && d.State == fabric.Wired\n		ports[i].NoDHCP, ports[i].NoRA = ports[i].Incoming, ports[i].Incoming\n"},
	{"a guest that another node has is told nothing", "arrive.go", "		ports[i].Incoming = d.Incoming && d.State == fabric.Wired\n", "		ports[i].Incoming = d.Incoming && d.State == fabric.Wired\n		ports[i].NoDHCP = ports[i].NoDHCP || d.Lost != \"\"\n"},
	{"a request of an arriving guest is answered to whoever sent it", "../autoconf/offer.go", "		MAC:       p.NIC.MAC,\n", "		MAC:       map[bool]fabric.MAC{false: p.NIC.MAC}[p.Incoming],\n"},

	// Moves.
	{"packets are not sent on", "depart.go", "done, err := t.dataplane.Divert(ctx, d.VM.Ports(t.cluster()), to)", "done, err := t.dataplane.Divert(ctx, nil, to)"},
	{"packets are sent on for a moment only", "depart.go", "		s.forwarding[p] = time.Now().Add(forwardingGrace)\n	}\n	s.later(forwardingGrace)", "		s.forwarding[p] = time.Now()\n	}\n	s.later(0)"},
	{"packets are sent on for ever", "depart.go", "case !now.Before(until):", "case !now.Before(until) && false:"},
	{"a move that fails leaves the packets where they went", "depart.go", "	if was.state.Diverts() {", "	if was.state.Diverts() && false {"},
	{"a diversion of before stays where the guest runs", "run.go", "		if d.State == fabric.Live {\n			a.runsHere(ctx, name, d.Since)", "		if d.State == fabric.Live {\n			_ = a.runsHere"},
	{"a guest that stops for an unknown node stays first", "depart.go", "		a.signal() // wherever that is", "		// wherever that is"},
	{"a guest that moves on gives way to a silent node", "fence.go", "			return silent && n != g.departure.to.Name", "			return false && silent && n != g.departure.to.Name"},
	{"a move is never announced", "agent.go", "	return announced && time.Since(at) < expectation", "	return announced && time.Since(at) < 0"},
	{"the report of a move that goes on never ends", "report.go", "		l.supersede(m)\n", ""},
}

// rare are mutants that few histories show: those of TestFoundBefore do.
var rare = []mutant{
	{"a list removes a guest whose start waited for the registry", "run.go", " && g.admitted.Before(surely)", ""},
	{"the address of a guest that is withdrawn is given back", "forget.go", "	if a.isElsewhere(ctx, h) {", "	if false && a.isElsewhere(ctx, h) {"},
	{"an agent that has just begun takes the address of a guest that it cannot ask for", "addresses.go", " || begun })", " || begun && false })"},
	{"a guest whose packets went on before a restart comes first", "fence.go", "case g.sentOn: //", "case false: //"},
	{"a migration to a node that missed the guest's end is a start", "agent.go", "here && g.want.State != fabric.Absent && !g.hasNoCarrier() && !a.inventory.awaits(g.want.VM.Origin) {", "here && g.want.State != fabric.Absent {"},
}

// TestMutantsStand: each mutant changes one place of the code as it is.
func TestMutantsStand(t *testing.T) {
	for _, m := range slices.Concat(mutants, rare) {
		m.inAgent().Stands(t)
	}
}

func (m mutant) inAgent() labtest.Mutant {
	return labtest.Mutant{Name: m.name, File: filepath.Join("../../fabric/agent", m.file), Old: m.old, New: m.new}
}

// TestMutants: each mutant is found, and in how many histories.
func TestMutants(t *testing.T) {
	if *hunt == 0 {
		t.Skip("by hand: make mutants")
	}
	table := map[string]string{}
	defer func() {
		for _, m := range slices.Concat(mutants, rare) {
			if found := table[m.name]; found != "" {
				fmt.Printf("| %s | `%s` | %s |\n", m.name, m.file, found)
			}
		}
	}()
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			table[m.name] = fmt.Sprintf("not in %d", *hunt)
			table[m.name] = m.find(t, "-run", "^TestSimulate$", "-seeds", fmt.Sprint(*hunt), "-from", "1")
		})
	}
	for _, m := range rare {
		t.Run(m.name, func(t *testing.T) {
			table[m.name] = "not in those that are kept"
			table[m.name] = m.find(t, "-run", "^TestFoundBefore$")
		})
	}
}

var (
	begun  = regexp.MustCompile(`history (\d+)\n`)
	failed = regexp.MustCompile(`seed (\d+), `)
)

// find gives the history that shows the mutant.
func (m mutant) find(t *testing.T, test ...string) (history string) {
	out, err := m.inAgent().Test(t, append(test, "-vet=off", "-timeout", "0", "-shrink=false")...)
	require.Error(t, err, "not found")
	is := begun.FindAllStringSubmatch(out, -1) // the last one failed, or ended the process
	if failing := failed.FindAllStringSubmatch(out, -1); failing != nil {
		is = failing
	}
	require.NotEmpty(t, is, "%s", out)
	last := strings.Split(strings.TrimSpace(out), "\n")
	t.Logf("found by history %s: %s", is[len(is)-1][1], last[len(last)-min(len(last), 4)])
	return is[len(is)-1][1]
}
