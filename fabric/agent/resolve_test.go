package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// inventory is a resolver that knows what a test says.
type inventory struct {
	mu     sync.Mutex
	knows  map[string][]fabric.NIC
	err    error
	stuck  map[string]chan struct{} // it does not answer before that is closed
	asked  []fabric.Query
	deaf   bool // it does not mind its context
	active int
	most   int // questions at a time
}

// knowing gives an inventory of these guests.
func knowing(guests ...fabric.VM) *inventory {
	i := &inventory{knows: map[string][]fabric.NIC{}, stuck: map[string]chan struct{}{}}
	for _, vm := range guests {
		i.knows[vm.Name] = vm.NICs
	}
	return i
}

func (i *inventory) Resolve(ctx context.Context, q fabric.Query) ([]fabric.NIC, error) {
	i.mu.Lock()
	i.asked = append(i.asked, q)
	i.active++
	i.most = max(i.most, i.active)
	stuck, deaf := i.stuck[q.VM], i.deaf
	i.mu.Unlock()
	if stuck != nil {
		done := ctx.Done()
		if deaf {
			done = nil
		}
		select {
		case <-stuck:
		case <-done:
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.active--
	if i.err != nil || ctx.Err() != nil {
		return nil, errors.Join(i.err, ctx.Err())
	}
	nics, known := i.knows[q.VM]
	if !known {
		return nil, fmt.Errorf("no guest of that name")
	}
	return nics, nil
}

func (i *inventory) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// questions gives the names that were asked about since the last call.
func (i *inventory) questions() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var names []string
	for _, q := range i.asked {
		names = append(names, q.VM)
	}
	i.asked = nil
	return names
}

// unresolved gives a guest as a hypervisor describes it that does not know its
// addresses.
func unresolved(vm fabric.VM) fabric.VM {
	vm = from("libvirt", vm)
	vm.UUID, vm.Resolve = "aaaaaaaa-0000-4000-8000-00000000000a", true
	for n := range vm.NICs {
		vm.NICs[n].Addresses, vm.NICs[n].Routes = nil, nil
		vm.NICs[n].MAC = fabric.MAC{0x52, 0x54, 0, 0, 0, byte(0x0a + n)}
	}
	return vm
}

func resolvedWeb() fabric.VM {
	vm := unresolved(web())
	for n, nic := range web().NICs {
		vm.NICs[n].Addresses, vm.NICs[n].Routes = nic.Addresses, nic.Routes
	}
	return vm
}

var _ fabric.Resolver = (*inventory)(nil)

func TestResolvedGuest(t *testing.T) {
	inv := knowing(web())
	n := fresh(t, agent.WithResolver(inv))
	n.apply(unresolved(web()), fabric.Wired)
	n.did(join("store web wired", webWired)...)
	n.holds(want{resolvedWeb(), fabric.Wired})
	assert.Equal(t, []fabric.Query{{VM: "web", UUID: "aaaaaaaa-0000-4000-8000-00000000000a", MACs: []fabric.MAC{{0x52, 0x54, 0, 0, 0, 0x0a}, {0x52, 0x54, 0, 0, 0, 0x0b}}}}, inv.asked)

	kept, err := n.store.All(t.Context())
	require.NoError(t, err)
	assert.Equal(t, resolvedWeb(), kept[0].VM, "the answer is kept, and that it is one")
	require.NoError(t, n.Started(t.Context(), unresolved(web())))
	n.holds(want{resolvedWeb(), fabric.Live})
	assert.Len(t, inv.questions(), 1)

	// What only counts is what a NIC has, not what the answer says of the rest.
	inv.knows["db"] = []fabric.NIC{{Addresses: db().NICs[0].Addresses, Kind: fabric.Adopt, MTU: 9000, Queues: 7, MAC: fabric.MAC{1}}}
	n.apply(unresolved(db()), fabric.Wired)
	entries, err := n.List(t.Context())
	require.NoError(t, err)
	assert.Equal(t, fabric.Tap, entries[0].Kind)
}

func TestResolverIsNotAskedOfAGuestThatSaysWhatItHas(t *testing.T) {
	inv := knowing()
	n := fresh(t, agent.WithResolver(inv))
	n.apply(web(), fabric.Live)
	whole := resolvedWeb()
	n.apply(whole, fabric.Live)
	assert.Empty(t, inv.questions())
}

func TestResolveRefusals(t *testing.T) {
	empty := fabric.NIC{}
	four, six := guest("", "203.0.113.10").NICs[0], guest("", "2001:db8:100:1::11").NICs[0]
	for _, tt := range []struct {
		name    string
		prepare func(i *inventory)
		why     string
	}{
		{"said no", func(i *inventory) { delete(i.knows, "web") }, "no addresses from the resolver: no guest of that name"},
		{"lines", func(i *inventory) { i.err = errors.New("a\r\nb\n") }, "no addresses from the resolver: a; b"},
		{"endless", func(i *inventory) { i.err = errors.New(strings.Repeat("ä", 5000)) }, "no addresses from the resolver: " + strings.Repeat("ä", 250) + ""},
		{"no NIC", func(i *inventory) { i.knows["web"] = nil }, "the resolver answered wrong: 0 NICs, but the guest has 2 NICs of the fabric; correct its inventory, or the guest's interfaces"},
		{"a NIC too few", func(i *inventory) { i.knows["web"] = []fabric.NIC{four} }, "the resolver answered wrong: 1 NIC, but the guest has 2 NICs of the fabric; correct its inventory, or the guest's interfaces"},
		{"a NIC too many", func(i *inventory) { i.knows["web"] = []fabric.NIC{four, six, six} }, "the resolver answered wrong: 3 NICs, but the guest has 2 NICs of the fabric; correct its inventory, or the guest's interfaces"},
		{"no addresses", func(i *inventory) { i.knows["web"] = []fabric.NIC{empty, empty} }, "the resolver answered wrong: NIC 0: no address; give it at least one from the pools"},
		{"none for one", func(i *inventory) { i.knows["web"] = []fabric.NIC{four, empty} }, "the resolver answered wrong: NIC 1: no address; give it at least one from the pools"},
		{"an address twice", func(i *inventory) { i.knows["web"] = []fabric.NIC{four, four} }, "the resolver answered wrong: NIC 1: 203.0.113.10 is given twice (also to NIC 0); remove one"},
		{"a zero address", func(i *inventory) { i.knows["web"] = []fabric.NIC{four, {Addresses: make([]netip.Addr, 1)}} }, "the resolver answered wrong: NIC 1: an address or a route is empty; write 203.0.113.10 or 198.51.100.0/29"},
		{"IPv4 in IPv6", func(i *inventory) { i.knows["web"] = guest("", "203.0.113.10", "::ffff:203.0.113.11").NICs }, "the resolver answered wrong: NIC 1: address ::ffff:203.0.113.11: zones and IPv4-mapped addresses are not for guests; write the plain address"},
		{"IPv4 outside the pools", func(i *inventory) { i.knows["web"] = guest("", "192.0.2.1", "2001:db8:100:1::11").NICs }, "the resolver answered wrong: NIC 0: address 192.0.2.1: outside the pools of cluster msk1; choose one from public4 (203.0.113.0/24), or add a pool"},
		{"IPv6 outside the pools", func(i *inventory) { i.knows["web"] = guest("", "203.0.113.10", "2001:db8:999::1").NICs }, "the resolver answered wrong: NIC 1: address 2001:db8:999::1: outside the pools of cluster msk1; choose one from public6 (2001:db8:100::/48), or add a pool"},
		{"the gateway", func(i *inventory) { i.knows["web"] = guest("", "169.254.1.1", "2001:db8:100:1::11").NICs }, "the resolver answered wrong: NIC 0: address 169.254.1.1: it is the cluster's gateway; choose one from the pools"},
		{"another's", func(i *inventory) { i.knows["web"] = guest("", "203.0.113.10", "203.0.113.20").NICs }, `the resolver answered wrong: NIC 1: 203.0.113.20: held by VM "db" on this node; detach that first, or choose another`},
		{"a route of no family", func(i *inventory) { i.knows["web"] = guest("", "203.0.113.10 2001:db8:200::/64", "203.0.113.11").NICs }, "the resolver answered wrong: NIC 0: route 2001:db8:200::/64 has no address of its family to be routed through; add one to the NIC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inv := knowing(web())
			n := fresh(t, agent.WithResolver(inv))
			n.apply(db(), fabric.Live)
			tt.prepare(inv)
			n.journal.Take()
			for _, bring := range []func() error{
				func() error { return n.Apply(t.Context(), unresolved(web()), fabric.Wired) },
				func() error { return n.Apply(t.Context(), unresolved(web()), fabric.Live) },
				func() error { return n.Started(t.Context(), unresolved(web())) },
			} {
				err := bring()
				require.ErrorIs(t, err, fabric.ErrRefused)
				require.EqualError(t, err, "guest web refused: "+tt.why)
			}
			n.did()
			n.holds(want{db(), fabric.Live})
			assert.Empty(t, n.problems())
		})
	}
}

