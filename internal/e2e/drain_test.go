package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// reflectedAs waits until all reflectors have prefixes as a node announces them.
func (s *system) reflectedAs(pref fabric.Preference, ps ...netip.Prefix) {
	s.t.Helper()
	for name := range s.rr {
		for _, p := range ps {
			s.eventually(fmt.Sprint(p, " is ", pref, " at ", name), func() error {
				r := s.reflected(name, p)
				if r.LocalPref != pref.LocalPref() || !s.marked(r, pref) {
					return fmt.Errorf("%s has %+v", name, r)
				}
				return nil
			})
		}
	}
}

// marked reports whether a route has the communities of the cluster and of its
// preference, and no others but those that say its holder.
func (s *system) marked(r routers.BGPRoute, pref fabric.Preference) bool {
	want := slices.Concat(s.cluster.Communities, pref.Communities(), s.cluster.HolderOf(r.Communities).Communities(s.cluster.ASN))
	return len(r.Communities) == len(want) &&
		!slices.ContainsFunc(want, func(c fabric.Community) bool { return !slices.Contains(r.Communities, c) })
}

// TestDrain takes a node out of service and back under a probe of 1,000 packets
// a second: its guest stays reachable, another node with the same addresses
// comes first meanwhile, and nothing is lost.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, speaker := range []string{"gobgp", "bird", "frr"} {
		t.Run(speaker, func(t *testing.T) {
			t.Parallel()
			o := options{nodes: 2, speakers: map[string]string{"node1": speaker}}
			if speaker == "gobgp" {
				o.speakers = nil
			}
			s := start(t, o)
			node1, node2, a := s.top.Nodes["node1"], s.top.Nodes["node2"], s.agents["node1"]
			vm := veth("web", "203.0.113.10", "2001:db8:100::10", "198.51.100.8/29", "2001:db8:208::/64")
			vm.UUID = "6b9c1c3e-7b0a-4b61-9c59-0d6f8a3f2d11"
			s.run("node1", vm)
			s.coreHas(node1, vm.Prefixes()...)
			s.reflectedAs(fabric.Normal, vm.Prefixes()...)
			s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
			withdrawn := s.watchWithdrawals()
			for _, r := range s.underProbe(vm, time.Millisecond, func() {
				out, errs, code := a.cli("drain")
				require.Zero(t, code, errs)
				assert.Contains(t, out, "node1 is draining now: new guests are refused, and 1 guest is left on it\n")
				assert.Regexp(t, `(?m)^web +203.0.113.10,2001:db8:100::10 +198.51.100.8/29,2001:db8:208::/64 +by hand$`, out)
				s.reflectedAs(fabric.Draining, vm.Prefixes()...)
				s.coreHas(node1, vm.Prefixes()...)
				s.refusesGuests(a)

				require.NoError(t, a.Kill())
				a.start()
				a.established()
				s.reflectedAs(fabric.Draining, vm.Prefixes()...)
				s.refusesGuests(a)

				twin := vm // the same guest, by another name
				twin.Name = "twin"
				s.agents["node2"].ask(hooks.Wire, twin)
				_, err := s.lab.AddGuest(node2, twin, s.cluster.Gateway)
				require.NoError(t, err)
				s.reaches(node2, "203.0.113.10", "2001:db8:100::10") // a link that has just come up loses a packet or two
				s.agents["node2"].ask(hooks.Live, twin)
				s.coreHas(node2, twin.Prefixes()...)
				time.Sleep(200 * time.Millisecond)
				s.agents["node2"].ask(hooks.Withdraw, twin)
				s.coreHas(node1, vm.Prefixes()...)
				time.Sleep(200 * time.Millisecond) // for what is under way to it
				s.agents["node2"].ask(hooks.Remove, twin)

				out, errs, code = a.cli("undrain")
				require.Zero(t, code, errs)
				assert.Contains(t, out, "node1 is in service again")
				s.reflectedAs(fabric.Normal, vm.Prefixes()...)
				s.coreHas(node1, vm.Prefixes()...)
			}) {
				assert.Zero(t, r.Lost, "%+v", r)
				assert.Greater(t, r.Sent, 500)
			}
			assert.Empty(t, withdrawn(), "the core gateway lost a route")
			assert.Empty(t, a.status().Problems)
			out, _, code := a.cli("undrain")
			assert.Zero(t, code)
			assert.Equal(t, "node1 was not draining; it is in service\n", out)
			late := veth("late", "203.0.113.99", "2001:db8:100::99")
			a.ask(hooks.Live, late)
			s.coreHas(node1, late.Prefixes()...)
			s.waitsForGuests(a, vm, late)
		})
	}
}

