package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
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

// diary is an observer that writes down what it hears.
type diary struct {
	mu     sync.Mutex
	events []fabric.Event
	err    error
	takes  time.Duration // for each event
	deaf   bool          // it does not mind its context
	active int
	t      *testing.T
}

var _ fabric.Observer = (*diary)(nil)

func (d *diary) Observe(ctx context.Context, e fabric.Event) error {
	d.mu.Lock()
	d.active++
	assert.Equal(d.t, 1, d.active, "one at a time")
	takes, deaf := d.takes, d.deaf
	d.mu.Unlock()
	if takes > 0 {
		done := ctx.Done()
		if deaf {
			done = nil
		}
		select {
		case <-time.After(takes):
		case <-done:
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active--
	if err := ctx.Err(); err != nil && !deaf {
		return err
	}
	if d.err == nil {
		d.events = append(d.events, e)
	}
	return d.err
}

func (d *diary) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// take gives what was heard since the last call, in the reader's words.
func (d *diary) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for _, e := range d.events {
		words := []string{string(e.Kind)}
		if e.VM != "" {
			words = append(words, e.VM)
		}
		words = append(words, e.Ports...)
		words = append(words, texts(e.Prefixes)...)
		if e.Preference != fabric.Normal {
			words = append(words, e.Preference.String())
		}
		if e.Session != nil {
			words = append(words, e.Session.Peer, e.Session.Address, e.Session.State)
		}
		if e.Dropped > 0 {
			words = append(words, fmt.Sprintf("(%d dropped)", e.Dropped))
		}
		all = append(all, strings.Join(words, " "))
	}
	d.events = nil
	return all
}

// observed runs an agent with an observer and a source.
func observed(t *testing.T, f func(t *testing.T, n *node, d *diary, src *fake.Source)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d, src := &diary{t: t}, fake.NewSource("libvirt")
		n := fresh(t, agent.WithObservers(d), agent.WithSources(src))
		n.run(func() { f(t, n, d, src) })
	})
}

func (n *node) heard(d *diary, want ...string) {
	n.t.Helper()
	moment()
	assert.Equal(n.t, want, d.take())
}

const (
	web0 = "203.0.113.10/32 2001:db8:100:1::10/128 198.51.100.0/29"
	web1 = "203.0.113.11/32 2001:db8:100:1::11/128 2001:db8:200:8::/64"
)

// A guest's whole life under a hypervisor.
func TestObserveALife(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, src *fake.Source) {
		vm := from("libvirt", web())
		n.apply(vm, fabric.Wired)
		n.heard(d, "attach web web_net0 web_net1 "+web0+" "+web1)
		n.apply(vm, fabric.Wired)
		require.NoError(t, n.Started(t.Context(), vm))
		n.heard(d, "announce web "+web0+" "+web1+" fresh")
		src.Set(vm, fabric.Live)
		n.apply(vm, fabric.Live)
		n.heard(d)
		time.Sleep(time.Minute)
		n.heard(d, "announce web "+web0+" "+web1)
		time.Sleep(10 * time.Minute)
		n.heard(d)
		require.NoError(t, n.Withdraw(t.Context(), "web"))
		n.heard(d, "withdraw web "+web0+" "+web1)
		require.NoError(t, n.Withdraw(t.Context(), "web"))
		src.Set(vm, fabric.Absent)
		n.heard(d, "detach web web_net0 web_net1 "+web0+" "+web1)
		n.apply(vm, fabric.Absent)
		n.heard(d)
	})
}

// Down at once: withdrawn first.
func TestObserveTheOrderDown(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		n.apply(web(), fabric.Live)
		n.apply(web(), fabric.Absent)
		n.apply(db(), fabric.Live)
		n.heard(d, "attach web web_net0 web_net1 "+web0+" "+web1, "announce web "+web0+" "+web1,
			"withdraw web "+web0+" "+web1, "detach web web_net0 web_net1 "+web0+" "+web1,
			"attach db db_net0 203.0.113.20/32", "announce db 203.0.113.20/32")
	})
}

