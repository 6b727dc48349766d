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
	askFor        = 300 * time.Millisecond // a start waits so long for the answers of all other nodes together
	contestMemory = 30 * time.Second       // Status lists a contest so long after the other guest was last seen
	oddMemory     = 5 * time.Minute        // Status lists a node with an implausible epoch so long
	slowMemory    = 10 * time.Second       // a list of running guests skips a node so long that did not answer in time
	quietAfter    = 3 * repeatEvery        // the destination of a move is quiet if it has not repeated Arriving for so long
)

// peers is what an agent knows of the other nodes. [peerQueues] has the messages to
// them.
type peers struct {
	met    map[string]bool                  // nodes whose agents have answered this one, or called
	silent map[string]outage                // nodes that did not answer the last question
	at     map[netip.Addr]string            // nodes that called, by their addresses
	slow   map[string]time.Time             // nodes that did not answer a question about a start in time, and when
	strays map[competitor]fabric.Competitor // competing routes whose next hop is no known node
	odd    map[string]remark                // nodes that sent an implausible epoch
}

// outage is the time in which a node does not answer: its begin, and the last failed
// question.
type outage struct{ since, last time.Time }

// remark is a problem that Status lists until it is too old.
type remark struct {
	text string
	at   time.Time
	// byRoute: a route showed the problem. Once this node's own route ranks first,
	// the reflector does not send the other route any more, so only the other node's
	// agent can say that the problem is over. Until it answers, this agent asks it,
	// and Status lists the problem.
	byRoute bool
}

// competitor is the key of a competing route: its prefix, and the reflector that
// sent it.
type competitor struct {
	prefix    netip.Prefix
	reflector string
}

// competing is a competing route: another node's better route to a prefix of ours.
type competing struct {
	node   string
	holder fabric.Holder
}

// loss is the preemption of a guest of this node by another node. The zero value:
// no preemption.
type loss struct {
	node      string
	guest     string // name of the other guest that has the address there, if an agent named it
	other     bool   // another guest has the address, named or not
	reflector string // the reflector whose route shows it; empty: an agent said so
}

// contention is what an agent knows of other nodes and guests that have, or want, a
// guest's addresses.
type contention struct {
	contested   string                   // the node that is asked about its competing route
	contestedAt time.Time                // when the agent chose that node
	denied      string                   // the node that answered that it does not have the guest
	competing   map[competitor]competing // the competing routes
	routeGone   bool                     // no route competes with a preempted guest any more; the other node has not answered since
	contests    map[string]remark        // other guests that want the address, by their node
	defended    time.Time                // when a route of such a guest last competed; zero: none did lately
	inherited   time.Time                // since when the guest has had its addresses, by the node that it came from
}

func newPeers() peers {
	return peers{
		silent: map[string]outage{}, slow: map[string]time.Time{}, at: map[netip.Addr]string{}, strays: map[competitor]fabric.Competitor{}, odd: map[string]remark{},
		met: map[string]bool{},
	}
}

// heard notes that a node answered or called, and its addresses.
func (p *peers) heard(n fabric.Node) {
	delete(p.silent, n.Name)
	for _, a := range []netip.Addr{n.Address, n.Address6} {
		if !a.IsValid() || p.at[a] == n.Name {
			continue
		}
		// A node has one address of each family; it may have changed.
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
		a.signal() // the routes of guests may change their preference and holder
	}
	was.last = now
	s.peers.silent[node] = was
	signal(a.review)
}

// nodeAt gives the node that has an address, by the cluster file or by its calls.
func (a *Agent) nodeAt(addr netip.Addr) (string, bool) {
	for _, n := range a.cluster().Nodes {
		if addr == n.Address || addr == n.Address6 {
			return n.Name, true
		}
	}
	s, done := a.state.open()
	defer done()
	name, called := s.peers.at[addr]
	return name, called
}

// holder is a guest that has an address on another node; zero: none has it.
type holder struct {
	node, vm string
	same     bool   // it is the guest itself, which runs there
	epoch    uint64 // with which it does
}