func TestNoResolver(t *testing.T) {
	n := fresh(t)
	err := n.Apply(t.Context(), unresolved(web()), fabric.Wired)
	require.ErrorIs(t, err, fabric.ErrRefused)
	require.EqualError(t, err, "guest web refused: it does not say what it has, and this node has no resolver")
	n.did()
}

func TestResolveWithoutQuestion(t *testing.T) {
	inv := knowing(web())
	n := fresh(t, agent.WithResolver(inv))
	bad := unresolved(web())
	bad.NICs = nil
	require.EqualError(t, n.Apply(t.Context(), bad, fabric.Wired), "guest web refused: no NIC to resolve addresses for; name each that is the fabric's")
	bad = unresolved(web())
	bad.NICs[0].Addresses = web().NICs[0].Addresses // one that knows half of it
	require.EqualError(t, n.Apply(t.Context(), bad, fabric.Wired), "guest web refused: NIC 1: no address; give it at least one from the pools")
	require.NoError(t, n.Drain(t.Context()))
	require.ErrorContains(t, n.Apply(t.Context(), unresolved(web()), fabric.Wired), "is draining")
	assert.Empty(t, inv.questions())
}

func TestSlowResolver(t *testing.T) {
	const why = "guest web refused: the resolver did not answer within 10s"
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("deaf %v", deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inv := knowing(web(), guest("shop", "203.0.113.30 2001:db8:100:1::30"))
				inv.deaf = deaf
				free := make(chan struct{})
				inv.stuck["web"] = free
				n := fresh(t, agent.WithResolver(inv))
				n.run(func() {
					began := time.Now()
					refused := make(chan error, 1)
					go func() { refused <- n.Apply(t.Context(), unresolved(web()), fabric.Wired) }()
					synctest.Wait()

					// Others go on meanwhile: those that are asked about, too.
					n.apply(db(), fabric.Live)
					n.apply(unresolved(guest("shop", "203.0.113.30 2001:db8:100:1::30")), fabric.Live)
					_, err := n.Status(t.Context())
					require.NoError(t, err)
					n.holds(want{db(), fabric.Live}, want{guest("shop", "203.0.113.30 2001:db8:100:1::30"), fabric.Live})
					assert.Zero(t, time.Since(began))

					require.EqualError(t, <-refused, why)
					assert.Equal(t, 10*time.Second, time.Since(began))
					close(free)
					moment()
					assert.NotContains(t, n.states(), "web_net0", "a late answer is none")
					inv.set(func() { delete(inv.stuck, "web") })
					n.apply(unresolved(web()), fabric.Wired)
				})
			})
		})
	}
}