func TestEventAsItIs(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		vm := from("libvirt", guest("web", "203.0.113.10 2001:db8:100:1::10"))
		vm.UUID = "aaaaaaaa-0000-4000-8000-00000000000a"
		before := time.Now()
		n.apply(vm, fabric.Live)
		n.speaker.SetSessions(fabric.Session{Peer: "rr1", Address: "10.10.0.11", State: "established", Advertised: 2})
		moment()
		require.Len(t, d.events, 3)
		for i, e := range d.events {
			assert.Equal(t, "msk1", e.Cluster)
			assert.Equal(t, "node1", e.Node)
			assert.False(t, e.At.Before(before) || e.At.After(time.Now()))
			if i < 2 {
				assert.Equal(t, vm.UUID, e.UUID)
				assert.Nil(t, e.Session)
			}
			d.events[i].At = time.Time{}
		}
		b, err := json.Marshal(d.events)
		require.NoError(t, err)
		assert.JSONEq(t, `[
			{"at":"0001-01-01T00:00:00Z","kind":"attach","cluster":"msk1","node":"node1","vm":"web","uuid":"aaaaaaaa-0000-4000-8000-00000000000a","ports":["web_net0"],"prefixes":["203.0.113.10/32","2001:db8:100:1::10/128"]},
			{"at":"0001-01-01T00:00:00Z","kind":"announce","cluster":"msk1","node":"node1","vm":"web","uuid":"aaaaaaaa-0000-4000-8000-00000000000a","prefixes":["203.0.113.10/32","2001:db8:100:1::10/128"],"preference":200},
			{"at":"0001-01-01T00:00:00Z","kind":"session","cluster":"msk1","node":"node1","session":{"peer":"rr1","address":"10.10.0.11","state":"established","since":"0001-01-01T00:00:00Z","advertised":2}}
		]`, string(b))
	})
}

func TestObserveMigration(t *testing.T) {
	vm := from("libvirt", web())
	arrives := func(t *testing.T, n *node, d *diary) {
		require.NoError(t, n.Expect(t.Context(), "web"))
		n.apply(vm, fabric.Wired)
		n.apply(vm, fabric.Wired)
		require.NoError(t, n.Started(t.Context(), vm))
		n.heard(d, "attach web web_net0 web_net1 "+web0+" "+web1)
	}
	moved := []string{"announce web " + web0 + " " + web1 + " fresh", "move web web_net0 web_net1 " + web0 + " " + web1}
	t.Run("arrives", func(t *testing.T) {
		observed(t, func(t *testing.T, n *node, d *diary, src *fake.Source) {
			arrives(t, n, d)
			src.Set(vm, fabric.Live)
			n.heard(d, moved...)
			time.Sleep(time.Minute)
			n.heard(d, "announce web "+web0+" "+web1)
		})
	})
	t.Run("arrives, and is announced late", func(t *testing.T) {
		observed(t, func(t *testing.T, n *node, d *diary, src *fake.Source) {
			arrives(t, n, d)
			n.speaker.Fail("announce", errBoom)
			src.Set(vm, fabric.Live)
			n.heard(d)
			n.speaker.Fail("announce", nil)
			time.Sleep(2 * time.Second)
			n.heard(d, moved...)
		})
	})
	t.Run("arrives over a restart", func(t *testing.T) {
		observed(t, func(t *testing.T, n *node, d *diary, src *fake.Source) {
			arrives(t, n, d)
			src.SetQuietly(vm, fabric.Wired)
			again := n.again(agent.WithObservers(d), agent.WithSources(src))
			again.run(func() {
				src.Set(vm, fabric.Live)
				again.heard(d, moved...)
			})
		})
	})
	t.Run("fails", func(t *testing.T) {
		observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
			arrives(t, n, d)
			require.NoError(t, n.Withdraw(t.Context(), "web"))
			n.apply(vm, fabric.Absent)
			n.heard(d, "detach web web_net0 web_net1 "+web0+" "+web1)
			n.apply(vm, fabric.Live) // an ordinary start
			n.heard(d, "attach web web_net0 web_net1 "+web0+" "+web1, "announce web "+web0+" "+web1+" fresh")
		})
	})
	t.Run("leaves", func(t *testing.T) {
		observed(t, func(t *testing.T, n *node, d *diary, src *fake.Source) {
			n.apply(vm, fabric.Live)
			moment()
			d.take()
			src.Set(vm, fabric.Absent)
			n.heard(d, "withdraw web "+web0+" "+web1, "detach web web_net0 web_net1 "+web0+" "+web1)
		})
	})
}

