package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// listed gives all parts of a node's list, as another node tells it: lines such as
// "node2 web web_net0 live 203.0.113.10,2001:db8:100:1::10", and their number.
func listed(t *testing.T, by *node, of string) (lines []string, parts int) {
	t.Helper()
	for after := ""; ; {
		part, err := by.ListNode(t.Context(), of, after)
		require.NoError(t, err)
		parts++
		for _, p := range part.Ports {
			var addresses []string
			for _, a := range p.Addresses {
				addresses = append(addresses, a.String())
			}
			lines = append(lines, fmt.Sprintf("%s %s %s %s %s", p.Node, p.VM, p.Port, p.State, strings.Join(addresses, ",")))
		}
		if part.Next == "" {
			return lines, parts
		}
		require.Less(t, parts, 100)
		after = part.Next
	}
}

// large is a guest of about the largest size.
func large(name string, first byte) fabric.VM {
	vm := fabric.VM{Name: name}
	for n := range fabric.MaxNICs {
		var nic fabric.NIC
		for i := range fabric.MaxAddresses {
			nic.Addresses = append(nic.Addresses, netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0x01, 0, 0xff, first, 0xff, 0xff, 0xff, 0xff, 0xff, byte(n), 0xff, byte(i)}))
		}
		vm.NICs = append(vm.NICs, nic)
	}
	return vm
}

// TestListOfEveryNode is the same from whichever node it is asked.
func TestListOfEveryNode(t *testing.T) {
	pairsOf(t, fake.NewSource, known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10"), func(t *testing.T, p *pair) {
		p.runs(p.one, p.vm)
		p.two.apply(guest("db", "203.0.113.20 2001:db8:100:1::20 198.51.100.0/29 veth"), fabric.Wired)
		p.two.apply(guest("mx", "203.0.113.21"), fabric.Live)
		p.two.apply(guest("gone", "203.0.113.22"), fabric.Live)
		p.two.apply(guest("gone", "203.0.113.22"), fabric.Absent)
		moment()
		for _, n := range []*node{p.one, p.two} {
			names, err := n.Nodes(t.Context())
			require.NoError(t, err)
			assert.Equal(t, n.name, names[0], "itself first")
			slices.Sort(names)
			assert.Equal(t, []string{"node1", "node2"}, names)
			lines, _ := listed(t, n, "node1")
			assert.Equal(t, []string{"node1 web web_net0 live 203.0.113.10,2001:db8:100:1::10"}, lines)
			lines, parts := listed(t, n, "node2")
			assert.Equal(t, []string{"node2 db db_net0 wired 203.0.113.20,2001:db8:100:1::20", "node2 mx mx_net0 live 203.0.113.21"}, lines)
			assert.Equal(t, 1, parts)
		}
		there, err := p.one.ListNode(t.Context(), "node2", "")
		require.NoError(t, err)
		own, err := p.two.List(t.Context())
		require.NoError(t, err)
		for i := range own {
			own[i].Node = "node2"
			own[i].Since, there.Ports[i].Since = time.Time{}, time.Time{}
		}
		assert.Equal(t, own, there.Ports)
	})
}

// TestListInParts: a message has a limit.
func TestListInParts(t *testing.T) {
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) {
		p.two.apply(large("a", 1), fabric.Wired)
		p.two.apply(guest("b", "203.0.113.20"), fabric.Wired)
		p.two.apply(large("c", 2), fabric.Wired)
		p.two.apply(guest("d", "203.0.113.21"), fabric.Wired)
		lines, parts := listed(t, p.one, "node2")
		assert.Len(t, lines, 2*fabric.MaxNICs+2)
		assert.Equal(t, 2, parts)
		assert.True(t, slices.IsSortedFunc(lines, func(x, y string) int { return strings.Compare(strings.Fields(x)[1], strings.Fields(y)[1]) }))
	})
}