// A resolver that comes back from nothing is asked no more than 64 questions.
func TestStuckResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv := knowing()
		inv.deaf = true
		free := make(chan struct{})
		n := fresh(t, agent.WithResolver(inv))
		var all sync.WaitGroup
		for i := range 100 {
			vm := unresolved(db())
			vm.Name = fmt.Sprintf("vm%d", i)
			inv.set(func() { inv.stuck[vm.Name] = free })
			all.Go(func() { assert.ErrorContains(t, n.Apply(t.Context(), vm, fabric.Wired), "did not answer within 10s") })
		}
		all.Wait()
		assert.Len(t, inv.questions(), 64)
		close(free)
		synctest.Wait()
		assert.Equal(t, 64, inv.most)
	})
}

func TestCallerThatGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv := knowing(web())
		inv.stuck["web"] = make(chan struct{})
		n := fresh(t, agent.WithResolver(inv))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		require.EqualError(t, n.Apply(ctx, unresolved(web()), fabric.Wired), "guest web refused: the resolver was not waited for (context canceled); start the guest again")
		n.did()
	})
}

// Nothing that is asked of a guest that is here depends on the resolver.
func TestKnownGuestIsNotAskedAbout(t *testing.T) {
	for _, what := range []string{"gone", "slow", "none", "wrong"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inv := knowing(web())
				src := fake.NewSource("libvirt")
				opts := []agent.Option{agent.WithResolver(inv), agent.WithSources(src)}
				n := fresh(t, opts...)
				n.apply(unresolved(web()), fabric.Wired)
				require.NoError(t, n.Started(t.Context(), unresolved(web())))
				src.SetQuietly(unresolved(web()), fabric.Live)
				inv.questions()
				switch what {
				case "gone":
					inv.err = errBoom
				case "slow":
					inv.stuck["web"] = make(chan struct{})
				case "none":
					opts = opts[1:]
				case "wrong":
					inv.knows["web"] = db().NICs
				}
				check := func(state fabric.State) {
					n.t.Helper()
					n.holds(want{resolvedWeb(), state})
					assert.Empty(t, n.problems())
					assert.Empty(t, inv.questions())
				}
				n = n.again(opts...)
				check(fabric.Live)
				n.run(func() {
					check(fabric.Live)
					n.apply(unresolved(web()), fabric.Wired) // prepare, and start
					check(fabric.Wired)
					require.NoError(t, n.Started(t.Context(), unresolved(web()))) // reconnect
					check(fabric.Live)
					src.Set(unresolved(web()), fabric.Live)
					moment()
					n.journal.Take()
					time.Sleep(time.Minute)
					n.dataplane.Fail("wire", errBoom) // what is as it is wanted is not touched
					src.Lose()
					time.Sleep(5*time.Minute + time.Second) // lists, but none at the moment of the next change
					assert.Empty(t, n.problems())
					n.dataplane.Fail("wire", nil)
					n.did(webAnnounced...) // not fresh any more
					check(fabric.Live)

					// The guest has other queues now, and still what it had.
					changed := unresolved(web())
					changed.NICs[0].Queues = 4
					src.Set(changed, fabric.Live)
					moment()
					check(fabric.Live)
					kept, err := n.store.All(t.Context())
					require.NoError(t, err)
					assert.Equal(t, 4, kept[0].VM.NICs[0].Queues)

					require.NoError(t, n.Withdraw(t.Context(), "web"))
					check(fabric.Wired)
					n.apply(fabric.VM{Name: "web"}, fabric.Absent)
					src.SetQuietly(unresolved(web()), fabric.Absent)
					n.holds()
				})
			})
		})
	}
}