// acquire asks the other nodes which guests have the addresses that a guest is about
// to get here. It does not ask about addresses that the guest has here already, or for
// a request that is refused or outdated anyway. If another guest has one, acquire refuses a
// start (r.undo). A guest that runs already, here or at the node that it comes from,
// cannot be refused: then acquire only returns the holder.
func (t *task) acquire(ctx context.Context, vm fabric.VM, r request, others []string) (holder, error) {
	if len(others) == 0 {
		return holder{}, nil
	}
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
	pointless := len(wanted) == 0 || s.acceptable(vm, known) != nil || s.free(vm) != nil || s.outdated(vm.Name, r.asOf)
	asked := slices.Clone(others)
	if !r.undo {
		// For a long list of running guests, do not wait for the same node each time.
		asked = slices.DeleteFunc(asked, func(n string) bool { return time.Since(s.peers.slow[n]) < slowMemory })
	}
	done()
	if pointless {
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

// whoHas asks nodes, all at the same time, which guest has one of the notice's
// prefixes. It returns as soon as one names another guest. If a node has the guest
// itself, it returns that node with same set.
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
			case errors.Is(ctx.Err(), context.Canceled): // another answer has decided
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

// holder answers a node that is about to start a guest. It names the guest here that
// has one of the prefixes: another guest if there is one, else the guest itself.
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

// overlapping lists the guests here with a prefix that overlaps one of ps.
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

// identified adds the guest that a notice names to an answer with Held.
func (a *Agent) identified(n fabric.Notice, answer fabric.Answer) fabric.Answer {
	s, done := a.state.open()
	defer done()
	if g := s.guests[n.VM]; g != nil && answer.Held {
		return naming(answer, n, g.want)
	}
	return answer
}

// isAnother reports whether the guest of that name here is another guest than that of
// the notice.
func (a *Agent) isAnother(n fabric.Notice) bool {
	s, done := a.state.open()
	defer done()
	g := s.guests[n.VM]
	return g != nil && g.want.State != fabric.Absent && !ownership.Same(string(g.want.VM.Identity()), string(n.Identity))
}

// inherit takes over from another node's answer since when a guest has had its
// addresses, if that is earlier than this node knows.
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
		a.signal() // its routes carry the time
	}
}

// wantedBy notes that a guest of another node wants an address of g, which has had it
// longer. vm is empty if the agent knows that from a route at a reflector only.
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
	case known: // keep the text: it may have the name
		g.contests[node] = remark{had.text, now, true}
	default:
		g.contests[node] = remark{fmt.Sprintf(
			"guest %s on %s: another guest on %s has an address of it too, as its route at %s says; %[1]s has had it longer and keeps it, stop the one on %[3]s, or give that another address",
			mine, self, node, reflector), now, true}
	}
}

// contests lists, for Status, the problems with addresses that several nodes have.
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
		if g.denied != "" && g.preemptible(s.fresh(g, now)) && !g.departs() {
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
			"a route for %s via %s, which is no node, comes before this node's at %s; it is ignored, but takes the packets: see there who announces it, or add the node to the cluster file",
			text.Prefix(r.Prefix), r.Via, r.Reflector))
	}
	maps.DeleteFunc(s.peers.odd, func(_ string, r remark) bool { return now.Sub(r.at) > oddMemory })
	for _, r := range s.peers.odd {
		lines = append(lines, r.text)
	}
	slices.Sort(lines)
	return lines
}

// plausible gives the epoch that a node sent for a guest, or zero, which is lower
// than all others, if the epoch is too far in the future. Status lists that then.
func (a *Agent) plausible(node, vm string, epoch uint64) uint64 {
	if ownership.Plausible(epoch, a.clock()) {
		return epoch
	}
	s, done := a.state.open()
	defer done()
	why := "which is that of a time far ahead of this node's clock; it is ignored: set the clocks of both (timedatectl), and see what runs there"
	if ownership.ByRegistry(epoch) {
		why = "which no clock and no registry gives; it is ignored: see what runs there, and stop its agent if that is not yours"
	}
	s.peers.odd[node] = remark{text: fmt.Sprintf("node %s says that guest %s has epoch %d, %s", node, vm, epoch, why), at: time.Now()}
	return 0
}

// believable removes an implausible epoch and an invalid name or identity from an
// answer.
func (a *Agent) believable(node, vm string, answer fabric.Answer) fabric.Answer {
	answer.Epoch = a.plausible(node, vm, answer.Epoch)
	if answer.Identity.Validate() != nil || answer.VM != "" && fabric.ValidateName(answer.VM) != nil || answer.Identity != "" && answer.VM == "" {
		answer.VM, answer.Identity, answer.Acquired = "", "", time.Time{}
	}
	return answer
}