// answers runs a node that gives one answer to everything, and another node's agent that
// may ask it.
func answers(t *testing.T, answer fabric.Answer, f func(t *testing.T, n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ends := fake.NewNodes(nil, cluster().Nodes[:2]...)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- ends["node2"].Serve(ctx, func(context.Context, fabric.Node, fabric.Notice) fabric.Answer { return answer })
		}()
		synctest.Wait()
		f(t, fresh(t, agent.WithNodes(ends["node1"])))
		cancel()
		require.NoError(t, <-done)
	})
}

// TestListThatCannotBeUsed is an error, and nothing of it is shown.
func TestListThatCannotBeUsed(t *testing.T) {
	entry := func(name string, change func(*fabric.GuestEntry)) fabric.GuestEntry {
		e := fabric.GuestEntry{VM: guest(name, "203.0.113.10 2001:db8:100:1::10"), States: []fabric.State{fabric.Live}}
		if change != nil {
			change(&e)
		}
		return e
	}
	for says, answer := range map[string]fabric.Answer{
		"the VM has no name":                 {Guests: []fabric.GuestEntry{entry("", nil)}},
		"has control characters":             {Guests: []fabric.GuestEntry{entry("a\nb", nil)}},
		`guest "a" comes after "b"`:          {Guests: []fabric.GuestEntry{entry("b", nil), entry("a", nil)}},
		`guest "b" comes after "b"`:          {Guests: []fabric.GuestEntry{entry("b", nil), entry("b", nil)}},
		"has 1 NICs and the states of 0":     {Guests: []fabric.GuestEntry{entry("a", func(e *fabric.GuestEntry) { e.States = nil })}},
		"has 1 NICs and the states of 1":     {Guests: []fabric.GuestEntry{entry("a", func(e *fabric.GuestEntry) { e.States[0] = fabric.Absent })}},
		"is not plain text":                  {Guests: []fabric.GuestEntry{entry("a", func(e *fabric.GuestEntry) { e.VM.UUID = "\x1b[2J" })}},
		"an address or a route is empty":     {Guests: []fabric.GuestEntry{entry("a", func(e *fabric.GuestEntry) { e.VM.NICs[0].Addresses[0] = netip.Addr{} })}},
		`kind "bridge" is not one of`:        {Guests: []fabric.GuestEntry{entry("a", func(e *fabric.GuestEntry) { e.VM.NICs[0].Kind = "bridge" })}},
		"it has no end":                      {More: true},
		"routes are said to come from pools": {Guests: []fabric.GuestEntry{entry("a", func(e *fabric.GuestEntry) { e.VM.NICs[0].Dynamic = 3 })}},
	} {
		answers(t, answer, func(t *testing.T, n *node) {
			part, err := n.ListNode(t.Context(), "node2", "")
			require.ErrorContains(t, err, "node node2: its list of guests cannot be used: ")
			require.ErrorContains(t, err, says)
			assert.Empty(t, part.Ports)
		})
	}
}

// TestListOfANodeThatDoesNotTell says which, and why.
func TestListOfANodeThatDoesNotTell(t *testing.T) {
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) {
		_, err := p.one.ListNode(t.Context(), "node9", "")
		require.ErrorContains(t, err, "node9")
		older := fmt.Errorf("node node2: its agent is older: %w", errors.ErrUnsupported)
		p.ends[p.one].Fail("node1 tells node2 listing", older)
		_, err = p.one.ListNode(t.Context(), "node2", "")
		require.ErrorIs(t, err, errors.ErrUnsupported)
		p.ends[p.one].Fail("node1 tells node2 listing", nil)
		p.ends[p.one].Cut("node2", true)
		_, err = p.one.ListNode(t.Context(), "node2", "")
		require.EqualError(t, err, "node node2: cut off")
		alone := fresh(t)
		_, err = alone.ListNode(t.Context(), "node2", "")
		require.ErrorContains(t, err, "talks to no other node")
		lines, _ := listed(t, alone, "node1")
		assert.Empty(t, lines)
	})
}