// After a release the guest is forgotten, and what is known of it with it.
func TestResolvedAnewAfterRelease(t *testing.T) {
	inv := knowing(web())
	n := fresh(t, agent.WithResolver(inv))
	n.apply(unresolved(web()), fabric.Wired)
	n.apply(fabric.VM{Name: "web"}, fabric.Absent)
	other := guest("web", "203.0.113.40", "2001:db8:100:1::40")
	inv.knows["web"] = other.NICs
	n.apply(unresolved(web()), fabric.Live)
	n.holds(want{guest("web", "203.0.113.40", "2001:db8:100:1::40 veth"), fabric.Live})
	assert.Equal(t, []string{"web", "web"}, inv.questions())

	n.apply(fabric.VM{Name: "web"}, fabric.Absent)
	inv.err = errBoom
	require.ErrorIs(t, n.Apply(t.Context(), unresolved(web()), fabric.Wired), fabric.ErrRefused)
	n.holds()
}

// One whose release is not finished is released.
func TestResolvedAnewOverAnUnfinishedRelease(t *testing.T) {
	inv := knowing(web())
	n := fresh(t, agent.WithResolver(inv))
	n.apply(unresolved(web()), fabric.Wired)
	n.dataplane.Fail("unwire", errBoom)
	require.Error(t, n.Apply(t.Context(), fabric.VM{Name: "web"}, fabric.Absent))
	n.dataplane.Fail("unwire", nil)
	inv.knows["web"] = guest("", "203.0.113.40", "2001:db8:100:1::40").NICs
	n.apply(unresolved(web()), fabric.Wired)
	n.holds(want{guest("web", "203.0.113.40", "2001:db8:100:1::40"), fabric.Wired})
	assert.Len(t, inv.questions(), 2)
}

