package agent_test

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// gold is a guest of libvirt, and clone another one with the same addresses.
func gold() fabric.VM { return known("sea_gold", "uuid-of-gold", "203.0.113.10 2001:db8:100:1::10") }

func clone() fabric.VM { return known("clone", "uuid-of-clone", "203.0.113.10 2001:db8:100:1::10") }

func known(name, uuid string, nics ...string) fabric.VM {
	vm := from("libvirt", guest(name, nics...))
	vm.UUID = uuid
	return vm
}

// golds runs two agents while f works with them, and gold on the first.
func golds(t *testing.T, f func(*testing.T, *pair)) {
	t.Helper()
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) {
		p.boots(p.one)
		f(t, p)
	})
}

// runs starts a guest on a node as libvirt and its hook do.
func (p *pair) runs(n *node, vm fabric.VM) {
	p.t.Helper()
	n.apply(vm, fabric.Wired)
	require.NoError(p.t, n.Started(p.t.Context(), vm))
	p.src[n].Set(vm, fabric.Live)
}

// over ends it.
func (p *pair) over(n *node, vm fabric.VM) {
	p.t.Helper()
	require.NoError(p.t, n.Withdraw(p.t.Context(), vm.Name))
	require.NoError(p.t, n.Apply(p.t.Context(), vm, fabric.Absent))
	p.src[n].Set(vm, fabric.Absent)
	moment()
}

// asked gives who was asked about a start since the last call.
func (p *pair) asked() (lines []string) {
	for _, l := range p.talk.Take() {
		if strings.Contains(l, " acquiring ") {
			lines = append(lines, l)
		}
	}
	return lines
}

// TestStartOfAnothersAddressIsRefused: whichever part of it another guest has on
// another node, and however it is to be started.
func TestStartOfAnothersAddressIsRefused(t *testing.T) {
	has := known("sea_gold", "uuid-of-gold", "203.0.113.10 2001:db8:100:1::10 198.51.100.0/29 2001:db8:200::/64")
	for _, tc := range []struct{ name, nic, held string }{
		{"IPv4", "203.0.113.10", "203.0.113.10"},
		{"IPv6", "2001:db8:100:1::10", "2001:db8:100:1::10"},
		{"one of several", "203.0.113.9 2001:db8:100:1::10", "2001:db8:100:1::10"},
		{"a route", "203.0.113.9 198.51.100.0/29", "198.51.100.0/29"},
		{"a part of a route", "2001:db8:100:1::9 2001:db8:200::8/125", "2001:db8:200::8/125"},
		{"a route around it", "203.0.113.9 198.51.100.0/28", "198.51.100.0/28"},
	} {
		vm := known("clone", "uuid-of-clone", tc.nic)
		byHand := guest("clone", tc.nic)
		namesake := known("sea_gold", "uuid-of-clone", tc.nic)
		for how, start := range map[string]func(*pair) (fabric.VM, error){
			"hook": func(p *pair) (fabric.VM, error) { return vm, p.two.Apply(p.t.Context(), vm, fabric.Wired) },
			"hook by name": func(p *pair) (fabric.VM, error) {
				p.src[p.two].Know("clone", vm)
				return vm, p.two.Starting(p.t.Context(), "libvirt", "clone")
			},
			"by hand":               func(p *pair) (fabric.VM, error) { return byHand, p.two.Apply(p.t.Context(), byHand, fabric.Live) },
			"hook of the same name": func(p *pair) (fabric.VM, error) { return namesake, p.two.Apply(p.t.Context(), namesake, fabric.Wired) },
		} {
			t.Run(tc.name+"/"+how, func(t *testing.T) {
				pairsOf(t, fake.NewSource, has, func(t *testing.T, p *pair) {
					p.boots(p.one)
					p.forget()
					got, err := start(p)
					require.ErrorIs(t, err, fabric.ErrRefused)
					assert.EqualError(t, err, "guest "+got.Name+" refused: "+tc.held+" is held by guest sea_gold (libvirt uuid-of-gold) on node1; stop that one, or give "+got.Name+" another address")
					moment()
					assert.Empty(t, p.one.journal.Take())
					assert.Empty(t, p.two.journal.Take())
					p.two.holds()
					assert.Empty(t, p.one.problems())
					assert.Empty(t, p.two.problems())

					p.over(p.one, has)
					other := guest("other", tc.nic)
					p.two.apply(other, fabric.Live) // what was refused holds nothing
					p.two.apply(other, fabric.Absent)
					_, err = start(p)
					require.NoError(t, err, "the holder has ended")
				})
			})
		}
	}
}

// TestWhoIsAskedAboutAStart: nobody where the guest is here, or comes from where
// it is; and of the same guest nothing is refused.
func TestWhoIsAskedAboutAStart(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		asked := []string{"node1 tells node2 acquiring sea_gold"}
		p.one.apply(p.vm, fabric.Live)
		require.NoError(t, p.one.Started(t.Context(), p.vm))
		assert.Empty(t, p.asked(), "it is live here")

		more := known("sea_gold", "uuid-of-gold", "203.0.113.10 2001:db8:100:1::10 203.0.113.12")
		p.one.apply(more, fabric.Live)
		assert.Equal(t, asked, p.asked(), "it gets an address more")

		p.over(p.one, more)
		p.forget()
		p.runs(p.one, p.vm)
		assert.Equal(t, asked, p.asked(), "once for all of libvirt's operations")
		p.lets(p.one)

		p.arrives(p.two)
		assert.Equal(t, []string{"node2 tells node1 acquiring sea_gold"}, p.asked(), "a migration, while nobody waits for it")
		p.src[p.one].Leave(p.vm)
		moment()
		p.src[p.two].Set(p.vm, fabric.Live)
		p.leaves(p.one)
		assert.Empty(t, p.asked(), "its cutover")
		p.lets(p.two)

		// Started here while it is there: the same guest, which goes to where it
		// was started last.
		p.runs(p.one, p.vm)
		assert.Equal(t, asked, p.asked())
		moment()
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.one))
		p.lets(p.one)
		assert.Empty(t, p.first(p.two))

		require.NoError(t, p.one.Withdraw(t.Context(), p.vm.Name))
		p.asked()
		p.one.apply(p.vm, fabric.Live)
		assert.Equal(t, asked, p.asked(), "it was over here, and somebody else may have it")
	})
}

