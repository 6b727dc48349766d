package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

const (
	oneRun     = "7"
	anotherRun = "8"
	uuid       = "aaaaaaaa-0000-4000-8000-000000000010"
)

// domain is a guest of libvirt's.
func domain(nics ...string) fabric.VM {
	vm := guest("web", nics...)
	vm.Origin, vm.UUID = "libvirt", uuid
	return vm
}

// quiet gives a guest whose requests for its configuration are not answered.
func quiet(vm fabric.VM, dhcp, ra bool) fabric.VM {
	vm.NoDHCP, vm.NoRA = dhcp, ra
	return vm
}

var began = domain("203.0.113.10 2001:db8:100:1::10", "203.0.113.11 198.51.100.0/29")

// descriptions are what may become of a running guest's, and what status says.
var descriptions = map[string]struct {
	vm   fabric.VM
	says string
}{
	"taken away": {domain(), "guest web: libvirt does not say any more what it has; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; put its description back, or stop and start it"},
	"another IPv4 address": {
		domain("203.0.113.12 2001:db8:100:1::10", "203.0.113.11 198.51.100.0/29"),
		"guest web: libvirt says now that it has 203.0.113.12, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
	"another IPv6 address": {
		domain("203.0.113.10 2001:db8:100:1::12", "203.0.113.11 198.51.100.0/29"),
		"guest web: libvirt says now that it has 203.0.113.10, 2001:db8:100:1::12, 203.0.113.11, 198.51.100.0/29; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
	"an address on the other NIC": {
		domain("203.0.113.10", "203.0.113.11 2001:db8:100:1::10 198.51.100.0/29"),
		"guest web: libvirt says now that it has 203.0.113.10, 203.0.113.11, 2001:db8:100:1::10, 198.51.100.0/29; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
	"a NIC less": {
		domain("203.0.113.10 2001:db8:100:1::10"),
		"guest web: libvirt says now that it has 203.0.113.10, 2001:db8:100:1::10; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
	"a NIC more": {
		domain("203.0.113.10 2001:db8:100:1::10", "203.0.113.11 198.51.100.0/29", "203.0.113.13 2001:db8:100:1::13"),
		"guest web: libvirt says now that it has 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 and 2 more; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
	"an address that nobody may have": {
		domain("192.0.2.1", "203.0.113.11 198.51.100.0/29"),
		"guest web: libvirt says now that it has 192.0.2.1, 203.0.113.11, 198.51.100.0/29; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
	"without DHCP": {
		quiet(began, true, false),
		"guest web: libvirt says now that it gets router advertisements and no DHCP; it keeps DHCP and router advertisements while it runs; stop and start it to change that, or put its description back",
	},
	"without advertisements": {
		quiet(began, false, true),
		"guest web: libvirt says now that it gets DHCP and no router advertisements; it keeps DHCP and router advertisements while it runs; stop and start it to change that, or put its description back",
	},
	"without any answer, and another address": {
		quiet(domain("203.0.113.10 2001:db8:100:1::12", "203.0.113.11 198.51.100.0/29"), true, true),
		"guest web: libvirt says now that it has 203.0.113.10, 2001:db8:100:1::12, 203.0.113.11, 198.51.100.0/29 and it gets no DHCP and no router advertisements; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 and DHCP and router advertisements while it runs; stop and start it to change that, or put its description back",
	},
	"left to a resolver": {
		fabric.VM{Name: "web", Origin: "libvirt", UUID: uuid, Resolve: true, NICs: make([]fabric.NIC, 2)},
		"guest web: libvirt says now that a resolver knows what it has; it keeps 203.0.113.10, 2001:db8:100:1::10, 203.0.113.11, 198.51.100.0/29 while it runs; stop and start it to change that, or put its description back",
	},
}

// running gives a node on which web was started by the hook and runs.
func running(t *testing.T, f func(t *testing.T, n *node, src *fake.Source)) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithSources(src))
		n.apply(began, fabric.Wired)
		require.NoError(t, n.Started(t.Context(), began))
		src.Say(fabric.Desired{VM: began, State: fabric.Live, Run: oneRun})
		f(t, n, src)
	})
}

// settle lets a list be made that is young enough to say that a guest is gone.
func settle() { time.Sleep(3 * time.Minute) }

// TestStartThatEndsWithItsHypervisor: a port that was made for a guest which is on no list
// goes within seconds, and not with the list of the next minute.
func TestStartThatEndsWithItsHypervisor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithSources(src))
		n.run(func() {
			n.apply(began, fabric.Wired)
			time.Sleep(2 * time.Second)
			src.Lose() // a list is made anew when libvirtd is back
			moment()
			n.holds(want{began, fabric.Wired})
			time.Sleep(10 * time.Second)
			n.holds()
		})
	})
}