func TestObserveChanges(t *testing.T) {
	before := guest("web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11")
	for _, tt := range []struct {
		name  string
		after fabric.VM
		want  []string
	}{
		{"nothing", before, nil},
		{"IPv4 address for another", guest("web", "203.0.113.12 2001:db8:100:1::10", "203.0.113.11"), []string{"withdraw web 203.0.113.10/32", "announce web 203.0.113.12/32"}},
		{"IPv6 address for another", guest("web", "203.0.113.10 2001:db8:100:1::12", "203.0.113.11"), []string{"withdraw web 2001:db8:100:1::10/128", "announce web 2001:db8:100:1::12/128"}},
		{"a NIC less", guest("web", "203.0.113.10 2001:db8:100:1::10"), []string{"withdraw web 203.0.113.11/32", "detach web web_net1 203.0.113.11/32"}},
		{"a NIC more", guest("web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11", "203.0.113.13 2001:db8:100:1::13"), []string{
			"attach web web_net2 203.0.113.13/32 2001:db8:100:1::13/128", "announce web 203.0.113.13/32 2001:db8:100:1::13/128",
		}},
		{"an address moved to the other NIC", guest("web", "203.0.113.10", "203.0.113.11 2001:db8:100:1::10"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
				n.apply(before, fabric.Live)
				moment()
				d.take()
				n.apply(tt.after, fabric.Live)
				n.heard(d, tt.want...)
			})
		})
	}
}

// What is repaired was not gone, and is no news; nor is what comes to nothing.
func TestObserveRepairs(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		n.apply(web(), fabric.Live)
		moment()
		d.take()
		n.dataplane.Break("web_net0", "down")
		n.dataplane.RemoveLink("web_net1")
		n.speaker.Lose(web().Prefixes()...)
		n.heard(d)
		n.holds(want{web(), fabric.Live})
	})
}

func TestObserveWhatIsUndone(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		n.speaker.Fail("announce 2001:db8:100:1::10/128", errBoom)
		require.Error(t, n.Apply(t.Context(), web(), fabric.Live))
		n.heard(d, "attach web web_net0 web_net1 "+web0+" "+web1, "detach web web_net0 web_net1 "+web0+" "+web1)
		n.dataplane.Fail("wire web_net1", errBoom)
		require.Error(t, n.Apply(t.Context(), web(), fabric.Live))
		require.Error(t, n.Apply(t.Context(), guest("web", "192.0.2.1"), fabric.Live))
		n.heard(d)
		n.holds()
	})
}

func TestObserveCarrier(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		n.apply(web(), fabric.Live)
		moment()
		d.take()
		n.dataplane.SetCarrier("web_net1", false)
		n.heard(d, "withdraw web "+web1)
		n.dataplane.SetCarrier("web_net1", true)
		n.heard(d, "announce web "+web1)
	})
}

// A link that its owner makes and takes away.
func TestObserveAdoptedLinks(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		vm := from("libvirt", guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"))
		const prefixes = "203.0.113.10/32 2001:db8:100:1::10/128"
		n.apply(vm, fabric.Wired)
		n.heard(d)
		n.dataplane.AddLink("web_net0")
		n.apply(vm, fabric.Wired)
		n.heard(d, "attach web web_net0 "+prefixes)
		require.NoError(t, n.Started(t.Context(), vm))
		moment()
		assert.Equal(t, []string{"announce web " + prefixes + " standby", "announce web " + prefixes + " fresh"}, d.take())
		n.dataplane.RemoveLink("web_net0")
		n.heard(d, "withdraw web "+prefixes, "detach web web_net0 "+prefixes)
		n.apply(vm, fabric.Absent)
		n.heard(d)
	})
}

func TestObserveDrain(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Live)
		moment()
		d.take()
		require.NoError(t, n.Drain(t.Context()))
		n.heard(d, "announce db 203.0.113.20/32 draining", "announce web "+web0+" "+web1+" draining")
		time.Sleep(2 * time.Minute)
		n.heard(d)
		require.NoError(t, n.Undrain(t.Context()))
		n.heard(d, "announce db 203.0.113.20/32", "announce web "+web0+" "+web1)
	})
}

func TestObservePrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, src := &diary{t: t}, fake.NewSource("libvirt")
		src.Fail("list guests", errBoom)
		n := leftovers(t, agent.WithObservers(d), agent.WithSources(src))
		require.NoError(t, n.speaker.Put(t.Context(), fabric.Route{Prefix: prefix("203.0.113.98/32")}))
		n.run(func() {
			time.Sleep(time.Minute)
			n.heard(d)
			src.Fail("list guests", nil)
			time.Sleep(2 * time.Second)
			n.heard(d, "withdraw 203.0.113.98/32 2001:db8:100:1::99/128", "withdraw old 203.0.113.99/32", "detach old old_net0 203.0.113.99/32")
		})
	})
}

