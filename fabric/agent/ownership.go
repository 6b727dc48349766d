package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/ownership"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
)

const (
	askFor        = 300 * time.Millisecond // what a start waits for the other nodes, all of them together
	contestMemory = 30 * time.Second       // how long another claimant is told of after it was last heard
	oddMemory     = 5 * time.Minute        // and a node that says what cannot be
	slowMemory    = 10 * time.Second       // how long one that did not answer in time is not asked for each of many
)

// peers is what an agent knows of the other nodes beside what they are told.
type peers struct {
	met    map[string]bool                  // those whose agents have answered this one, or called
	silent map[string]silence               // those that did not answer the last question
	at     map[netip.Addr]string            // those that called, by their addresses
	slow   map[string]time.Time             // those that did not answer about a start, not in time at least
	strays map[competitor]fabric.Competitor // better routes that lead to no node
	odd    map[string]remark                // nodes that said what cannot be
}

// silence is that of a node: since when, and when it last did not answer.
type silence struct{ since, last time.Time }

// remark is a problem that is told until it is too old.
type remark struct {
	text string
	at   time.Time
	// byRoute: it was found out by a route, of which this node is not told any
	// more once its own comes first. Only the other node's agent can say that it
	// is over: it is asked, and this is told, until that one answers.
	byRoute bool
}

// competitor says where a competing route is: of which prefix, at which reflector.
type competitor struct {
	prefix    netip.Prefix
	reflector string
}

// competing is a node's better route to a prefix of ours.
type competing struct {
	node   string
	holder fabric.Holder
}

// loss is to which node a guest was lost, and how that is known.
type loss struct {
	node      string
	guest     string // the other guest that has the address there, where an agent named it
	other     bool   // it is another guest, named or not
	reflector string // whose route says so, where no agent does
}

// contention is what is known of others that have, or want, a guest's addresses.
type contention struct {
	contested   string                   // the node whose route competes, which is asked
	contestedAt time.Time                // since when
	denied      string                   // the node that was asked, and has not got the guest
	competing   map[competitor]competing // better routes, and whose
	routeGone   bool                     // there were some, and nobody has said anything since
	contests    map[string]remark        // guests that want the address, by their node
	defended    time.Time                // when a route of such a guest last competed; zero: none did lately
	inherited   time.Time                // since when the guest had its addresses where it came from
}

func newPeers() peers {
	return peers{
		silent: map[string]silence{}, slow: map[string]time.Time{}, at: map[netip.Addr]string{}, strays: map[competitor]fabric.Competitor{}, odd: map[string]remark{},
		met: map[string]bool{},
	}
}

// heard notes that a node answers, or called, and where it is.
func (p *peers) heard(n fabric.Node) {
	delete(p.silent, n.Name)
	for _, a := range []netip.Addr{n.Address, n.Address6} {
		if !a.IsValid() || p.at[a] == n.Name {
			continue
		}
		// It has one address of each family, and may have got another.
		maps.DeleteFunc(p.at, func(had netip.Addr, name string) bool { return name == n.Name && had.Is4() == a.Is4() })
		p.at[a] = n.Name
	}
}

// unanswered notes that a node did not answer.
func (a *Agent) unanswered(node string) {
	s, done := a.state.open()
	defer done()
	now := time.Now()
	was := s.peers.silent[node]
	if was.since.IsZero() {
		was.since = now
		a.signal() // guests that wait for it may be announced in another way
	}
	was.last = now
	s.peers.silent[node] = was
	signal(a.review)
}

// nodeAt names the node that has an address: one of the cluster file, or one
// that called.
func (a *Agent) nodeAt(addr netip.Addr) (string, bool) {
	for _, n := range a.cluster.Nodes {
		if addr == n.Address || addr == n.Address6 {
			return n.Name, true
		}
	}
	s, done := a.state.open()
	defer done()
	name, called := s.peers.at[addr]
	return name, called
}

// holder is another guest that has an address on another node; zero: none has.
type holder struct {
	node, vm string
	same     bool   // it is the guest itself, which runs there
	epoch    uint64 // with which it does
}