// TestMoveThatWasNotAnnounced: the agent was being restarted when the hook said
// that a guest comes by migration. It does not announce it before it runs here.
func TestMoveThatWasNotAnnounced(t *testing.T) {
	pairsOf(t, fake.NewSource, known("sea_gold", "uuid-of-gold", "203.0.113.10 2001:db8:100:1::10"), func(t *testing.T, p *pair) {
		p.boots(p.one)
		p.two.apply(p.vm, fabric.Wired)
		p.src[p.two].Set(p.vm, fabric.Wired)
		require.NoError(t, p.two.Started(t.Context(), p.vm))
		moment()
		assert.Empty(t, p.first(p.two), "it runs on node1")
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))

		p.src[p.one].Leave(p.vm)
		moment()
		p.src[p.two].Set(p.vm, fabric.Live)
		moment()
		assert.Equal(t, map[string]string{"203.0.113.10/32": "fresh"}, p.first(p.two))
		p.leaves(p.one)
		p.lets(p.two)
	})
}

// TestStartIsLaterWhateverTheClocks: a node that answers that it has the guest says
// under which epoch, which may be of a clock that is ahead.
func TestStartIsLaterWhateverTheClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := known("sea_gold", "uuid-of-gold", "203.0.113.10")
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		ahead := uint64(time.Now().Add(8 * time.Hour).UnixMilli())
		claims := make(chan uint64, 64)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error)
		go func() {
			served <- ends["node2"].Serve(ctx, func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
				if n.Kind == fabric.Claimed {
					claims <- n.Epoch
					return fabric.Answer{}
				}
				return fabric.Answer{Held: true, Epoch: ahead, VM: vm.Name, Identity: vm.Identity()}
			})
		}()
		n := fresh(t, agent.WithNodes(ends["node1"]))
		n.run(func() {
			n.apply(vm, fabric.Live)
			assert.Equal(t, ahead+1, <-claims)
		})
		cancel()
		require.NoError(t, <-served)
	})
}

// TestStartBesideASilentNode waits for all nodes together, and no longer.
func TestStartBesideASilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		talk := new(fake.Journal)
		c := cluster()
		nodes := append(slices.Clone(c.Nodes[:2]), fabric.Node{Name: "node3", Address: netip.MustParseAddr("10.10.0.23")}, fabric.Node{Name: "node4", Address: netip.MustParseAddr("10.10.0.24")})
		ends := fake.NewNodes(talk, nodes...)
		n := fresh(t, agent.WithNodes(ends["node1"]))
		n.run(func() {
			for _, name := range []string{"node2", "node3"} {
				ends["node1"].Hang("node1 tells " + name + " acquiring")
			}
			began := time.Now()
			n.apply(clone(), fabric.Wired)
			assert.Equal(t, 300*time.Millisecond, time.Since(began))
			n.holds(want{clone(), fabric.Wired})
			n.apply(clone(), fabric.Absent)

			// One that answers is heard however silent the others are.
			stop := serves(t, ends["node4"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
				return fabric.Answer{Held: n.Kind == fabric.Acquiring, VM: "sea_gold", Identity: gold().Identity(), Acquired: began, Prefix: n.Prefixes[0]}
			})
			moment()
			began = time.Now()
			require.ErrorContains(t, n.Apply(t.Context(), clone(), fabric.Wired), "203.0.113.10 is held by guest sea_gold (libvirt uuid-of-gold) on node4")
			assert.Zero(t, time.Since(began))
			stop()
		})
	})
}

// serves has a node's end answer; stop ends that.
func serves(t *testing.T, end *fake.Nodes, answer func(context.Context, fabric.Node, fabric.Notice) fabric.Answer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- end.Serve(ctx, answer) }()
	synctest.Wait()
	return sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-served)
	})
}

// names checks that a node's only problem is that two guests have one address,
// and that it names both, with their nodes.
func (p *pair) names(n *node) {
	p.t.Helper()
	problems := n.problems()
	if assert.Len(p.t, problems, 1) {
		for _, word := range []string{"sea_gold", "clone", "node1", "node2"} {
			assert.Contains(p.t, problems[0], word)
		}
	}
}