// An agent tells of changes alone, also after a restart.
func TestObserveRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{t: t}
		n := fresh(t)
		n.apply(web(), fabric.Live)
		n.apply(db(), fabric.Wired)
		n.apply(guest("lost", "203.0.113.30 2001:db8:100:1::30"), fabric.Live)
		n.store.Delete(t.Context(), "lost")
		n = n.again(agent.WithObservers(d))
		n.run(func() {
			n.heard(d)
			require.NoError(t, n.Withdraw(t.Context(), "web"))
			n.apply(db(), fabric.Absent)
			n.apply(fabric.VM{Name: "lost"}, fabric.Absent)
			n.heard(d, "withdraw web "+web0+" "+web1, "detach db db_net0 203.0.113.20/32",
				"withdraw lost 203.0.113.30/32 2001:db8:100:1::30/128", "detach lost lost_net0 203.0.113.30/32 2001:db8:100:1::30/128")
		})
	})
	t.Run("of the machine", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &diary{t: t}
			n := fresh(t)
			n.apply(db(), fabric.Live)
			n.dataplane.RemoveLink("db_net0")
			n = n.again(agent.WithObservers(d))
			assert.Empty(t, d.take(), "what happens before Run waits for it")
			n.run(func() { n.heard(d, "attach db db_net0 203.0.113.20/32", "announce db 203.0.113.20/32") })
		})
	})
}

func TestObserveSessions(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		rr := func(peer, address, state string) fabric.Session {
			return fabric.Session{Peer: peer, Address: address, State: state, Since: time.Now()}
		}
		n.speaker.SetSessions(rr("rr1", "10.10.0.11", "connect"), rr("rr2", "fd00::12", "idle"))
		n.heard(d)
		n.speaker.SetSessions(rr("rr1", "10.10.0.11", "opensent"), rr("rr2", "fd00::12", "established"))
		n.heard(d, "session rr2 fd00::12 established")
		n.speaker.SetSessions(rr("rr1", "10.10.0.11", "established"), rr("rr2", "fd00::12", "established"))
		n.heard(d, "session rr1 10.10.0.11 established")
		n.apply(db(), fabric.Wired)
		time.Sleep(2 * time.Minute)
		n.heard(d, "attach db db_net0 203.0.113.20/32")
		n.speaker.SetSessions(rr("rr1", "10.10.0.11", "idle"), rr("rr2", "fd00::12", "established"))
		n.heard(d, "session rr1 10.10.0.11 idle")
		n.speaker.SetSessions(rr("rr1", "10.10.0.11", "active"), rr("rr2", "fd00::12", "established"))
		n.heard(d)
		n.speaker.Fail("list sessions", errBoom)
		n.speaker.SetSessions()
		n.heard(d)
		n.speaker.Fail("list sessions", nil)
		n.speaker.SetSessions() // its speaker does not know it any more
		n.heard(d, "session rr2 fd00::12 idle")
	})
}

// A speaker that does not tell its sessions holds up neither guests nor, for
// long, the repair of them.
func TestObserveSessionsThatHang(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		release := n.speaker.Hang("list sessions")
		defer release()
		n.dataplane.Break("nothing", "")
		moment()
		began := time.Now()
		n.apply(db(), fabric.Live)
		assert.Zero(t, time.Since(began))
		n.dataplane.Break("db_net0", "down")
		time.Sleep(15 * time.Second)
		n.holds(want{db(), fabric.Live})
	})
}

// many brings a guest up and down, which is four events each time.
func (n *node) many(times int) {
	n.t.Helper()
	for range times {
		n.apply(db(), fabric.Live)
		n.apply(db(), fabric.Absent)
	}
}

var dbLife = []string{
	"attach db db_net0 203.0.113.20/32", "announce db 203.0.113.20/32",
	"withdraw db 203.0.113.20/32", "detach db db_net0 203.0.113.20/32",
}