// acquire asks the other nodes who has what a guest is about to be given here.
// A start that can be refused is, where another guest has it; of a guest that
// runs already, here or where it comes from, who has it is given. What the guest
// has here already is not asked about.
func (t *task) acquire(ctx context.Context, vm fabric.VM, r request) (holder, error) {
	if t.nodes == nil {
		return holder{}, nil
	}
	asked := t.nodes.Names()
	s, done := t.state.open()
	var prev fabric.Desired
	g, known := s.guests[vm.Name]
	known = known && g.want.State != fabric.Absent
	wanted := vm.Prefixes()
	if known {
		prev = g.want
		if !ended(prev) && prev.VM.Identity() == vm.Identity() && (prev.Lost == "" || !r.anew) {
			wanted = without(wanted, prev.VM.Prefixes())
		}
	}
	_, incoming := r.settle(prev, known, s.expects(vm.Name))
	refused := s.acceptable(vm, known) != nil // whoever has it
	if !r.undo {
		// A list of guests that run does not wait for the same node for each.
		asked = slices.DeleteFunc(asked, func(n string) bool { return time.Since(s.peers.slow[n]) < slowMemory })
	}
	done()
	if refused || len(wanted) == 0 {
		return holder{}, nil
	}
	n := t.notice(fabric.Acquiring, fabric.Desired{VM: vm})
	n.Prefixes = wanted
	other, answer := t.whoHas(ctx, n, asked)
	if other.node == "" || other.same || !r.undo || incoming {
		return other, nil
	}
	return other, fmt.Errorf("%s is held by guest %s (%s) on %s; stop that one, or give %s another address",
		text.Prefix(answer.Prefix), other.vm, answer.Identity, other.node, vm.Name)
}

// whoHas asks nodes, all at the same time, for another guest with one of the
// notice's prefixes.
func (a *Agent) whoHas(ctx context.Context, n fabric.Notice, nodes []string) (other holder, found fabric.Answer) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	type said struct {
		node string
		fabric.Answer
	}
	answers := make(chan said, len(nodes))
	for _, node := range nodes {
		wg.Go(func() {
			answer, err := a.nodes.Ask(ctx, node, n)
			switch {
			case err == nil:
				answer = a.believable(node, n.VM, answer)
			case errors.Is(ctx.Err(), context.Canceled): // another node has it
			default:
				s, done := a.state.open()
				s.peers.slow[node] = time.Now()
				done()
				a.log.Debug("not asked who has an address", "node", node, "vm", n.VM, "err", err)
			}
			answers <- said{node, answer}
		})
	}
	mine := ownership.Claim{Identity: string(n.Identity), Node: a.node, Starting: true}
	var itself holder
	for range nodes {
		s := <-answers
		if !s.Held {
			continue
		}
		if verdict, _ := ownership.Decide(mine, claimOfAnswer(s.Answer, s.node)); verdict == ownership.Refuse {
			cancel()
			return holder{node: s.node, vm: s.VM}, s.Answer
		}
		itself = holder{node: s.node, vm: s.VM, same: true, epoch: max(itself.epoch, s.Epoch)}
	}
	return itself, fabric.Answer{}
}

// holder answers a node that is about to start a guest: which guest is announced
// here with one of its prefixes, another one first of all.
func (a *Agent) holder(n fabric.Notice) fabric.Answer {
	s, done := a.state.open()
	defer done()
	var itself fabric.Answer
	for _, p := range n.Prefixes {
		for _, vm := range s.reserved.Holders(p) {
			g := s.guests[vm]
			if g == nil || !owned(g.want) || !g.has {
				continue
			}
			answer := naming(fabric.Answer{Held: true, Epoch: g.want.Epoch, Prefix: p}, n, g.want)
			if !ownership.Same(string(g.want.VM.Identity()), string(n.Identity)) {
				return answer
			}
			itself = answer
		}
	}
	return itself
}

// overlapping lists the guests here that have any of the prefixes, or part of one.
func (a *Agent) overlapping(ps []netip.Prefix) (vms []string) {
	s, done := a.state.open()
	defer done()
	for _, p := range ps {
		for _, vm := range s.reserved.Holders(p) {
			vms = add(vms, vm)
		}
	}
	return vms
}

// identified is of for the guest that a notice names.
func (a *Agent) identified(n fabric.Notice, answer fabric.Answer) fabric.Answer {
	s, done := a.state.open()
	defer done()
	if g := s.guests[n.VM]; g != nil && answer.Held {
		return naming(answer, n, g.want)
	}
	return answer
}

// isAnother reports whether a notice is about another guest than the one that
// has its name here.
func (a *Agent) isAnother(n fabric.Notice) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[n.VM]
	return g != nil && g.want.State != fabric.Absent && !ownership.Same(string(g.want.VM.Identity()), string(n.Identity))
}