// TestTwoGuestsMeet: the agents could not talk when the second guest started. It
// gives way when they can, whoever hears of it first, and whatever happened meanwhile.
func TestTwoGuestsMeet(t *testing.T) {
	for name, apart := range map[string]func(*pair){
		"the newcomer tells": func(*pair) {},
		"the first gave way to a route": func(p *pair) {
			p.one.speaker.Compete(route(p.vm, "10.10.0.22"))
			moment()
			assert.Empty(p.t, p.first(p.one))
		},
		"the first gave way to a route, and stands by": func(p *pair) {
			r := route(p.vm, "10.10.0.22")
			p.one.speaker.Compete(r)
			moment()
			r.Gone = true
			p.one.speaker.Compete(r)
			moment()
			assert.Equal(p.t, map[string]string{"203.0.113.10/32": "standby"}, p.first(p.one))
		},
		"both are told by reflectors": func(p *pair) {
			p.one.speaker.Compete(route(p.vm, "10.10.0.22"))
			moment()
			p.two.speaker.Compete(route(p.vm, "10.10.0.21"))
			moment()
		},
	} {
		t.Run(name, func(t *testing.T) {
			golds(t, func(t *testing.T, p *pair) {
				p.ends[p.one].Cut("node2", true)
				p.runs(p.two, clone())
				time.Sleep(time.Minute)
				assert.NotEmpty(t, p.first(p.two), "nobody could say that it is taken")
				apart(p)
				p.ends[p.one].Cut("node2", false)
				time.Sleep(5 * time.Second)
				assert.Empty(t, p.first(p.two))
				assert.NotEmpty(t, p.first(p.one))
				for n, via := range map[*node]string{p.one: "10.10.0.22", p.two: "10.10.0.21"} {
					r := route(p.vm, via)
					r.Gone = true
					n.speaker.Compete(r) // as one is withdrawn, and the other is as usual
				}
				moment()
				p.names(p.one)
				p.names(p.two)
				time.Sleep(time.Hour)
				assert.Empty(t, p.first(p.two))
				assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
				p.names(p.one)
				p.names(p.two)

				// Again and again, it does not get it; its user is told so.
				require.NoError(t, p.two.Started(t.Context(), clone()))
				p.src[p.two].Lose()
				require.ErrorContains(t, p.two.Apply(t.Context(), clone(), fabric.Live), "held by guest sea_gold")
				moment()
				assert.Empty(t, p.first(p.two))

				p.over(p.two, clone())
				moment()
				assert.Empty(t, p.one.problems())
				assert.Empty(t, p.two.problems())
				assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
			})
		})
	}
	t.Run("and the first ends", func(t *testing.T) {
		golds(t, func(t *testing.T, p *pair) {
			p.ends[p.one].Cut("node2", true)
			p.runs(p.two, clone())
			p.ends[p.one].Cut("node2", false)
			time.Sleep(5 * time.Second)
			assert.Empty(t, p.first(p.two))
			p.over(p.one, p.vm)
			moment()
			assert.NotEmpty(t, p.first(p.two), "at once")
			assert.Empty(t, p.two.problems())
		})
	})
}

// route is a better route to the first prefix of a guest, as rr1 has it.
func route(vm fabric.VM, via string) fabric.Competitor {
	return fabric.Competitor{Prefix: vm.Prefixes()[0], Via: netip.MustParseAddr(via), Preference: fabric.Fresh, Reflector: "rr1", At: time.Now()}
}

// TestRouteThatLeadsToNoNode is followed by nobody, and reported while it is there.
func TestRouteThatLeadsToNoNode(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		for _, prefix := range p.vm.Prefixes() {
			r := route(p.vm, "10.10.0.99")
			r.Prefix = prefix
			p.one.speaker.Compete(r)
			time.Sleep(5 * time.Second)
			assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
			require.Len(t, p.one.problems(), 1)
			assert.Contains(t, p.one.problems()[0], "a route for "+prefix.Addr().String()+" via 10.10.0.99, which is no node")
			r.Gone = true
			p.one.speaker.Compete(r)
			moment()
			assert.Empty(t, p.one.problems())
		}
		assert.Empty(t, p.one.journal.Take())
		assert.Empty(t, p.talk.Take())

		// A node that nobody has named, and that calls later, is one.
		node := fabric.Node{Name: "newcomer", Address: netip.MustParseAddr("10.10.0.99")}
		newcomer := p.ends[p.one].Join(node)
		p.one.speaker.Compete(route(p.vm, "10.10.0.99"))
		moment()
		require.Len(t, p.one.problems(), 1)
		stop := serves(t, newcomer, func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
			return fabric.Answer{Held: true, Epoch: n.Epoch + 1, VM: n.VM, Identity: p.vm.Identity(), Acquired: n.Acquired}
		})
		_, err := newcomer.Ask(t.Context(), "node1", fabric.Notice{Kind: fabric.Acquiring, VM: "other", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.99/32")}})
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		assert.Empty(t, p.first(p.one))
		require.Len(t, p.one.problems(), 1)
		assert.Contains(t, p.one.problems()[0], "newcomer has it")
		stop()
	})
}

// TestRouteOfANodeThatCanBeAsked: its word counts, and not the route.
func TestRouteOfANodeThatCanBeAsked(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		p.one.speaker.Compete(route(p.vm, "10.10.0.22"))
		moment()
		assert.Equal(t, []string{"node1 tells node2 claimed sea_gold"}, p.talk.Take())
		time.Sleep(time.Hour)
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
		require.Len(t, p.one.problems(), 1, "it takes the packets")
		assert.Contains(t, p.one.problems()[0], "a route for 203.0.113.10 via node2 comes before this node's at rr1, and the agent there says that the guest does not run there")
		assert.Empty(t, p.one.journal.Take())
		r := route(p.vm, "10.10.0.22")
		r.Gone = true
		p.one.speaker.Compete(r)
		moment()
		assert.Empty(t, p.one.problems())
	})
}

// scripted is the agent of node2, which says what a test has it say.
type scripted struct {
	t    *testing.T
	end  *fake.Nodes
	stop func()

	mu     sync.Mutex
	answer func(fabric.Notice) fabric.Answer
}