// ends notes that a guest is about to be withdrawn for good, or removed. From here on
// this node does not send Claimed for it.
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

// acquires resets the time since which a guest has its addresses, if it gets new
// ones.
func (g *guest) acquires(d *fabric.Desired, prev fabric.Desired) {
	if prev.State != 0 && len(without(d.VM.Prefixes(), prev.VM.Prefixes())) > 0 {
		// The time is one for all addresses of a guest. With the old time, the guest
		// would win a new address against a guest that has had it longer.
		d.Acquired, g.inherited, g.has = time.Time{}, time.Time{}, false
	}
}

// adoptOwnership corrects the ownership in stored state: a loss that this agent
// cannot follow up, an implausible epoch, and the missing time of older versions.
func (a *Agent) adoptOwnership(d *fabric.Desired) {
	if _, err := netip.ParseAddr(d.Lost); err == nil || d.Lost != "" && a.nodes == nil {
		// The agent cannot ask that node, so it acquires the guest anew.
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

// letGo handles Released of another node: its guest does not contend any more, and
// guests here that wait for that node ask it at once.
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

// reconsider reviews, once a second and when signalled, the guests that other nodes
// have or may have, until ctx ends. What made this node withdraw a guest may be over.
func (a *Agent) reconsider(ctx context.Context) {
	look := time.NewTicker(repeatEvery)
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
		owners := a.owners(ctx, found.lost)
		for vm, l := range found.lost {
			s, done := a.state.open()
			keeps := s.keepsByRegistry(vm, l, owners)
			done()
			if !keeps {
				a.preemptByRoute(ctx, vm, l)
			}
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

// recognised gives the stray routes whose next hop has called since, so that its node
// is known now.
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

// contest chooses the node to ask about its competing route, and reports whether it
// chose one. Nodes in later come last: their routes say enough. It chooses the node
// that denied having the guest only if there is no other, and not before passEvery
// has passed.
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

// others finds the competing routes of other guests. older is one whose guest has had
// the address longer, so that it preempts g; it skips the node that denied having the
// guest. later has the nodes, each with a reflector, of guests that got it later.
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

// saysHolder gives the holder that the guest's routes carry. It is zero unless some
// node may need it, because agents do not reach each other or another guest's route
// competes.
func (s *state) saysHolder(g *guest, d fabric.Desired) fabric.Holder {
	now := time.Now()
	apart := len(s.peers.silent) > 0 || g.defends(now) || g.kept && len(d.Unreleased) > 0 // which the agent before this one waited for
	for _, at := range s.peers.slow {
		apart = apart || now.Sub(at) < slowMemory
	}
	if !apart {
		return fabric.Holder{}
	}
	return d.Holder()
}

// defends reports whether the guest's routes must rank before those of another guest
// that got an address of it later. A guest that moves to another node does not
// defend: the route of that node must rank first. While that node is quiet and the
// guest runs here yet, it does.
func (g *guest) defends(now time.Time) bool {
	quiet := g.departure.to.Name == "" || now.Sub(g.departure.heard) > quietAfter
	return !g.defended.IsZero() && quiet && !g.departure.state.Stops() && !g.departure.state.Diverts()
}

// findings are the guests that reconsider has to act upon.
type findings struct {
	lost    map[string]loss // withdraw
	standby map[string]bool // true: announce as standby; false: withdraw again
	defends []string        // begin or end to rank before another guest's route
	asks    bool            // there is a node to ask
}

// preempted finds the guests whose announcement must change, because of the routes of
// other nodes or because those nodes do not answer.
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
			if !silent && !slices.Contains(names, g.want.Lost) { // Nodes does not list it, so nobody asks it
				quiet, silent = outage{now, now}, true
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

// contend decides what the competing routes mean for a guest of this node.
func (s *state) contend(vm string, g *guest, now time.Time, found *findings) {
	older, later := g.others(s.node)
	if older.node != "" {
		s.yieldTo(vm, g, older, now, found)
		return
	}
	defended := g.defended
	for node, reflector := range later {
		g.wantedBy(s.node, node, "", reflector)
		g.defended = now
	}
	// Once this node's route ranks first, the reflectors do not send the other route
	// any more. Defend for a while, so that the other node gets this node's route.
	if now.Sub(g.defended) >= contestMemory {
		g.defended = time.Time{}
	}
	// The destination of a move may have become quiet.
	moves := !g.defended.IsZero() && g.departure.to.Name != ""
	if moves || defended.IsZero() != g.defended.IsZero() {
		found.defends = append(found.defends, vm)
	}
	if len(g.competing) == 0 || !g.preemptible(s.fresh(g, now)) {
		return
	}
	_, settled := later[g.contested]
	switch {
	case g.contested == "":
		found.asks = g.contest(now, slices.Collect(maps.Keys(later))) || found.asks
	case settled: // its guest got the address later, whether its node answers or not
	case !s.peers.silent[g.contested].last.Before(g.contestedAt):
		found.lost[vm] = loss{node: g.contested, reflector: g.reflectorOf(g.contested)}
	}
}

// yieldTo decides about a competing route of another guest that has had an address of g
// longer, as the route says. A reflector can make that up, and so can a node that makes
// up when its guest got the address. So the agent of that node is asked first, and the
// route decides only when that does not answer.
func (s *state) yieldTo(vm string, g *guest, older loss, now time.Time, found *findings) {
	switch _, silent := s.peers.silent[older.node]; {
	case silent:
		found.lost[vm] = older
	case g.contested != older.node:
		g.contested, g.contestedAt = older.node, now
		found.asks = true
	}
}

// reflectorOf gives the first reflector that has a competing route of a node.
func (g *guest) reflectorOf(node string) string {
	for _, at := range slices.SortedFunc(maps.Keys(g.competing), competitor.compare) {
		if g.competing[at].node == node {
			return at.reflector
		}
	}
	return ""
}

// announceAnew reconciles a guest whose routes have changed. If another task works on
// the guest, the pass does it.
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

// setStandby announces a preempted guest as standby, or withdraws it again. If
// another task works on the guest, reconsider comes back to it.
func (a *Agent) setStandby(ctx context.Context, vm string, on bool) {
	t, end, free := a.tryBegin(vm)
	if !free {
		return
	}
	defer end()
	t.applyStandby(ctx, on)
}

// applyStandby is setStandby for a task.
func (t *task) applyStandby(ctx context.Context, on bool) {
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

// preemptByRoute withdraws a guest for a competing route, if that is the route of
// another guest that has had the address longer, or if its node does not answer.
func (a *Agent) preemptByRoute(ctx context.Context, vm string, l loss) {
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
		still = g.contested == l.node && g.preemptible(s.fresh(g, time.Now())) && len(g.competing) > 0
		if !still {
			g.contested = ""
		}
	}
	done()
	if still {
		t.preempt(ctx, l)
	}
}

// preemptible reports whether a competing route of the same guest, or of a guest
// that the route does not name, may preempt g. It cannot if g is Fresh, or if g was
// attached by hand: only its user ends such a guest.
func (g *guest) preemptible(fresh bool) bool {
	return owned(g.want) && g.has && !g.departure.state.Stops() && g.want.VM.Origin != "" && !fresh
}

// competes handles the news that a reflector has another node's better route to a
// prefix of ours, or does not have it any more. reconsider then asks the node; if the
// node does not answer, the holder in the route may decide. A route whose next hop is
// no known node preempts nothing.
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
		a.log.Warn("a route that leads to no node comes before this node's; ignored", "prefix", r.Prefix, "via", r.Via, "reflector", r.Reflector)
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

// compete notes that a competing route is there, or not any more.
func (g *guest) compete(at competitor, route competing, competes bool) {
	if competes {
		if g.competing == nil {
			g.competing = map[competitor]competing{}
		}
		if was, known := g.competing[at]; known && was != route && g.denied == route.node {
			g.denied = "" // the node's answer was about another route
		}
		g.competing[at] = route
		return
	}
	if delete(g.competing, at); len(g.competing) == 0 {
		g.contested, g.contestedAt, g.denied = "", time.Time{}, ""
		g.routeGone = g.want.Lost != ""
	}
}

// competesAlone acts on a competing route in an agent that can ask no other node.
func (a *Agent) competesAlone(ctx context.Context, vm string, l loss, competes bool) {
	t, end := a.begin(vm)
	defer end()
	s, done := a.state.open()
	g := s.guests[vm]
	yields := g != nil && competes && g.preemptible(s.fresh(g, time.Now()))
	done()
	if yields {
		t.preempt(ctx, l)
		return
	}
	t.applyStandby(ctx, !competes)
}