// inherit notes since when a guest had its addresses on the node that it came from.
func (a *Agent) inherit(vm string, answer fabric.Answer) {
	s, done := a.state.open()
	defer done()
	g := s.guests[vm]
	if g == nil || answer.Acquired.IsZero() || answer.Identity != g.want.VM.Identity() {
		return
	}
	switch at := &g.want.Acquired; {
	case at.IsZero():
		g.inherited = answer.Acquired
	case answer.Acquired.Before(*at):
		*at = answer.Acquired
		a.signal() // its routes say so
	}
}

// wantedBy notes that a guest of another node wants an address of this one, which
// has had it longer. No name: a route says so, at a reflector.
func (g *guest) wantedBy(self, node, vm, reflector string) {
	if g.contests == nil {
		g.contests = map[string]remark{}
	}
	mine, now := g.want.VM.Name, time.Now()
	had, known := g.contests[node]
	switch {
	case vm != "":
		g.contests[node] = remark{text: fmt.Sprintf(
			"guest %s on %s: guest %s on %s has an address of it too; %[1]s has had it longer and keeps it, stop the one on %[4]s, or give that another address",
			mine, self, vm, node), at: now}
	case known: // maybe with the name
		g.contests[node] = remark{had.text, now, true}
	default:
		g.contests[node] = remark{fmt.Sprintf(
			"guest %s on %s: another guest on %s has an address of it too, as its route at %s says; %[1]s has had it longer and keeps it, stop the one on %[3]s, or give that another address",
			mine, self, node, reflector), now, true}
	}
}

// contests lists the problems with who has which address.
func (s *state) contests() (lines []string) {
	now := time.Now()
	for _, name := range sortedKeys(s.guests) {
		g := s.guests[name]
		for _, node := range sortedKeys(g.contests) {
			_, silent := s.peers.silent[node]
			if c := g.contests[node]; now.Sub(c.at) > contestMemory && !(c.byRoute && silent) {
				delete(g.contests, node)
				continue
			}
			lines = append(lines, g.contests[node].text)
		}
		if g.denied != "" && g.yieldsToRoute(s.fresh(g, now)) && !g.departs() {
			for at, route := range g.competing {
				node := route.node
				if node != g.denied {
					continue
				}
				lines = append(lines, fmt.Sprintf(
					"guest %s: a route for %s via %s comes before this node's at %s, and the agent there says that the guest does not run there; see what announces it on %[3]s",
					name, text.Prefix(at.prefix), node, at.reflector))
			}
		}
	}
	for at, r := range s.peers.strays {
		if _, held := s.reserved.Holder(at.prefix); !held {
			continue
		}
		lines = append(lines, fmt.Sprintf(
			"a route for %s via %s, which is no node, comes before this node's at %s; it is not heeded, but takes the packets: see there who announces it, or add the node to the cluster file",
			text.Prefix(r.Prefix), r.Via, r.Reflector))
	}
	maps.DeleteFunc(s.peers.odd, func(_ string, r remark) bool { return now.Sub(r.at) > oddMemory })
	for _, r := range s.peers.odd {
		lines = append(lines, r.text)
	}
	slices.Sort(lines)
	return lines
}

// plausible gives the epoch that a node said a guest has; zero, which is
// before all others, where that cannot be.
func (a *Agent) plausible(node, vm string, generation uint64) uint64 {
	if ownership.Plausible(generation, a.clock()) {
		return generation
	}
	s, done := a.state.open()
	defer done()
	s.peers.odd[node] = remark{text: fmt.Sprintf(
		"node %s says that guest %s has generation %d, which is that of a time far ahead of this node's clock; it is not heeded: set the clocks of both (timedatectl), and see what runs there",
		node, vm, generation), at: time.Now()}
	return 0
}

// believable leaves out of an answer what cannot be.
func (a *Agent) believable(node, vm string, answer fabric.Answer) fabric.Answer {
	answer.Epoch = a.plausible(node, vm, answer.Epoch)
	if answer.Identity.Validate() != nil || answer.VM != "" && fabric.ValidateName(answer.VM) != nil || answer.Identity != "" && answer.VM == "" {
		answer.VM, answer.Identity, answer.Acquired = "", "", time.Time{}
	}
	return answer
}