// Another guest of the same name, or the same with other NICs, is another question.
func TestChangedGuestIsAskedAbout(t *testing.T) {
	for name, change := range map[string]func(vm *fabric.VM){
		"another UUID": func(vm *fabric.VM) { vm.UUID = "bbbbbbbb-0000-4000-8000-00000000000b" },
		"a NIC less":   func(vm *fabric.VM) { vm.NICs = vm.NICs[:1] },
	} {
		t.Run(name, func(t *testing.T) {
			inv := knowing(web())
			n := fresh(t, agent.WithResolver(inv))
			n.apply(unresolved(web()), fabric.Live)
			vm := unresolved(web())
			change(&vm)
			inv.knows["web"] = guest("", "203.0.113.41 2001:db8:100:1::41", "203.0.113.42").NICs[:len(vm.NICs)]
			n.apply(vm, fabric.Live)
			assert.Equal(t, []string{"web", "web"}, inv.questions())

			inv.err = errBoom
			require.Error(t, n.Apply(t.Context(), unresolved(web()), fabric.Live))
			entries, err := n.List(t.Context())
			require.NoError(t, err)
			assert.Len(t, entries, len(vm.NICs), "it stays as it was")
		})
	}
	t.Run("that said what it has", func(t *testing.T) {
		inv := knowing(web())
		n := fresh(t, agent.WithResolver(inv))
		n.apply(guest("web", "203.0.113.40", "203.0.113.41"), fabric.Live)
		n.apply(unresolved(web()), fabric.Live)
		n.holds(want{resolvedWeb(), fabric.Live})
	})
}

func TestResolvedGuestIsUndone(t *testing.T) {
	inv := knowing(web())
	n := fresh(t, agent.WithResolver(inv))
	n.dataplane.Fail("wire web_net1", errBoom)
	require.ErrorIs(t, n.Apply(t.Context(), unresolved(web()), fabric.Wired), errBoom)
	n.dataplane.Fail("wire web_net1", nil)
	n.holds()
	inv.knows["web"] = guest("", "203.0.113.40", "2001:db8:100:1::40").NICs
	n.apply(unresolved(web()), fabric.Wired)
	assert.Len(t, inv.questions(), 2, "what was undone is not known")
}

func TestResolvedGuestArrivesByMigration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv, src := knowing(web()), fake.NewSource("libvirt")
		n := fresh(t, agent.WithResolver(inv), agent.WithSources(src))
		n.run(func() {
			require.NoError(t, n.Expect(t.Context(), "web"))
			n.apply(unresolved(web()), fabric.Wired)
			inv.set(func() { inv.err = errBoom })
			require.NoError(t, n.Started(t.Context(), unresolved(web())))
			n.holds(want{resolvedWeb(), fabric.Wired})
			src.Set(unresolved(web()), fabric.Live)
			moment()
			n.holds(want{resolvedWeb(), fabric.Live})
			assert.Len(t, inv.questions(), 1)
		})
	})
}

