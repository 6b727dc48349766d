package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// coreDiscards waits until the core gateway's kernel discards packets to a prefix.
func (s *system) coreDiscards(ps ...netip.Prefix) {
	s.t.Helper()
	for _, p := range ps {
		family := map[bool]string{true: "-4", false: "-6"}[p.Addr().Is4()]
		s.eventually(p.String()+" is discarded", func() error {
			out, err := s.top.Core.Run(soon(s.t), "ip", family, "route", "show", p.Addr().String())
			if err != nil || !strings.Contains(out, "blackhole") {
				return fmt.Errorf("core has %q %w", out, err)
			}
			return nil
		})
	}
}

// reachesNot holds if none of some echo requests is answered.
func (s *system) reachesNot(a string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	_, err := s.top.Client.Ping(ctx, netip.MustParseAddr(a))
	require.Error(s.t, err, a)
}

// TestBlackhole: packets to an attacked guest end at the core gateway and on its node, in
// both families, while others go on; it outlasts the agent, and ends by itself or when it
// is lifted.
func TestBlackhole(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		rr, core string
		speakers map[string]string
	}{
		{"bird", "bird", nil},
		{"frr", "frr", map[string]string{"node1": "frr"}},
		{"embedded", "frr", map[string]string{"node1": "bird"}},
	} {
		t.Run(tc.rr+" reflectors, "+tc.core+" core", func(t *testing.T) {
			t.Parallel()
			s := start(t, options{rr: tc.rr, core: tc.core, speakers: tc.speakers})
			node1, a := s.top.Nodes["node1"], s.agents["node1"]
			vm, other := veth("web", "203.0.113.10", "2001:db8:100::10"), veth("db", "203.0.113.20", "2001:db8:100::20")
			s.run("node1", vm)
			s.run("node1", other)
			s.coreHas(node1, append(vm.Prefixes(), other.Prefixes()...)...)
			reflected := func(pref fabric.Preference) {
				if tc.rr != "embedded" { // it lists no routes
					s.reflectedAs(pref, vm.Prefixes()...)
				}
			}
			addresses := []string{"203.0.113.10", "2001:db8:100::10"}
			s.reaches(s.top.Client, addresses...)
			for _, address := range addresses {
				out, errs, code := a.cli("blackhole", address, "--for", "1h")
				require.Zero(t, code, errs)
				assert.Contains(t, out, address+"  web")
			}
			reflected(fabric.Blackholed)
			s.coreDiscards(vm.Prefixes()...)
			s.reaches(s.top.Client, "203.0.113.20", "2001:db8:100::20")

			require.NoError(t, a.Kill())
			a.start()
			a.established()
			reflected(fabric.Blackholed)
			s.coreDiscards(vm.Prefixes()...)
			for _, address := range addresses {
				s.reachesNot(address)
				out, errs, code := a.cli("blackhole", address, "--lift")
				require.Zero(t, code, out, errs)
			}
			s.coreHas(node1, vm.Prefixes()...)
			s.reaches(s.top.Client, addresses...)
			_, errs, code := a.cli("blackhole", addresses[0], "--for", "2s")
			require.Zero(t, code, errs)
			time.Sleep(2 * time.Second)
			reflected(fabric.Normal)
			s.coreHas(node1, vm.Prefixes()...)
			s.reaches(s.top.Client, addresses...)

			_, errs, code = a.cli("blackhole", "203.0.113.99", "--for", "1h")
			assert.Equal(t, 1, code)
			assert.Contains(t, errs, "no guest of node node1 has it")
		})
	}
}