// ends notes that a guest is withdrawn for good, or absent, before anything is
// done about it: it is claimed no more from here on.
func (t *task) ends(d fabric.Desired) {
	s, done := t.state.open()
	defer done()
	if g := s.guests[d.VM.Name]; g != nil {
		g.want.State, g.want.Acquired = d.State, d.Acquired
		g.contested, g.contests, g.inherited, g.defended = "", nil, time.Time{}, time.Time{}
		if g.departure.state.Diverts() {
			t.diverted.confirm(d.VM.Name)
		}
	}
}

// acquires begins anew to count since when a guest has its addresses, where it
// gets more of them.
func (g *guest) acquires(d *fabric.Desired, prev fabric.Desired) {
	if prev.State != 0 && len(without(d.VM.Prefixes(), prev.VM.Prefixes())) > 0 {
		// The others are asked about what it has had as about what is new: nobody
		// is to lose an address to a guest that had another one before.
		d.Acquired, g.inherited, g.has = time.Time{}, time.Time{}, false
	}
}

// adoptOwnership takes up what an agent before this one found out, or could not
// know yet.
func (a *Agent) adoptOwnership(d *fabric.Desired) {
	if _, err := netip.ParseAddr(d.Lost); err == nil || d.Lost != "" && a.nodes == nil {
		// Not to a node that can be asked: it is claimed anew.
		d.Epoch = 0
		lostAs(d, fabric.Desired{})
	}
	if !ownership.Plausible(d.Epoch, a.clock()) {
		d.Epoch = 0
	}
	if owned(*d) && d.Acquired.IsZero() && a.nodes != nil {
		d.Acquired = d.Since
	}
}

// letGo takes up that another node announces a guest no more: whoever waits for
// that asks it at once.
func (a *Agent) letGo(node string, n fabric.Notice) {
	for _, vm := range a.overlapping(n.Prefixes) {
		s, done := a.state.open()
		if g := s.guests[vm]; g != nil {
			delete(g.contests, node)
		}
		done()
	}
	a.peerQueues.kick()
}

// reconsider looks again and again at guests that another node has, or may
// have, until ctx ends: whatever made them be withdrawn ends some time.
func (a *Agent) reconsider(ctx context.Context) {
	look := time.NewTicker(tellEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case <-a.review:
		}
		for _, r := range a.recognised() {
			a.competes(ctx, r)
		}
		found := a.preempted()
		for vm, l := range found.lost {
			a.loseToRoute(ctx, vm, l)
		}
		for vm, on := range found.standby {
			a.setStandby(ctx, vm, on)
		}
		for _, vm := range found.defends {
			a.announceAnew(ctx, vm)
		}
		if found.asks {
			a.peerQueues.kick()
		}
	}
}

// recognised gives the routes that lead to a node which has called since.
func (a *Agent) recognised() (all []fabric.Competitor) {
	s, done := a.state.open()
	defer done()
	for _, r := range s.peers.strays {
		if _, called := s.peers.at[r.Via]; called {
			all = append(all, r)
		}
	}
	return all
}

// contest chooses the node that is asked about its better route: first one whose
// route does not say enough; one that has said that it has not got the guest, now
// and then.
func (g *guest) contest(now time.Time, later []string) (news bool) {
	var nodes []string
	for _, r := range g.competing {
		nodes = add(nodes, r.node)
	}
	slices.SortFunc(nodes, func(a, b string) int {
		if known := slices.Contains(later, a); known != slices.Contains(later, b) {
			return map[bool]int{false: -1, true: 1}[known]
		}
		return cmp.Compare(a, b)
	})
	i := slices.IndexFunc(nodes, func(n string) bool { return n != g.denied })
	if i < 0 && now.Sub(g.contestedAt) < passEvery {
		return false
	}
	g.contested, g.contestedAt = nodes[max(i, 0)], now
	return true
}

// others says which of the routes that compete are those of other guests: of one
// that has had the address longer, which gets this guest, unless the node has
// said that it does not have it; and the nodes, each with a reflector, of those
// that got it later.
func (g *guest) others(self string) (older loss, later map[string]string) {
	mine := claimOfRoute(g.want.Holder(), self)
	later = map[string]string{}
	for _, at := range slices.SortedFunc(maps.Keys(g.competing), competitor.compare) {
		r := g.competing[at]
		switch verdict, _ := ownership.DecideByRoute(mine, claimOfRoute(r.holder, r.node)); {
		case verdict == ownership.Keep:
			later[r.node] = at.reflector
		case verdict == ownership.Relinquish && r.node != g.denied && older.node == "":
			older = loss{node: r.node, other: true, reflector: at.reflector}
		}
	}
	return older, later
}