// refusesGuests has a drained node asked for more.
func (s *system) refusesGuests(a *agent) {
	s.t.Helper()
	_, errs, code := a.cli("attach", "late", "--address", "203.0.113.99")
	assert.Equal(s.t, 1, code)
	assert.Equal(s.t, "vmfabric: guest late refused: node node1 is draining; start the guest on another node, or end the drain: vmfabric undrain\n", errs)
	out, _, code := a.cli("status")
	assert.Equal(s.t, 1, code)
	assert.Regexp(s.t, `(?m)^  ! draining since .*: 1 guest is left, new ones are refused; vmfabric undrain ends it$`, out)
	out, _, code = a.cli("why", "203.0.113.10")
	assert.Zero(s.t, code, out)
	assert.Contains(s.t, out, "this node is draining")
	out, _, code = a.cli("drain")
	assert.Zero(s.t, code)
	assert.Contains(s.t, out, "node1 is draining already, since ")
	out, errs, code = a.cli("drain", "--wait", "300ms", "--json")
	assert.Equal(s.t, 1, code)
	assert.Equal(s.t, "vmfabric: 1 guest is left on node1 after 300ms: web; move them away, or stop them\n", errs)
	answer := decode[map[string]any](s.t, out)
	assert.Equal(s.t, "node1", answer["node"])
	assert.Equal(s.t, true, answer["already"])
	assert.Equal(s.t, []any{map[string]any{
		"vm": "web", "origin": "", "addresses": []any{"203.0.113.10", "2001:db8:100::10"}, "routes": []any{"198.51.100.8/29", "2001:db8:208::/64"},
	}}, answer["guests"])
}

// waitsForGuests has drain --wait return when the last guest is gone.
func (s *system) waitsForGuests(a *agent, first, last fabric.VM) {
	s.t.Helper()
	_, errs, code := a.cli("drain", "--wait", "-1s")
	assert.Equal(s.t, 2, code)
	assert.Contains(s.t, errs, "--wait")
	cmd := exec.Command(program, "--socket", a.socket, "drain", "--wait", patience.String())
	stdout, err := cmd.StdoutPipe()
	require.NoError(s.t, err)
	require.NoError(s.t, a.node.Start(cmd))
	said := bufio.NewReader(stdout)
	for line := ""; !strings.HasPrefix(line, last.Name+" "); { // the first of the list
		line, err = said.ReadString('\n')
		require.NoError(s.t, err)
	}
	var out []byte
	ended := make(chan error, 1)
	go func() {
		out, _ = io.ReadAll(said)
		ended <- cmd.Wait()
	}()
	a.ask(hooks.Remove, first)
	require.NoError(s.t, a.Stop()) // it waits for one that is restarted
	a.start()
	select {
	case err := <-ended:
		s.t.Fatalf("it did not wait for the last guest: %v\n%s", err, out)
	case <-time.After(time.Second):
	}
	a.ask(hooks.Remove, last)
	select {
	case err := <-ended:
		require.NoError(s.t, err)
	case <-time.After(patience):
		s.t.Fatal("it goes on waiting")
	}
	assert.Contains(s.t, string(out), first.Name+" is gone, 1 left\n")
	assert.Contains(s.t, string(out), last.Name+" is gone, 0 left\n")
	st, _, code := a.cli("status")
	assert.Equal(s.t, 1, code)
	assert.Contains(s.t, st, ": 0 guests are left")
	_, errs, code = a.cli("drain", "--wait", "1m")
	assert.Zero(s.t, code, errs)
}

// TestDrainByMigration: a drained node refuses a guest that is to migrate to it,
// with the reason, and the guest runs on where it was; then its own node is
// drained, and it leaves that.
func TestDrainByMigration(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noAgent: true})
	one, two := s.hypervisor("node1"), s.hypervisor("node2")
	node1, node2 := s.agents["node1"], s.agents["node2"]
	d := s.domain(one, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	require.NoError(t, d.Start(soon(t)))
	require.NoError(t, d.WaitReady(soon(t)))
	s.coreHas(s.top.Nodes["node1"], seaGold...)

	_, errs, code := node2.cli("drain")
	require.Zero(t, code, errs)
	err := d.Migrate(context.WithoutCancel(soon(t)), two)
	require.ErrorContains(t, err, "guest sea_gold refused: node node2 is draining; start the guest on another node")
	s.coreHas(s.top.Nodes["node1"], seaGold...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	assert.Empty(t, s.leftOn(s.top.Nodes["node2"]))

	_, errs, code = node2.cli("undrain")
	require.Zero(t, code, errs)
	out, errs, code := node1.cli("drain", "--json")
	require.Zero(t, code, errs)
	guests := decode[struct{ Guests []map[string]any }](t, out).Guests
	require.Len(t, guests, 1)
	assert.Equal(t, "libvirt", guests[0]["origin"])
	s.reflectedAs(fabric.Draining, seaGold...)
	withdrawn := s.watchWithdrawals()
	require.NoError(t, d.Migrate(context.WithoutCancel(soon(t)), two))
	s.coreHas(s.top.Nodes["node2"], seaGold...)
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	_, errs, code = node1.cli("drain", "--wait", patience.String())
	assert.Zero(t, code, errs)
	assert.Empty(t, withdrawn(), "the core gateway lost a route")
	_, errs, code = node1.cli("undrain")
	assert.Zero(t, code, errs)
	require.NoError(t, d.Destroy(soon(t)))
	s.leavesNothing(s.top.Nodes["node2"], seaGold...)
}