func (s *scripted) says(answer func(fabric.Notice) fabric.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *scripted) serve() {
	s.stop = serves(s.t, s.end, func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.answer(n)
	})
}

func nothing(fabric.Notice) fabric.Answer { return fabric.Answer{} }

// later answers that the guest runs here, and began to later.
func later(n fabric.Notice) fabric.Answer {
	return fabric.Answer{Held: true, Epoch: n.Epoch + 1, VM: n.VM, Identity: n.Identity, Acquired: n.Acquired}
}

// older answers that another guest has had the address longer.
func older(n fabric.Notice) fabric.Answer {
	return fabric.Answer{Held: true, Epoch: 1, VM: "clone", Identity: clone().Identity(), Acquired: n.Acquired.Add(-time.Hour)}
}

// before answers as agents did that knew no identities.
func before(n fabric.Notice) fabric.Answer {
	return fabric.Answer{Held: true, Epoch: n.Epoch + 1}
}

// A guest that is preempted, and the route of the node that has it, there and gone.
var (
	preempted  = gold()
	routeThere = route(preempted, "10.10.0.22")
	routeGone  = withdrawal(routeThere)
)

func withdrawal(r fabric.Competitor) fabric.Competitor {
	r.Gone = true
	return r
}

// preemption is a node whose guest another one takes.
type preemption struct {
	*node
	*scripted
	src *fake.Source
}

// newPreemption has the other node answer already: its end is to be stopped.
func newPreemption(t *testing.T) *preemption {
	t.Helper()
	c := cluster()
	ends := fake.NewNodes(nil, c.Nodes[:2]...)
	s := &preemption{scripted: &scripted{t: t, end: ends["node2"], answer: nothing}, src: fake.NewSource("libvirt")}
	s.serve()
	s.node = fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(s.src))
	return s
}

// isLive starts the guest, and waits until it is announced as usual.
func (s *preemption) isLive() {
	t := s.scripted.t
	t.Helper()
	s.apply(preempted, fabric.Wired)
	require.NoError(t, s.Started(t.Context(), preempted))
	s.src.Set(preempted, fabric.Live)
	time.Sleep(5 * time.Second)
	require.Equal(t, "normal", s.announced())
}

// claims has the other node say something of a guest, and whether this one holds it.
func (s *preemption) claims(kind fabric.NoticeKind, by fabric.VM, mine bool) {
	t := s.scripted.t
	t.Helper()
	n := fabric.Notice{Kind: kind, VM: by.Name, Prefixes: by.Prefixes(), Epoch: uint64(time.Now().UnixMilli()), Identity: by.Identity(), Acquired: time.Now().Add(-time.Hour)}
	answer, err := s.end.Ask(t.Context(), "node1", n)
	require.NoError(t, err)
	require.Equal(t, mine, answer.Held)
}

// announced is how the guest is announced.
func (s *preemption) announced() string {
	t := s.scripted.t
	t.Helper()
	routes, err := s.speaker.Actual(t.Context())
	require.NoError(t, err)
	if len(routes) == 0 {
		return "withdrawn"
	}
	return routes[0].Preference.String()
}

// waysIn are the ways into being preempted.
var waysIn = map[string]struct {
	in    func(*preemption)
	named string // what status says of it
}{
	"claimed":                   {func(s *preemption) { s.says(later); s.claims(fabric.Claimed, preempted, false) }, "node2 has it"},
	"claimed for another guest": {func(s *preemption) { s.says(older); s.claims(fabric.Claimed, clone(), false) }, "guest clone on node2"},
	"claim answered": {func(s *preemption) {
		s.says(later)
		require.NoError(s.scripted.t, s.Withdraw(s.scripted.t.Context(), preempted.Name))
		s.apply(preempted, fabric.Live)
	}, "node2 has it"},
	"claim answered for another guest": {func(s *preemption) {
		s.says(func(n fabric.Notice) fabric.Answer {
			if n.Kind == fabric.Acquiring {
				return fabric.Answer{}
			}
			return older(n)
		})
		require.NoError(s.scripted.t, s.Withdraw(s.scripted.t.Context(), preempted.Name))
		s.apply(preempted, fabric.Live)
	}, "guest clone on node2"},
	"claim answered by an agent of before": {func(s *preemption) {
		s.says(before)
		require.NoError(s.scripted.t, s.Withdraw(s.scripted.t.Context(), preempted.Name))
		s.apply(preempted, fabric.Live)
	}, "node2 has it"},
	"seen running, with another guest's address": {func(s *preemption) {
		s.says(older)
		s.src.Set(preempted, fabric.Absent)
		moment()
		s.src.Set(preempted, fabric.Live)
	}, "guest clone on node2"},
	"arrived, with another guest's address": {func(s *preemption) {
		s.says(older)
		s.src.Set(preempted, fabric.Absent)
		moment()
		require.NoError(s.scripted.t, s.Expect(s.scripted.t.Context(), preempted.Name))
		s.apply(preempted, fabric.Wired)
		s.src.Set(preempted, fabric.Wired)
		require.NoError(s.scripted.t, s.Started(s.scripted.t.Context(), preempted))
		moment()
		s.src.Set(preempted, fabric.Live)
	}, "guest clone on node2"},
	"a route, and the node answers": {func(s *preemption) { s.says(later); s.speaker.Compete(routeThere) }, "node2 has it"},
	"a route, and the node is silent": {func(s *preemption) {
		s.stop()
		s.speaker.Compete(routeThere)
		moment()
		time.Sleep(3 * time.Second)
		s.says(later)
		s.serve()
		time.Sleep(3 * time.Second)
	}, "node2 has it"},
}