func (c competitor) compare(other competitor) int {
	return cmp.Or(c.prefix.Compare(other.prefix), cmp.Compare(c.reflector, other.reflector))
}

// saysHolder gives what the guest's routes say of it: something while another node
// may know no better, as agents do not reach each other, and nothing otherwise.
func (s *state) saysHolder(g *guest, d fabric.Desired) fabric.Holder {
	now := time.Now()
	apart := len(s.peers.silent) > 0 || g.defends() || g.kept && len(d.Unreleased) > 0 // which the agent before this one waited for
	for _, at := range s.peers.slow {
		apart = apart || now.Sub(at) < slowMemory
	}
	if !apart {
		return fabric.Holder{}
	}
	return d.Holder()
}

// defends reports whether a guest is announced before another one's that got an
// address of it later. One that is on its way to another node is not: the route
// of that node is to come first.
func (g *guest) defends() bool { return !g.defended.IsZero() && g.departure.to.Name == "" }

// findings is what became of guests of which other nodes have, or want, something.
type findings struct {
	lost    map[string]loss
	standby map[string]bool // to be announced behind the node that has them, or not any more
	defends []string        // to be announced before another guest's route, or not any more
	asks    bool            // a node is to be asked
}

// preempted finds the guests that are to be withdrawn, or announced in another way,
// for what the routes of other nodes say, or as those nodes do not answer.
func (a *Agent) preempted() findings {
	names := a.nodes.Names()
	s, done := a.state.open()
	defer done()
	now := time.Now()
	found := findings{lost: map[string]loss{}, standby: map[string]bool{}}
	for vm := range s.unsettled {
		g := s.guests[vm]
		switch {
		case g == nil || g.want.State != fabric.Live:
		case g.want.Lost != "":
			quiet, silent := s.peers.silent[g.want.Lost]
			if !silent && !slices.Contains(names, g.want.Lost) { // nobody asks it
				quiet, silent = silence{now, now}, true
				s.peers.silent[g.want.Lost] = quiet
			}
			if !silent {
				continue
			}
			p := ownership.Preemption{Competing: len(g.competing) > 0, RouteGone: g.routeGone, Silent: max(1, now.Sub(quiet.since)), Behind: g.want.Standby}
			if on := p.Stance() == ownership.Standby; on != g.want.Standby {
				found.standby[vm] = on
			}
		case owned(g.want) && g.has && !g.departure.state.Stops() && (len(g.competing) > 0 || !g.defended.IsZero()):
			s.contend(vm, g, now, &found)
		}
	}
	return found
}

// contend looks at the routes that compete with those of a guest that this node
// has.
func (s *state) contend(vm string, g *guest, now time.Time, found *findings) {
	older, later := g.others(s.node)
	if older.node != "" {
		found.lost[vm] = older
		return
	}
	defended := g.defended
	for node, reflector := range later {
		g.wantedBy(s.node, node, "", reflector)
		g.defended = now
	}
	// Once this route comes first, the reflectors tell of the other no more. The
	// other node is to have the time to hear of this one.
	if now.Sub(g.defended) >= contestMemory {
		g.defended = time.Time{}
	}
	if defended.IsZero() != g.defended.IsZero() {
		found.defends = append(found.defends, vm)
	}
	if len(g.competing) == 0 || !g.yieldsToRoute(s.fresh(g, now)) {
		return
	}
	_, settled := later[g.contested]
	switch {
	case g.contested == "":
		found.asks = g.contest(now, slices.Collect(maps.Keys(later))) || found.asks
	case settled: // it came later, whether it answers or not
	case !s.peers.silent[g.contested].last.Before(g.contestedAt):
		found.lost[vm] = loss{node: g.contested, reflector: g.reflectorOf(g.contested)}
	}
}

// reflectorOf gives the first reflector that has a better route of a node.
func (g *guest) reflectorOf(node string) string {
	for _, at := range slices.SortedFunc(maps.Keys(g.competing), competitor.compare) {
		if g.competing[at].node == node {
			return at.reflector
		}
	}
	return ""
}

// announceAnew has a guest announced as it is to be now. One that somebody is at
// work on is looked at by the pass.
func (a *Agent) announceAnew(ctx context.Context, vm string) {
	t, end, free := a.tryBegin(vm)
	if !free {
		a.signal()
		return
	}
	defer end()
	if err := t.reconcile(ctx, nil); err != nil {
		a.signal()
	}
}