func TestARunningGuestKeepsWhatItStartedWith(t *testing.T) {
	for name, now := range descriptions {
		t.Run(name, func(t *testing.T) {
			running(t, func(t *testing.T, n *node, src *fake.Source) {
				stays := func() {
					t.Helper()
					settle()
					assert.Equal(t, []string{now.says}, n.problems())
					n.holds(want{began, fabric.Live})
				}
				n.run(func() {
					settle()
					require.Empty(t, n.problems())
					n.journal.Take()
					src.Say(fabric.Desired{VM: now.vm, State: fabric.Live, Run: oneRun})
					stays()
					n.did()
					if len(now.vm.NICs) > 0 { // libvirtd restarts
						require.NoError(t, n.Started(t.Context(), now.vm))
						stays()
						n.did("store web live")
					}
					src.Say(fabric.Desired{VM: began, State: fabric.Live, Run: oneRun})
					settle()
					assert.Empty(t, n.problems(), "its description is back")
					src.Say(fabric.Desired{VM: now.vm, State: fabric.Live, Run: oneRun})
					stays()
				})
				// A source that is new to it does not know that it was described once.
				if len(now.vm.NICs) == 0 {
					src.Say(fabric.Desired{VM: now.vm, Run: oneRun})
				}
				n.journal.Take()
				n = n.again(agent.WithSources(src))
				n.run(func() {
					stays()
					assert.NotContains(t, n.journal.Take(), "unwire web_net0")

					// It ends, and is started anew.
					if name == "an address that nobody may have" || name == "left to a resolver" {
						return
					}
					src.Set(now.vm, fabric.Absent)
					settle()
					n.holds()
					assert.Empty(t, n.problems())
					if len(now.vm.NICs) == 0 {
						src.Say(fabric.Desired{VM: now.vm, Run: anotherRun}) // not ours any more
						settle()
						n.holds()
						return
					}
					n.apply(now.vm, fabric.Wired)
					require.NoError(t, n.Started(t.Context(), now.vm))
					src.Say(fabric.Desired{VM: now.vm, State: fabric.Live, Run: anotherRun})
					settle()
					assert.Empty(t, n.problems())
					n.holds(want{now.vm, fabric.Live})
				})
			})
		})
	}
}

// The hook of a start says what the guest has from then on, although nobody has
// heard of the end of the run before.
func TestAStartTakesADescriptionOver(t *testing.T) {
	next := domain("203.0.113.12 2001:db8:100:1::12")
	for name, start := range map[string]func(*testing.T, *node, *fake.Source){
		"by the hook": func(t *testing.T, n *node, src *fake.Source) {
			n.apply(next, fabric.Wired)
			require.NoError(t, n.Started(t.Context(), next))
			src.Say(fabric.Desired{VM: next, State: fabric.Live, Run: anotherRun})
		},
		"without a hook": func(_ *testing.T, _ *node, src *fake.Source) {
			src.Say(fabric.Desired{VM: next, State: fabric.Live, Run: anotherRun})
		},
	} {
		t.Run(name, func(t *testing.T) {
			running(t, func(t *testing.T, n *node, src *fake.Source) {
				n.run(func() {
					settle()
					src.Say(fabric.Desired{VM: next, State: fabric.Live, Run: oneRun})
					settle()
					require.Len(t, n.problems(), 1)
					start(t, n, src)
					settle()
					assert.Empty(t, n.problems())
					n.holds(want{next, fabric.Live})
				})
			})
		})
	}
}

// A domain of the same name that is another one is not the guest.
func TestAnotherDomainOfTheName(t *testing.T) {
	running(t, func(t *testing.T, n *node, src *fake.Source) {
		n.run(func() {
			settle()
			other := domain()
			other.UUID = "bbbbbbbb-0000-4000-8000-000000000010"
			src.Say(fabric.Desired{VM: other, Run: oneRun})
			settle()
			n.holds()
			assert.Empty(t, n.problems())
			// And its end is not that of a guest which has come back meanwhile.
			n.apply(began, fabric.Live)
			src.Set(other, fabric.Absent)
			synctest.Wait()
			n.holds(want{began, fabric.Live})
		})
	})
}

// A guest whose description is gone is followed as any other: it leaves, stays
// after all, and goes.
func TestAGuestWithoutADescriptionIsFollowed(t *testing.T) {
	running(t, func(t *testing.T, n *node, src *fake.Source) {
		n.run(func() {
			settle()
			src.Say(fabric.Desired{VM: domain(), State: fabric.Live, Leaving: true, Run: oneRun})
			synctest.Wait()
			assert.Contains(t, n.problems()[0], "does not say any more")
			src.Say(fabric.Desired{VM: domain(), State: fabric.Live, Run: oneRun})
			settle()
			n.holds(want{began, fabric.Live})
			src.Set(domain(), fabric.Absent)
			synctest.Wait()
			n.holds()
		})
	})
}

// One that the agent does not know, and that nothing describes, is nobody's business.
func TestStrangersAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("libvirt")
		n := fresh(t, agent.WithSources(src))
		n.run(func() {
			src.Say(fabric.Desired{VM: domain(), Run: oneRun})
			src.Say(fabric.Desired{VM: domain(), State: fabric.Live, Run: oneRun})
			settle()
			src.Set(domain(), fabric.Absent)
			settle()
			n.did()
			assert.Empty(t, n.problems())
		})
	})
}

// Where a description counts at once, as with LXD's keys, one that is gone
// altogether is still no wish.
func TestKeysCountAtOnceButNotTheirAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("lxd")
		n := fresh(t, agent.WithSources(src))
		n.run(func() {
			before, after := guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"), guest("web", "203.0.113.12 2001:db8:100:1::12 adopt")
			n.dataplane.AddLink("web_net0")
			src.Say(fabric.Desired{VM: before, State: fabric.Live})
			settle()
			src.Say(fabric.Desired{VM: after, State: fabric.Live})
			settle()
			n.holds(want{after, fabric.Live})
			src.Say(fabric.Desired{VM: guest("web"), State: fabric.Live})
			settle()
			n.holds(want{after, fabric.Live})
			assert.Equal(t, []string{"guest web: lxd does not say any more what it has; it keeps 203.0.113.12, 2001:db8:100:1::12 while it runs; put its description back, or stop and start it"}, n.problems())
			src.Set(guest("web"), fabric.Absent)
			settle()
			n.holds()
		})
	})
}