// waysOut are the ways back, and how the guest is announced then.
var waysOut = map[string]struct {
	out  func(*preemption)
	want string
}{
	"the node says that it has not": {func(s *preemption) {
		s.says(nothing)
		time.Sleep(2 * time.Second)
		s.speaker.Compete(routeGone)
	}, "normal"},
	"the node lets go": {func(s *preemption) {
		s.says(nothing)
		s.claims(fabric.Released, preempted, false)
	}, "fresh"}, // at once
	"another guest there lets go": {func(s *preemption) {
		s.says(nothing)
		s.claims(fabric.Released, clone(), false)
	}, "fresh"},
	"the node is silent": {func(s *preemption) {
		s.speaker.Compete(routeGone)
		s.stop()
		time.Sleep(20 * time.Second)
	}, "standby"},
	"the node is silent, and its route goes": {func(s *preemption) {
		s.speaker.Compete(routeThere)
		s.stop()
		time.Sleep(20 * time.Second)
		assert.Equal(s.scripted.t, "withdrawn", s.announced(), "it has a better route")
		s.speaker.Compete(routeGone)
	}, "standby"},
	"the node is silent, and comes back without it": {func(s *preemption) {
		s.speaker.Compete(routeGone)
		s.stop()
		time.Sleep(20 * time.Second)
		s.says(nothing)
		s.serve()
		time.Sleep(5 * time.Second)
	}, "normal"},
	"the node is silent, and comes back with it, and then has it no more": {func(s *preemption) {
		s.speaker.Compete(routeGone)
		s.stop()
		time.Sleep(20 * time.Second)
		s.serve()
		time.Sleep(5 * time.Second)
		assert.Equal(s.scripted.t, "withdrawn", s.announced())
		s.says(nothing)
		time.Sleep(5 * time.Second)
	}, "normal"},
	"started here anew": {func(s *preemption) {
		s.says(nothing)
		require.NoError(s.scripted.t, s.Withdraw(s.scripted.t.Context(), preempted.Name))
		require.NoError(s.scripted.t, s.Apply(s.scripted.t.Context(), preempted, fabric.Absent))
		s.apply(preempted, fabric.Wired)
		require.NoError(s.scripted.t, s.Started(s.scripted.t.Context(), preempted))
	}, "fresh"},
	"started here anew, while the node is silent": {func(s *preemption) {
		s.stop()
		require.NoError(s.scripted.t, s.Withdraw(s.scripted.t.Context(), preempted.Name))
		require.NoError(s.scripted.t, s.Apply(s.scripted.t.Context(), preempted, fabric.Absent))
		s.apply(preempted, fabric.Wired)
		require.NoError(s.scripted.t, s.Started(s.scripted.t.Context(), preempted))
	}, "fresh"},
	"asked for by hand": {func(s *preemption) { s.says(nothing); s.apply(preempted, fabric.Live) }, "fresh"},
}

// TestEveryWayBack walks every way into being preempted, and from each every way
// out of it again.
func TestEveryWayBack(t *testing.T) {
	for in, way := range waysIn {
		for out, back := range waysOut {
			t.Run(in+"/"+out, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newPreemption(t)
					defer func() { s.stop() }()
					s.run(func() {
						s.isLive()
						way.in(s)
						moment()
						require.Equal(t, "withdrawn", s.announced())
						require.Len(t, s.problems(), 1)
						assert.Contains(t, s.problems()[0], way.named)
						if way.named == "node2 has it" && in == "a route, and the node answers" {
							s.speaker.Compete(routeGone)
							moment()
							assert.Equal(t, "withdrawn", s.announced(), "the node says that it has it")
						}
						back.out(s)
						moment()
						assert.Equal(t, back.want, s.announced())
						if back.want == "standby" {
							assert.Contains(t, strings.Join(s.problems(), ""), "does not answer now")
						} else {
							assert.Empty(t, s.problems())
						}
					})
				})
			})
		}
	}
}

// TestPreemptedOverARestart: an agent that is started anew knows who has the
// guest, and finds the way back; from what is no node, at once.
func TestPreemptedOverARestart(t *testing.T) {
	for name, tc := range map[string]struct {
		lost string
		wait time.Duration
		want fabric.Preference
	}{
		"a node":                      {"node2", 20 * time.Second, fabric.Standby},
		"a node of earlier":           {"node9", 20 * time.Second, fabric.Standby},
		"an address that no node has": {"10.10.0.99", 0, fabric.Fresh},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, vm := new(fake.Journal), gold()
				ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
				src := fake.NewSource("libvirt")
				src.SetQuietly(vm, fabric.Live)
				n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
					VM: vm, State: fabric.Live, Epoch: 7, Since: time.Now(), Lost: tc.lost,
				})}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
				n.run(func() {
					time.Sleep(tc.wait)
					moment()
					routes, err := n.speaker.Actual(t.Context())
					require.NoError(t, err)
					require.NotEmpty(t, routes)
					assert.Equal(t, tc.want, routes[0].Preference)
				})
				if tc.want != fabric.Standby {
					return
				}
				n = n.again(agent.WithNodes(ends["node1"]), agent.WithSources(src))
				routes, err := n.speaker.Actual(t.Context())
				require.NoError(t, err)
				require.NotEmpty(t, routes, "as it was")
				assert.Equal(t, tc.want, routes[0].Preference)
			})
		})
	}
}