// One that does not listen delays no guest and no other observer, and hears
// afterwards how much it missed.
func TestSlowObserver(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("deaf %v", deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow, quick := &diary{t: t, takes: time.Hour, deaf: deaf}, &diary{t: t}
				n := fresh(t, agent.WithObservers(slow, quick))
				n.run(func() {
					began := time.Now()
					n.apply(db(), fabric.Wired)
					n.apply(db(), fabric.Absent)
					n.heard(quick, dbLife[0], dbLife[3])
					for range 500 {
						n.many(1)
						synctest.Wait() // the quick one takes them as they come
					}
					assert.Less(t, time.Since(began), time.Second, "nobody waited")
					assert.Len(t, quick.take(), 2000)
					at := began.Format(time.TimeOnly)
					assert.Equal(t, []string{"observer 1: 1001 events were dropped, the last at " + at + "; guests are not concerned, see why it is slow or gone"}, n.problems())

					slow.set(func() { slow.takes = 0 })
					if deaf {
						time.Sleep(10 * time.Second)
						assert.Equal(t, []string{"observer 1: it has had the same event since " + at + ", 1001 events were dropped, the last at " + at + "; guests are not concerned, see why it is slow or gone"}, n.problems())
						time.Sleep(time.Hour)
						heard := slow.take()
						require.Len(t, heard, 1001)
						assert.Equal(t, dbLife[0], heard[0], "it took it in the end")
						assert.Equal(t, dbLife[0]+" (1001 dropped)", heard[1])
						assert.Equal(t, dbLife[1], heard[2])
					} else {
						time.Sleep(6 * time.Second)
						heard := slow.take()
						require.Len(t, heard, 1000)
						assert.Equal(t, dbLife[0]+" (1002 dropped)", heard[0], "and the one that it had")
						assert.Equal(t, dbLife[1], heard[1])
						time.Sleep(time.Minute)
					}
					assert.Empty(t, n.problems(), "it has kept up for a minute")
					n.many(1)
					n.heard(slow, dbLife...)
					assert.Len(t, quick.take(), 4)
				})
			})
		})
	}
}

func TestFailingObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &diary{t: t, err: fmt.Errorf("boom\nbang")}, &diary{t: t}
		n := fresh(t, agent.WithObservers(good), agent.WithObservers(bad))
		n.run(func() {
			n.many(1)
			n.heard(good, dbLife...)
			assert.Equal(t, []string{"observer 2: it did not take the last event (boom; bang); guests are not concerned, see why it is slow or gone"}, n.problems())
			time.Sleep(5 * time.Minute)
			assert.Len(t, n.problems(), 1, "nothing says that it is well")
			bad.set(func() { bad.err = nil })
			n.many(1)
			n.heard(bad, dbLife[0]+" (4 dropped)", dbLife[1], dbLife[2], dbLife[3])
			assert.Empty(t, n.problems())
		})
	})
}

// Each call has five seconds.
func TestObserverThatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{t: t, takes: 7 * time.Second}
		n := fresh(t, agent.WithObservers(d))
		n.run(func() {
			n.many(1)
			time.Sleep(6 * time.Second)
			assert.Equal(t, []string{"observer 1: it did not take the last event (context deadline exceeded); guests are not concerned, see why it is slow or gone"}, n.problems())
			d.set(func() { d.takes = 4 * time.Second })
			time.Sleep(time.Minute)
			assert.Equal(t, []string{dbLife[2] + " (2 dropped)", dbLife[3]}, d.take())
		})
	})
}

// What waits when Run ends is told, as far as a second reaches.
func TestObserveTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name  string
		takes time.Duration
		deaf  bool
		heard int
		ends  time.Duration
	}{
		{"quick", 0, false, 12, 0},
		{"slow", 300 * time.Millisecond, false, 3, time.Second},
		{"stuck", time.Hour, false, 0, time.Second},
		{"stuck and deaf", time.Hour, true, 0, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &diary{t: t, takes: tt.takes, deaf: tt.deaf}
				n := fresh(t, agent.WithObservers(d))
				stop := n.begin()
				synctest.Wait()
				n.many(3)
				began := time.Now()
				stop()
				assert.Equal(t, tt.ends, time.Since(began))
				assert.Len(t, d.take(), tt.heard)
				time.Sleep(2 * time.Hour) // the test ends when every goroutine has
			})
		})
	}
}

// Events of one guest come in its order, however many there are at a time.
func TestObserveManyAtOnce(t *testing.T) {
	observed(t, func(t *testing.T, n *node, d *diary, _ *fake.Source) {
		var all sync.WaitGroup
		for i := range 20 {
			vm := guest(fmt.Sprintf("vm%d", i), fmt.Sprintf("203.0.113.%d 2001:db8:100:1::%d", 100+i, 100+i))
			all.Go(func() {
				for range 5 {
					assert.NoError(t, n.Apply(t.Context(), vm, fabric.Live))
					assert.NoError(t, n.Apply(t.Context(), vm, fabric.Absent))
				}
			})
		}
		all.Wait()
		moment()
		kinds, last := map[string][]fabric.EventKind{}, time.Time{}
		for _, e := range d.events {
			kinds[e.VM] = append(kinds[e.VM], e.Kind)
			assert.False(t, e.At.Before(last))
			last = e.At
		}
		require.Len(t, kinds, 20)
		for vm, k := range kinds {
			require.Len(t, k, 20, vm)
			for i := range k {
				assert.Equal(t, []fabric.EventKind{fabric.Attached, fabric.Announced, fabric.Withdrawn, fabric.Detached}[i%4], k[i])
			}
		}
	})
}