// setStandby has a guest that another node has announced behind it, or not at
// all. One that somebody is at work on is looked at again soon.
func (a *Agent) setStandby(ctx context.Context, vm string, on bool) {
	t, end, free := a.tryBegin(vm)
	if !free {
		return
	}
	defer end()
	t.redoStandby(ctx, on)
}

// redoStandby is setStandby inside of what is done to the guest already.
func (t *task) redoStandby(ctx context.Context, on bool) {
	s, done := t.state.open()
	g := s.guests[t.vm]
	if g == nil || g.want.State != fabric.Live || g.want.Lost == "" || g.want.Standby == on {
		done()
		return
	}
	g.want.Standby = on
	node := g.want.Lost
	done()
	if on {
		t.log.Warn("the node that has the guest does not answer; announced here behind it", "vm", t.vm, "node", node)
	}
	err := t.reconcile(ctx, nil)
	_, done = t.state.open()
	d := g.want
	done()
	if stored := t.keepState(ctx, d); err != nil || stored != nil {
		t.signal()
	}
}

// loseToRoute withdraws a guest to which a reflector has another node's better
// route, where that is another guest's which has had the address longer, or the
// node cannot be asked.
func (a *Agent) loseToRoute(ctx context.Context, vm string, l loss) {
	t, end, free := a.tryBegin(vm)
	if !free {
		return
	}
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	still := false
	switch {
	case g == nil:
	case l.other:
		older, _ := g.others(a.node)
		still = older == l && owned(g.want) && g.has && !g.departure.state.Stops()
	default:
		still = g.contested == l.node && g.yieldsToRoute(s.fresh(g, time.Now())) && len(g.competing) > 0
		if !still {
			g.contested = ""
		}
	}
	done()
	if still {
		t.preempt(ctx, l)
	}
}

// yieldsToRoute reports whether a guest may have to be withdrawn for another
// node's better route.
func (g *guest) yieldsToRoute(fresh bool) bool {
	return owned(g.want) && g.has && !g.departure.state.Stops() && g.want.VM.Origin != "" && !fresh
}

// competes takes up that a reflector has another node's better route to a prefix of
// ours, or has it no more. Its node is asked, where it can be; where that is
// silent, the route itself may say which guest it is for. Nobody gives way to
// what is no node.
func (a *Agent) competes(ctx context.Context, r fabric.Competitor) {
	node, known := a.nodeAt(r.Via)
	at := competitor{r.Prefix, r.Reflector}
	s, done := a.state.open()
	_, strayed := s.peers.strays[at]
	if delete(s.peers.strays, at); !known && !r.Gone {
		s.peers.strays[at] = r
	}
	done()
	if !known && !r.Gone && !strayed {
		a.log.Warn("a route that leads to no node comes before this node's; not heeded", "prefix", r.Prefix, "via", r.Via, "reflector", r.Reflector)
	}
	competes := known && !r.Gone
	for _, vm := range a.concerned([]netip.Prefix{r.Prefix}) {
		if competes {
			a.moves.saw(vm, r.Reflector, r.At)
		}
		s, done = a.state.open()
		if g := s.guests[vm]; g != nil {
			g.compete(at, competing{node, r.Holder}, competes)
			s.unsettled[vm] = true
		}
		done()
		if a.nodes == nil {
			a.competesAlone(ctx, vm, loss{node: node, reflector: r.Reflector}, competes)
		}
	}
	signal(a.review)
}

// compete notes that a better route of a node is there, or not any more.
func (g *guest) compete(at competitor, route competing, competes bool) {
	if competes {
		if g.competing == nil {
			g.competing = map[competitor]competing{}
		}
		if was, known := g.competing[at]; known && was != route && g.denied == route.node {
			g.denied = "" // what the node said was about another route
		}
		g.competing[at] = route
		return
	}
	if delete(g.competing, at); len(g.competing) == 0 {
		g.contested, g.contestedAt, g.denied = "", time.Time{}, ""
		g.routeGone = g.want.Lost != ""
	}
}

// competesAlone is what follows of a better route where there is nobody to ask.
func (a *Agent) competesAlone(ctx context.Context, vm string, l loss, competes bool) {
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	yields := g != nil && competes && g.yieldsToRoute(s.fresh(g, time.Now()))
	done()
	if yields {
		t.preempt(ctx, l)
		return
	}
	t.redoStandby(ctx, !competes)
}