// TestLetGoAfterARestart: an agent that took up from its disk that another node has
// a guest announces it as soon as that one says that it has it no more.
func TestLetGoAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, vm := new(fake.Journal), gold()
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		var gone atomic.Bool
		defer serves(t, ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
			if gone.Load() {
				return fabric.Answer{}
			}
			return later(n)
		})()
		src := fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
			VM: vm, State: fabric.Live, Epoch: 7, Since: time.Now(), Lost: "node2",
		})}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.dataplane.SetCarrier("sea_gold_net0", true)
		n.run(func() {
			for said, want := range []map[fabric.Preference]int{{}, {fabric.Normal: 2}} {
				gone.Store(said > 0)
				time.Sleep(5 * time.Second)
				assert.Equal(t, want, n.preferences())
			}
		})
	})
}

// TestUnfinishedStartOverARestart: a guest that was about to be started here, and of
// which nothing was announced yet, is not given up to the node where it runs yet.
func TestUnfinishedStartOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, vm := new(fake.Journal), from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"))
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		defer serves(t, ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer { return later(n) })()
		src := fake.NewMovesByRestart("lxd")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
			VM: vm, State: fabric.Live, Since: time.Now(),
		})}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.run(func() {
			time.Sleep(5 * time.Second)
			assert.Empty(t, n.problems())
		})
	})
}

// TestStandbyOutlastsAWordOfAnother: what a silent node says of another guest does not
// have this one withdrawn.
func TestStandbyOutlastsAWordOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, vm := new(fake.Journal), gold()
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		src := fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
			VM: vm, State: fabric.Live, Epoch: 7, Since: time.Now(), Lost: "node2",
		})}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.dataplane.SetCarrier("sea_gold_net0", true)
		n.run(func() {
			time.Sleep(20 * time.Second)
			standby := map[fabric.Preference]int{fabric.Standby: 2}
			require.Equal(t, standby, n.preferences())
			_, err := ends["node2"].Ask(t.Context(), "node1", fabric.Notice{
				Kind: fabric.Claimed, VM: "other", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.99/32")}, Epoch: 8,
			})
			require.NoError(t, err)
			for range 10 {
				time.Sleep(time.Second)
				assert.Equal(t, standby, n.preferences())
			}
		})
	})
}

// TestLostToAThirdNode: a node that takes over a guest which another one had is asked
// whether it has it, and falls silent like any other.
func TestLostToAThirdNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, talk, vm := new(fake.Journal), new(fake.Journal), gold()
		ends := fake.NewNodes(talk, cluster().Nodes[:2]...)
		third := ends["node1"].Join(fabric.Node{Name: "node3", Address: netip.MustParseAddr("10.10.0.99")})
		defer serves(t, third, func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer { return later(n) })()
		src := fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
			VM: vm, State: fabric.Live, Epoch: 7, Since: time.Now(), Lost: "node2",
		})}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.run(func() {
			tell := func(n fabric.Notice) {
				_, err := third.Ask(t.Context(), "node1", n)
				require.NoError(t, err)
				time.Sleep(3 * time.Second)
			}
			tell(fabric.Notice{Kind: fabric.Released, VM: "other", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.99/32")}})
			talk.Take()
			tell(fabric.Notice{Kind: fabric.Claimed, VM: vm.Name, Identity: vm.Identity(), Prefixes: vm.Prefixes(), Epoch: 9})
			assert.Contains(t, talk.Take(), "node1 tells node3 claimed sea_gold")
		})
	})
}

// TestStateThatIsBehind: what an agent could not write before it ended, that another
// node has the guest, the one after it asks for.
func TestStateThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, vm := new(fake.Journal), gold()
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		defer serves(t, ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer { return later(n) })()
		src := fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j, fabric.Desired{
			VM: vm, State: fabric.Live, Epoch: 7, Since: time.Now(),
		})}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		n.dataplane.SetCarrier("sea_gold_net0", true)
		n.run(func() {
			moment()
			assert.Empty(t, n.preferences())
			require.Len(t, n.problems(), 1)
			assert.Contains(t, n.problems()[0], "node2 has it, and began to run it later")
		})
	})
}

// TestStartThatIsRefusedAsksNobody: no other node delays the refusal, and none gives
// another reason for it.
func TestStartThatIsRefusedAsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		defer serves(t, ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
			if n.Kind == fabric.Acquiring {
				asked.Add(1)
			}
			return fabric.Answer{}
		})()
		n := fresh(t, agent.WithNodes(ends["node1"]))
		n.apply(guest("web", "203.0.113.20 2001:db8:100:1::20"), fabric.Live)
		assert.EqualValues(t, 1, asked.Load())
		for address, reason := range map[string]string{
			"203.0.113.20":       `203.0.113.20: held by VM "web" on this node`,
			"2001:db8:100:1::20": `2001:db8:100:1::20: held by VM "web" on this node`,
			"192.0.2.1":          "outside the pools",
			"2001:db8:999::1":    "outside the pools",
		} {
			err := n.Apply(t.Context(), guest("other", address), fabric.Live)
			require.ErrorIs(t, err, fabric.ErrRefused, address)
			assert.ErrorContains(t, err, reason)
		}
		assert.EqualValues(t, 1, asked.Load())
	})
}

