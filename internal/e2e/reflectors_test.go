package e2e

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestMainAndBackup kills reflectors under a probe of 1,000 packets a second:
// first one of the two, which nobody notices; then the other, whose routes stay
// at the core gateway for the graceful restart time and then go; and starts both
// again, of which the routes that are there notice nothing either.
func TestMainAndBackup(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		rr, core string
		speakers map[string]string
	}{
		{"bird", "bird", nil},
		{"frr", "frr", nil},
		{"embedded", "bird", map[string]string{"node1": "bird"}},
		{"bird", "frr", map[string]string{"node1": "frr"}},
	} {
		name := fmt.Sprintf("%s reflectors, %s core", tc.rr, tc.core)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const restart = 20 * time.Second
			s := start(t, options{rr: tc.rr, core: tc.core, speakers: tc.speakers, resumes: true, change: func(c *fabric.Cluster) {
				c.Timers.Hold, c.Timers.Restart = 6*time.Second, restart
			}})
			vm := veth("web", "203.0.113.10", "2001:db8:100::10")
			s.run("node1", vm)
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.checkCommunities(vm.Prefixes()) // from both
			s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")

			withdrawn := s.watchWithdrawals()
			for _, r := range s.underProbe(vm, time.Millisecond, func() {
				require.NoError(t, s.rr["rr1"].Kill())
				time.Sleep(2 * time.Second)
			}) {
				assert.Zero(t, r.Lost, "one of two is killed: %+v", r)
			}
			probed := s.underProbe(vm, time.Millisecond, func() {
				require.NoError(t, s.rr["rr2"].Kill())
				time.Sleep(2 * time.Second)
				// Both come back within the time.
				s.startReflectors()
				s.eventually("both sessions of the core gateway are back", func() error {
					n, err := s.core.Established(soon(t))
					if err == nil && n < 2 {
						err = fmt.Errorf("%d are", n)
					}
					return err
				})
				time.Sleep(3 * time.Second) // for what comes late
			})
			most := 0
			switch {
			case tc.rr == "bird" && tc.core == "frr":
				// FRR drops what it has from a BIRD that resumes, until that tells it
				// again: docs/core.md says so.
				most = math.MaxInt
			case tc.core == "frr":
				// FRR takes an IPv6 route away to replace it; an outage would be thousands.
				most = 500
			default:
				assert.Empty(t, withdrawn(), "no flap")
			}
			for _, r := range probed {
				assert.LessOrEqual(t, r.Lost, most, "both are killed and come back: %+v", r)
			}
			if tc.rr == "bird" {
				time.Sleep(12 * time.Second) // until it has resumed: who dies twice loses all
			}
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.checkCommunities(vm.Prefixes())

			routesOutliveReflectors(s, vm, restart)
		})
	}
}

// routesOutliveReflectors that are gone for good: for the restart time, not for ever.
func routesOutliveReflectors(s *system, vm fabric.VM, restart time.Duration) {
	s.t.Helper()
	gone := time.Now()
	require.NoError(s.t, s.rr["rr1"].Kill())
	require.NoError(s.t, s.rr["rr2"].Kill())
	for time.Since(gone) < restart/2 {
		s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
		time.Sleep(200 * time.Millisecond)
	}
	for _, p := range vm.Prefixes() {
		s.eventually(p.String()+" goes after the restart time", func() error {
			if r, there, err := s.top.Core.Route(p); err != nil || there {
				return fmt.Errorf("core has %v %w", r, err)
			}
			return nil
		})
	}
	s.t.Logf("both gone: the routes stayed for %v", time.Since(gone).Round(100*time.Millisecond))
}

// underProbe does something while the client probes a guest's addresses.
func (s *system) underProbe(vm fabric.VM, every time.Duration, do func()) []core.ProbeResult {
	s.t.Helper()
	var probes []*core.Prober
	for _, a := range vm.NICs[0].Addresses {
		p, err := s.top.Client.Probe(a, every)
		require.NoError(s.t, err)
		probes = append(probes, p)
	}
	do()
	var results []core.ProbeResult
	for _, p := range probes {
		results = append(results, p.Stop())
	}
	return results
}

// TestDeadNode cuts a node off in silence. With BFD the reflectors notice in a
// part of a second, without it after the hold time.
func TestDeadNode(t *testing.T) {
	t.Parallel()
	for _, rr := range []string{"bird", "frr", "embedded"} {
		for _, bfd := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, BFD %v", rr, bfd), func(t *testing.T) {
				t.Parallel()
				s := start(t, options{rr: rr, change: func(c *fabric.Cluster) {
					for i := range c.Reflectors {
						c.Reflectors[i].BFD = bfd
					}
				}})
				vm := veth("web", "203.0.113.10", "2001:db8:100::10")
				s.run("node1", vm)
				withdrawn := s.watchWithdrawals() // also of a session that goes before it is cut, on a busy machine
				s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
				time.Sleep(2 * time.Second) // BFD comes up after BGP does
				s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
				began := time.Now()
				require.NoError(t, s.lab.Disconnect(s.top.Nodes["node1"]))
				s.eventually("its routes are gone", func() error {
					for _, p := range vm.Prefixes() {
						if r, there, err := s.top.Core.Route(p); err != nil || there {
							return fmt.Errorf("core has %v %w", r, err)
						}
					}
					return nil
				})
				took := time.Since(began)
				t.Logf("noticed after %v", took.Round(10*time.Millisecond))
				hold := s.cluster.Timers.Hold
				if bfd {
					assert.Less(t, took, hold/2, "BFD is not what noticed it")
				} else {
					assert.Greater(t, took, hold/2, "what noticed it?")
				}
				s.eventually("it is told of", func() error {
					if len(withdrawn()) == 0 {
						return errors.New("the kernel tells of no route that went")
					}
					return nil
				})
				require.NoError(t, s.lab.Reconnect(s.top.Nodes["node1"]))
				s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			})
		}
	}
}
