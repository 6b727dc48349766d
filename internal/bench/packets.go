package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// ruleSet is what a node does with packets of guests while a cell is measured.
type ruleSet struct {
	name    string
	tables  []string // of nftables, which work meanwhile; the others of the node sleep
	program bool     // of eBPF, at the measured ports
	checks  bool     // packets of the guest with another's source do not pass
	silent  bool     // the agent has made the tables for a cluster with dhcp and ra off
}

const (
	filterTable     = "inet vmfabric"
	accountingTable = "ip vmfabric-accounting"
	accounting6     = "ip6 vmfabric-accounting"
)

var (
	unfiltered = ruleSet{name: "none"}
	ours       = ruleSet{name: "vmfabric's", tables: []string{filterTable}, checks: true}
	// unanswering is what is not there for guests that boot online.
	unanswering = ruleSet{name: "vmfabric's, off", tables: []string{filterTable}, checks: true, silent: true}
	// onceMore says how far two figures of the same thing are apart.
	onceMore = ruleSet{name: "vmfabric's, once more", tables: []string{filterTable}, checks: true}
	// others are the rule sets of nodes with few and many guests.
	others = []ruleSet{
		{name: "a chain for each guest, found by one rule for each", tables: []string{"inet walked"}, checks: true},
		{name: "a chain for each guest, found in a map", tables: []string{"inet mapped"}, checks: true},
		{name: "eBPF at the port: a hash map by port and source", program: true, checks: true},
	}
	// parts are what a filter can be made of, by itself.
	parts = []ruleSet{
		{name: "one rule for all ports that accepts", tables: []string{"inet bare_hook"}},
		{name: "the routing table asked for each source", tables: []string{"inet lookups"}, checks: true},
		{name: "a hash set by port and source", tables: []string{"inet pairs"}, checks: true},
	}
)

// measurePackets sends packets through ports, with and without what filters them.
func measurePackets(ctx context.Context, b *bench) (s section, err error) {
	plans := slices.DeleteFunc(sitePlans(b.size.ported), func(p sitePlan) bool { return !strings.Contains(p.name, b.size.part) })
	l, err := b.changedLab(ctx, "packets", len(plans), nil)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	var sites []*site
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.close())
		}
	}()
	for i, p := range plans {
		b.say("  a node with %s", p.name)
		s, err := b.newSite(ctx, l, i, p)
		if s != nil {
			sites = append(sites, s)
		}
		if err != nil {
			return section{}, fmt.Errorf("the node with %s: %w", p.name, err)
		}
	}
	sender := newSender()
	defer sender.close()
	for _, s := range sites {
		if err := s.check(ctx, sender); err != nil {
			return section{}, err
		}
	}
	for turn := range b.size.bursts {
		b.say("  turn %d of %d", turn+1, b.size.bursts)
		for _, s := range sites {
			if err := s.turn(ctx, turn, sender, b.size.burst); err != nil {
				return section{}, err
			}
		}
	}
	return packetsSection(b.size, sites, sender), nil
}

// turn measures each cell of a node once. No rule set always follows the same one.
func (s *site) turn(ctx context.Context, turn int, sender *sender, burst time.Duration) error {
	sets := slices.Concat(s.plan.sets[turn%len(s.plan.sets):], s.plan.sets[:turn%len(s.plan.sets)])
	if turn%2 == 1 {
		slices.Reverse(sets)
	}
	for _, set := range sets {
		if err := s.use(ctx, set); err != nil {
			return err
		}
		for _, w := range s.ways {
			c, err := sender.measure(ctx, w, burst)
			if err != nil {
				return fmt.Errorf("%s, filter %q, %s: %w", s.plan.name, set.name, w.name(), err)
			}
			at := cell{set.name, w.key}
			s.costs[at] = append(s.costs[at], c)
		}
	}
	return nil
}

// check tries that each rule set lets the guests' packets pass, and which of them checks
// sources. It is what a smoke run is for.
func (s *site) check(ctx context.Context, sender *sender) error {
	for _, set := range s.plan.sets {
		if err := s.use(ctx, set); err != nil {
			return err
		}
		for _, w := range s.ways {
			if _, err := sender.measure(ctx, w, 0); err != nil {
				return fmt.Errorf("%s, filter %q, %s: %w", s.plan.name, set.name, w.name(), err)
			}
		}
		for _, w := range s.foreign {
			passed, err := sender.pass(ctx, w)
			switch {
			case err != nil:
				return err
			case set.checks && passed > 0:
				return fmt.Errorf("%s, filter %q: %d packets with another guest's source passed, %s", s.plan.name, set.name, passed, w.name())
			case !set.checks && passed == 0 && w.v6: // IPv4 has rp_filter
				return fmt.Errorf("%s, filter %q: no packet with another guest's source passed, %s; so nothing is known of the others", s.plan.name, set.name, w.name())
			}
		}
	}
	return nil
}