// TestGuestThatEndsWhileOthersAreAsked does not come back by what was true before.
func TestGuestThatEndsWhileOthersAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, vm := new(fake.Journal), gold()
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		defer serves(t, ends["node2"], func(context.Context, fabric.Node, fabric.Notice) fabric.Answer {
			time.Sleep(200 * time.Millisecond)
			return fabric.Answer{}
		})()
		src := fake.NewSource("libvirt")
		src.SetQuietly(vm, fabric.Live)
		n := (&node{t: t, journal: j, dataplane: fake.NewDataplane(j), speaker: fake.NewSpeaker(j), store: fake.NewStore(j)}).start(agent.WithNodes(ends["node1"]), agent.WithSources(src))
		defer n.begin()()
		time.Sleep(100 * time.Millisecond)
		src.Set(vm, fabric.Absent)
		time.Sleep(time.Second)
		assert.Empty(t, n.states())
		assert.Empty(t, n.preferences())
	})
}

// TestEpochsOfTheFarFuture are refused in every notice and answer, and reported.
func TestEpochsOfTheFarFuture(t *testing.T) {
	vm := gold()
	for epoch, why := range map[uint64]string{
		math.MaxUint64:     "which no clock and no registry gives",
		math.MaxUint64 - 1: "which no clock and no registry gives",
		uint64(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()): "set the clocks of both",
	} {
		synctest.Test(t, func(t *testing.T) {
			ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
			src := fake.NewSource("libvirt")
			n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(src))
			stop := serves(t, ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
				return fabric.Answer{Held: true, Epoch: epoch, VM: n.VM, Identity: n.Identity}
			})
			defer func() { stop() }()
			said := func() {
				t.Helper()
				require.Len(t, n.problems(), 1)
				assert.Contains(t, n.problems()[0], "node node2 says that guest sea_gold has epoch ")
				assert.Contains(t, n.problems()[0], why)
			}
			live := func() {
				t.Helper()
				routes, err := n.speaker.Actual(t.Context())
				require.NoError(t, err)
				require.NotEmpty(t, routes)
				kept, err := n.store.All(t.Context())
				require.NoError(t, err)
				assert.InDelta(t, time.Now().UnixMilli(), kept[0].Epoch, 3600e3)
			}
			n.run(func() {
				n.apply(vm, fabric.Wired)
				require.NoError(t, n.Started(t.Context(), vm))
				src.Set(vm, fabric.Live)
				moment()
				said()
				live()
				stop()
				time.Sleep(10 * time.Minute)
				assert.Empty(t, n.problems())
				for _, kind := range []fabric.NoticeKind{fabric.Claimed, fabric.Arriving, fabric.Arrived, fabric.Cancelled, fabric.Released} {
					_, err := ends["node2"].Ask(t.Context(), "node1", fabric.Notice{Kind: kind, VM: vm.Name, Prefixes: vm.Prefixes(), Epoch: epoch, Identity: vm.Identity()})
					require.NoError(t, err)
					said()
				}
				moment()
				live()
				require.NoError(t, n.Withdraw(t.Context(), vm.Name))
				n.apply(vm, fabric.Live)
				moment()
				live()
			})
			// What an agent of before has taken up ends with it.
			d := fabric.Desired{VM: vm, State: fabric.Live, Epoch: epoch, Since: time.Now()}
			require.NoError(t, n.store.Put(t.Context(), d))
			n = n.again(agent.WithNodes(ends["node1"]), agent.WithSources(src))
			n.run(live)
		})
	}
}

// TestEndedGuestIsNotClaimed: after its release, a guest that ends is claimed of
// nobody, whatever holds up its end.
func TestEndedGuestIsNotClaimed(t *testing.T) {
	for _, last := range []string{"withdraw 203.0.113.10/32", "unwire sea_gold_net0", "forget sea_gold"} {
		synctest.Test(t, func(t *testing.T) {
			talk, vm := new(fake.Journal), gold()
			ends := fake.NewNodes(talk, cluster().Nodes[:2]...)
			src := fake.NewSource("libvirt")
			n := fresh(t, agent.WithNodes(ends["node1"]), agent.WithSources(src))
			held := true
			stop := serves(t, ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
				return fabric.Answer{Held: held && n.Kind == fabric.Claimed, Epoch: 1, VM: vm.Name, Identity: vm.Identity()}
			})
			defer stop()
			n.run(func() {
				n.apply(vm, fabric.Wired)
				require.NoError(t, n.Started(t.Context(), vm))
				src.Set(vm, fabric.Live)
				moment()
				_, err := ends["node2"].Ask(t.Context(), "node1", fabric.Notice{Kind: fabric.Claimed, VM: vm.Name, Prefixes: vm.Prefixes(), Epoch: 1, Identity: vm.Identity()})
				require.NoError(t, err)
				talk.Take()
				release := n.dataplane.Hang(last)
				if strings.HasPrefix(last, "withdraw") {
					release = n.speaker.Hang(last)
				} else if strings.HasPrefix(last, "forget") {
					release = n.store.Hang(last)
				}
				done := make(chan error, 1)
				go func() { done <- n.Apply(t.Context(), vm, fabric.Absent) }()
				moment()
				time.Sleep(10 * time.Second)
				release()
				require.NoError(t, <-done)
				moment()
				assert.Equal(t, []string{"node1 tells node2 released sea_gold"}, talk.Take(), last)
			})
		})
	}
}