// Guests run, their state was lost, and the resolver is asked about them: what
// it does not tell is a problem, and takes nothing away.
func TestUnknownGuestThatRuns(t *testing.T) {
	const slow = "guest web runs, but the resolver did not answer within 10s"
	for _, tt := range []struct {
		name    string
		carrier bool
		spoil   func(*inventory)
		problem string
	}{
		{"no answer", true, func(i *inventory) { i.stuck["web"] = make(chan struct{}) }, slow},
		{"no answer, and its link is down", false, func(i *inventory) { i.stuck["web"] = make(chan struct{}) }, slow},
		{"no", true, func(i *inventory) { i.err = errBoom }, "guest web runs, but no addresses from the resolver: boom"},
		{"wrong", false, func(i *inventory) { i.knows["web"] = guest("", "203.0.113.20", "203.0.113.11").NICs }, `guest web runs, but the resolver answered wrong: NIC 0: 203.0.113.20: held by VM "db" on this node; detach that first, or choose another`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inv, src := knowing(web()), fake.NewSource("libvirt")
				opts := []agent.Option{agent.WithResolver(inv), agent.WithSources(src)}
				n := fresh(t, opts...)
				n.apply(db(), fabric.Live)
				n.apply(unresolved(web()), fabric.Live)
				src.SetQuietly(unresolved(web()), fabric.Live)
				n.dataplane.SetCarrier("web_net0", tt.carrier)
				n.dataplane.SetCarrier("web_net1", tt.carrier)
				n.store.Delete(t.Context(), "web")
				inv.questions()
				tt.spoil(inv)
				n = n.again(opts...)
				require.NoError(t, n.speaker.Put(t.Context(), fabric.Route{Prefix: prefix("203.0.113.10/32")}, fabric.Route{Prefix: prefix("2001:db8:100:1::10/128")}))
				n.journal.Take()
				n.run(func() {
					time.Sleep(15 * time.Second)
					assert.Contains(t, n.problems(), tt.problem)
					time.Sleep(5 * time.Minute)
					n.did()
					ports, routes := n.actual()
					if tt.carrier {
						assert.Len(t, ports, 3)
					}
					states, err := n.dataplane.Actual(t.Context())
					require.NoError(t, err)
					assert.Len(t, states, 3, "nothing is removed")
					assert.Subset(t, routes, []string{"203.0.113.10/32", "2001:db8:100:1::10/128"})
					assert.Contains(t, n.problems(), tt.problem)
					asked := len(inv.questions())
					assert.True(t, asked >= 5 && asked <= 7, "once for each list: %d", asked)

					inv.set(func() {
						inv.err = nil
						delete(inv.stuck, "web")
						inv.knows["web"] = web().NICs
					})
					n.dataplane.SetCarrier("web_net0", true)
					n.dataplane.SetCarrier("web_net1", true)
					time.Sleep(90 * time.Second)
					assert.Empty(t, n.problems())
					n.holds(want{db(), fabric.Live}, want{resolvedWeb(), fabric.Live})
					assert.Len(t, inv.questions(), 1)
				})
			})
		})
	}
}

// One that ends unresolved leaves no problem, and what is left of it goes.
func TestUnknownGuestThatEnds(t *testing.T) {
	for name, end := range map[string]func(n *node, src *fake.Source){
		"by its source": func(n *node, src *fake.Source) { src.Set(unresolved(web()), fabric.Absent) },
		"by its hook": func(n *node, src *fake.Source) {
			src.SetQuietly(unresolved(web()), fabric.Absent)
			n.apply(from("libvirt", fabric.VM{Name: "web"}), fabric.Absent)
		},
		"unseen": func(n *node, src *fake.Source) {
			src.SetQuietly(unresolved(web()), fabric.Absent)
			time.Sleep(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inv, src := knowing(web()), fake.NewSource("libvirt")
				opts := []agent.Option{agent.WithResolver(inv), agent.WithSources(src)}
				n := fresh(t, opts...)
				n.apply(unresolved(web()), fabric.Live)
				src.SetQuietly(unresolved(web()), fabric.Live)
				n.dataplane.SetCarrier("web_net0", false)
				n.dataplane.SetCarrier("web_net1", false)
				n.store.Delete(t.Context(), "web")
				inv.err = errBoom
				n = n.again(opts...)
				n.run(func() {
					assert.Len(t, n.problems(), 1)
					ports, err := n.dataplane.Actual(t.Context())
					require.NoError(t, err)
					assert.Len(t, ports, 2)
					end(n, src)
					time.Sleep(35 * time.Second) // a pass
					ports, err = n.dataplane.Actual(t.Context())
					require.NoError(t, err)
					assert.Empty(t, ports)
					time.Sleep(30 * time.Second) // a list
					assert.Empty(t, n.problems())
					n.holds()
				})
			})
		})
	}
}

// Many are asked about side by side, and nobody waits for them.
func TestManyUnknownGuests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv, src := knowing(), fake.NewSource("libvirt")
		for i := range 50 {
			vm := guest(fmt.Sprintf("vm%d", i), fmt.Sprintf("203.0.113.%d 2001:db8:100:1::%d", 100+i, 100+i))
			inv.knows[vm.Name] = vm.NICs
			if i%2 == 0 {
				inv.stuck[vm.Name] = make(chan struct{})
			}
			src.SetQuietly(unresolved(vm), fabric.Live)
		}
		n := fresh(t, agent.WithResolver(inv), agent.WithSources(src))
		n.run(func() {
			assert.Len(t, n.states(), 25)
			src.Set(db(), fabric.Live)
			moment()
			assert.Equal(t, fabric.Live, n.states()["db_net0"], "news of others is heard meanwhile")
			time.Sleep(10 * time.Second)
			assert.Len(t, n.problems(), 25)
		})
	})
}