// packetsSection has a table for each kind of port and size of packets.
func packetsSection(size size, sites []*site, sender *sender) section {
	s := section{
		title: "Packets through a port",
		method: fmt.Sprintf(`
UDP through a node, 64 packets a call, from one sender to a link at whose far end they are dropped as they come in: the sender's
thread does the whole way's work. A guest behind a veth is a network namespace that sends by sendmmsg. For one behind a tap the sender writes
frames to the tap, or reads from it what it sent to it: a system call for each frame, so compare columns of one kind of port alone. 'none' is what the
way costs without any table, in %s of the sender for each packet; the other figures are the rate against that of none at the same node, the median of the
ratios within a turn, and the least and the most. %d turns of %s for each cell, the rule sets by turns. Agents are stopped meanwhile.
Each row has been seen to let the guests' packets pass, and all but 'none' and 'one rule' to drop those with another's source.`,
			sender.unit(), size.bursts, size.burst),
	}
	for _, kind := range []fabric.Kind{fabric.Veth, fabric.Tap} {
		for _, octets := range frameSizes {
			s.tables = append(s.tables, packetsTable(kind, octets, sites))
		}
	}
	for _, site := range sites {
		if site.plan.toggled {
			s.tables = append(s.tables, answeringTable(site))
		}
	}
	worst := 1.0
	for _, site := range sites {
		for _, set := range site.plan.sets {
			if set.name != ours.name || site.plan.guarded {
				continue
			}
			for _, w := range site.ways {
				worst = min(worst, median(site.ratios(set, unfiltered, w)))
			}
		}
	}
	s.notes = []string{
		fmt.Sprintf("The least of vmfabric's own, without accounting and firewalls: %.2f of none; the goal is 0.95.", worst),
		strings.TrimSpace(`
'vmfabric's' is what an agent made, of which nothing grows with the guests. The chains are those of other systems in the hook forward: for each
guest one for what it sends and one for what it gets; the measured guests are in the middle of the ports.`),
	}
	var took []float64
	for _, site := range sites {
		took = append(took, site.program.took...)
	}
	if len(took) > 0 {
		s.notes = append(s.notes, fmt.Sprintf("To attach the program of eBPF to a port took %.0f µs, median of %d.", median(took), len(took)))
	}
	if sender.why != nil {
		s.notes = append(s.notes, fmt.Sprintf("The sender had no processor to itself (real-time priority: %v).", sender.why))
	}
	return s
}

// directions are the columns of a table, in the order of a site's ways.
var directions = []string{"from the guest, IPv4", "from the guest, IPv6", "to the guest, IPv4", "to the guest, IPv6"}

func packetsTable(kind fabric.Kind, octets int, sites []*site) table {
	t := table{head: slices.Concat([]string{fmt.Sprintf("%s, %s bytes", kind, count(octets))}, directions)}
	for _, site := range sites {
		for _, set := range site.plan.sets {
			row := []string{fmt.Sprintf("%s: %s", site.plan.name, set.name)}
			for _, w := range site.waysOf(kind, octets) {
				if set.name == unfiltered.name {
					row = append(row, fmt.Sprintf("%.0f", median(site.costs[cell{set.name, w.key}])))
					continue
				}
				row = append(row, spread(site.ratios(set, unfiltered, w), hundredths))
			}
			t.row(row...)
		}
	}
	return t
}

// answeringTable compares the packets of guests that are answered with those of guests
// that are not, at a node that has both by turns.
func answeringTable(site *site) table {
	t := table{head: slices.Concat([]string{"dhcp and ra on"}, directions)}
	for _, against := range []ruleSet{unanswering, onceMore} {
		for _, kind := range []fabric.Kind{fabric.Veth, fabric.Tap} {
			for _, octets := range frameSizes {
				row := []string{fmt.Sprintf("%s, %s bytes: of %s", kind, count(octets), against.name)}
				for _, w := range site.waysOf(kind, octets) {
					row = append(row, spread(site.ratios(ours, against, w), hundredths))
				}
				t.row(row...)
			}
		}
	}
	return t
}

// waysOf returns the ways of one kind of port and size of packets, in the order of
// directions.
func (s *site) waysOf(kind fabric.Kind, octets int) (ways []*way) {
	for _, w := range s.ways {
		if w.kind == kind && w.octets == octets {
			ways = append(ways, w)
		}
	}
	return ways
}

// ratios returns the rates with a rule set against those with another, by turn.
func (s *site) ratios(set, against ruleSet, w *way) (all []float64) {
	without := s.costs[cell{against.name, w.key}]
	for i, with := range s.costs[cell{set.name, w.key}] {
		all = append(all, without[i]/with)
	}
	return all
}

func hundredths(r float64) string { return fmt.Sprintf("%.2f", r) }

// median returns the median of a list, the higher of two. The list is not empty.
func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