// TestGuestThatMovesKeepsItsAge: how long a guest has its addresses is known at
// the node where it is, wherever it has been.
func TestGuestThatMovesKeepsItsAge(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		acquired := func(n *node) time.Time {
			kept, err := n.store.All(t.Context())
			require.NoError(t, err)
			require.Len(t, kept, 1)
			return kept[0].Acquired
		}
		since := acquired(p.one)
		time.Sleep(time.Hour)
		p.arrives(p.two)
		p.src[p.one].Leave(p.vm)
		moment()
		p.src[p.two].Set(p.vm, fabric.Live)
		p.leaves(p.one)
		p.lets(p.two)
		assert.True(t, since.Equal(acquired(p.two)), "%v, not %v", acquired(p.two), since)

		time.Sleep(time.Hour)
		p.runs(p.one, p.vm) // as LXD moves: it is started there before it ends here
		time.Sleep(5 * time.Second)
		assert.True(t, since.Equal(acquired(p.one)), "%v, not %v", acquired(p.one), since)

		p.over(p.one, p.vm)
		p.over(p.two, p.vm)
		p.runs(p.one, p.vm)
		time.Sleep(5 * time.Second)
		assert.True(t, acquired(p.one).After(since), "it ended in between")
	})
}

// TestNamesakeIsNotOnItsWay: a guest of the same name that arrives elsewhere is
// not this one.
func TestNamesakeIsNotOnItsWay(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		other := known("sea_gold", "uuid-of-clone", "203.0.113.10 2001:db8:100:1::10")
		for _, kind := range []fabric.NoticeKind{fabric.Arriving, fabric.Arrived, fabric.Cancelled, fabric.Released} {
			answer, err := p.ends[p.two].Ask(t.Context(), "node1", fabric.Notice{
				Kind: kind, VM: "sea_gold", Prefixes: p.vm.Prefixes(), Epoch: uint64(time.Now().Add(time.Hour).UnixMilli()), Identity: other.Identity(), Acquired: time.Now(),
			})
			require.NoError(t, err)
			assert.Zero(t, answer)
		}
		moment()
		assert.Empty(t, p.one.journal.Take(), "nothing is recorded, or sent on")
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
	})
}

// TestGuestsByHandMeet: those of one name are their user's matter, those of two
// names are two guests.
func TestGuestsByHandMeet(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		p.over(p.one, p.vm)
		here, other := guest("web", "203.0.113.10 2001:db8:100:1::10"), guest("other", "203.0.113.10")
		p.one.apply(here, fabric.Live)
		p.two.apply(here, fabric.Live)
		time.Sleep(5 * time.Second)
		p.forget()
		time.Sleep(time.Minute)
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.one))
		assert.Equal(t, map[string]string{"203.0.113.10/32": "normal"}, p.first(p.two))
		assert.Empty(t, p.talk.Take(), "it is settled")
		p.two.apply(here, fabric.Absent)
		require.ErrorContains(t, p.two.Apply(t.Context(), other, fabric.Live), "203.0.113.10 is held by guest web (attached web) on node1; stop that one, or give other another address")

		p.ends[p.one].Cut("node2", true)
		p.two.apply(other, fabric.Live)
		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		assert.NotEmpty(t, p.first(p.one))
		assert.Empty(t, p.first(p.two))
		for _, n := range []*node{p.one, p.two} {
			require.Len(t, n.problems(), 1)
			for _, word := range []string{"web", "other", "node1", "node2"} {
				assert.Contains(t, n.problems()[0], word)
			}
		}
		p.one.apply(here, fabric.Absent)
		moment()
		assert.NotEmpty(t, p.first(p.two))
	})
}

// TestBackendThatFailsWhileAGuestGivesWay: it is withdrawn as soon as that can be.
func TestBackendThatFailsWhileAGuestGivesWay(t *testing.T) {
	golds(t, func(t *testing.T, p *pair) {
		p.ends[p.one].Cut("node2", true)
		p.runs(p.two, clone())
		time.Sleep(time.Minute)
		p.two.speaker.Fail("withdraw 203.0.113.10/32", errors.New("boom"))
		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		assert.NotEmpty(t, p.first(p.two))
		p.two.speaker.Fail("withdraw 203.0.113.10/32", nil)
		time.Sleep(5 * time.Second)
		assert.Empty(t, p.first(p.two))
	})
}

// TestGuestThatGetsAnAddressLater has had another one for longer than the guest
// that has this one: it is the newcomer all the same.
func TestGuestThatGetsAnAddressLater(t *testing.T) {
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) {
		p.runs(p.two, known("clone", "uuid-of-clone", "203.0.113.12 2001:db8:100:1::12"))
		time.Sleep(time.Hour)
		p.boots(p.one)
		time.Sleep(time.Hour)
		more := known("clone", "uuid-of-clone", "203.0.113.12 2001:db8:100:1::12 2001:db8:100:1::10")
		require.ErrorContains(t, p.two.Apply(t.Context(), more, fabric.Live), "2001:db8:100:1::10 is held by guest sea_gold")
		assert.Empty(t, p.two.problems())

		p.ends[p.one].Cut("node2", true)
		p.two.apply(more, fabric.Live)
		p.ends[p.one].Cut("node2", false)
		time.Sleep(5 * time.Second)
		assert.NotEmpty(t, p.first(p.one))
		_, announced := p.two.actual()
		assert.Empty(t, announced)
		p.names(p.one)
		p.names(p.two)

		p.two.apply(known("clone", "uuid-of-clone", "203.0.113.12 2001:db8:100:1::12"), fabric.Live)
		time.Sleep(5 * time.Second)
		_, announced = p.two.actual()
		assert.ElementsMatch(t, []string{"203.0.113.12/32", "2001:db8:100:1::12/128"}, announced)
		assert.Empty(t, p.two.problems())
		time.Sleep(time.Minute)
		assert.Empty(t, p.one.problems())
	})
}