// News of a guest that is not known, and that must be asked about, is no news
// of the others' expense.
func TestNewsOfAnUnknownGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv, src := knowing(web()), fake.NewSource("libvirt")
		n := fresh(t, agent.WithResolver(inv), agent.WithSources(src))
		n.run(func() {
			inv.set(func() { inv.stuck["web"] = make(chan struct{}) })
			src.Set(unresolved(web()), fabric.Live)
			src.Set(db(), fabric.Live)
			moment()
			n.holds(want{db(), fabric.Live})
			inv.set(func() { close(inv.stuck["web"]) })
			moment()
			n.holds(want{db(), fabric.Live}, want{resolvedWeb(), fabric.Live})
		})
	})
}

// A state file that says that nobody has answered is not taken for a guest
// without addresses.
func TestAdoptUnresolved(t *testing.T) {
	n := fresh(t)
	require.NoError(t, n.store.Put(t.Context(), fabric.Desired{VM: unresolved(web()), State: fabric.Live}))
	n = n.again()
	assert.Equal(t, []string{"guest web: NIC 0: no address; give it at least one from the pools; attach it anew"}, n.problems())
	assert.Empty(t, n.states())
}

func TestDescribeResolved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inv, src := knowing(web()), fake.NewSource("libvirt")
		n := fresh(t, agent.WithResolver(inv), agent.WithSources(src))
		src.Know("web", unresolved(web()))
		vm, gw, err := n.Describe(t.Context(), "web")
		require.NoError(t, err)
		assert.Equal(t, resolvedWeb(), vm)
		assert.True(t, gw.Gateway.IPv4.IsValid() && gw.Gateway.IPv6.IsValid())
		n.did()
		assert.Equal(t, []string{"web"}, inv.questions(), "it does not run: it is asked about")

		inv.err = errBoom
		_, _, err = n.Describe(t.Context(), "web")
		require.EqualError(t, err, "guest web: no addresses from the resolver: boom")
		inv.err = nil
		n.apply(unresolved(web()), fabric.Live)
		inv.questions()
		inv.err = errBoom
		vm, _, err = n.Describe(t.Context(), "web")
		require.NoError(t, err)
		assert.Equal(t, resolvedWeb(), vm)
		assert.Empty(t, inv.questions(), "it is known")

		changed := unresolved(web())
		changed.NICs = changed.NICs[:1]
		src.Know("web", changed)
		vm, _, err = n.Describe(t.Context(), "web")
		require.NoError(t, err)
		assert.Equal(t, resolvedWeb(), vm, "what it runs with")
	})
}

func TestUnresolvedIsValid(t *testing.T) {
	vm := unresolved(web())
	assert.True(t, vm.Unresolved())
	require.NoError(t, vm.Validate())
	vm.Resolve = false
	assert.False(t, vm.Unresolved())
	require.EqualError(t, vm.Validate(), "NIC 0: no address; give it at least one from the pools")
	assert.False(t, resolvedWeb().Unresolved())
	require.NoError(t, resolvedWeb().Validate())
	vm = unresolved(web())
	vm.NICs[0].MTU = 3
	require.ErrorContains(t, vm.Validate(), "MTU 3")
}

// TestInventoryBesideARegistry: what the inventory answers is recorded as what a
// description names, and refused when another guest has it.
func TestInventoryBesideARegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(nil)
		web, copied := known("web", "uuid-of-web", "203.0.113.9 2001:db8:100:5::9"), known("copy", "uuid-of-copy", "203.0.113.9")
		n := fresh(t, agent.WithRegistry(r), agent.WithResolver(knowing(web, copied)))
		ask := func(vm fabric.VM) fabric.VM {
			vm.Resolve, vm.NICs = true, []fabric.NIC{{}}
			return vm
		}
		n.run(func() {
			n.apply(ask(web), fabric.Live)
			assert.Equal(t, []string{"203.0.113.9/32 allocated web node1", "2001:db8:100:5::9/128 allocated web node1"}, allocations(t, r))
			require.ErrorIs(t, n.Apply(t.Context(), ask(copied), fabric.Live), fabric.ErrRefused)
			n.apply(ask(web), fabric.Wired)
			require.ErrorIs(t, n.Apply(t.Context(), ask(copied), fabric.Live), fabric.ErrRefused)
			assert.Len(t, allocations(t, r), 2)
		})
	})
}
