package frr_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var guest = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

func routes(pref fabric.Preference) []fabric.Route {
	return []fabric.Route{{Prefix: guest[0], Preference: pref}, {Prefix: guest[1], Preference: pref}}
}

// speaker makes a speaker on the lab's node.
func speaker(t *testing.T, lab *labtest.Announcing, client frr.Client) *frr.Speaker {
	t.Helper()
	var s *frr.Speaker
	require.NoError(t, lab.Node.Do(func() (err error) {
		s, err = frr.New(frr.Config{Cluster: lab.Cluster, Node: lab.Cluster.Nodes[0], Client: client})
		return err
	}))
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func startFRR(t *testing.T, lab *labtest.Announcing) *testenv.FRR {
	t.Helper()
	f, err := lab.Node.StartFRR(t.Context(), lab.FRRConf())
	require.NoError(t, err)
	return f
}

// TestConformance runs the speaker's laws on an FRR that takes routes from the
// kernel, with a reflector that hears.
func TestConformance(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		lab := labtest.NewAnnouncing(t)
		f := startFRR(t, lab)
		return speaker(t, lab, f.Client()), lab.Controls(func(t *testing.T) fabric.Speaker { return speaker(t, lab, f.Client()) })
	})
}

func sessions(t *testing.T, s *frr.Speaker) []fabric.Session {
	t.Helper()
	all, err := s.Sessions(t.Context())
	require.NoError(t, err)
	return all
}

// TestLife follows a node whose FRR and reflector end and come back: what is
// announced stays in the kernel, and is told to whoever is there.
func TestLife(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	lab := labtest.NewAnnouncing(t)
	first := startFRR(t, lab)
	client := first.Client()
	s := speaker(t, lab, client)
	require.NoError(t, first.Kill())
	lab.Prepare(t, guest)

	// No FRR.
	require.NoError(t, s.Put(t.Context(), routes(fabric.Fresh)...))
	_, err := s.Sessions(t.Context())
	require.ErrorContains(t, err, "frr: vtysh reaches no daemon of FRR")
	require.Equal(t, []string{err.Error()}, s.Diagnose())

	f := startFRR(t, lab)
	lab.Hears(t, guest...)
	for _, r := range lab.Routes(t) {
		assert.EqualValues(t, 200, r.LocalPref)
		assert.Equal(t, []fabric.Community{{A: 64512, B: 100}}, r.Communities)
		assert.Equal(t, "IGP", r.Origin)
	}
	all := sessions(t, s)
	require.Len(t, all, 1)
	assert.Equal(t, "rr1", all[0].Peer)
	assert.Equal(t, lab.Cluster.Reflectors[0].Address.String(), all[0].Address)
	assert.Equal(t, "established", all[0].State)
	assert.EqualValues(t, 2, all[0].Advertised)
	assert.WithinDuration(t, time.Now(), all[0].Since, time.Minute)
	assert.Empty(t, s.Diagnose())

	// bgpd alone ends.
	require.NoError(t, f.BGP.Kill())
	_, err = s.Sessions(t.Context())
	require.ErrorContains(t, err, "FRR's bgpd does not run")

	// All of it ends, and misses a change.
	require.NoError(t, f.Kill())
	require.NoError(t, s.Remove(t.Context(), guest[0]))
	startFRR(t, lab)
	lab.Hears(t, guest[1])
	require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...))
	lab.Hears(t, guest...)

	require.NoError(t, lab.Reflector.Kill())
	require.Eventually(t, func() bool { return sessions(t, s)[0].State != "established" }, time.Minute, 50*time.Millisecond)
	lab.StartReflector(t)
	lab.Hears(t, guest...)
}

// TestPreferenceWithoutGap: a guest that moves is never withdrawn.
func TestPreferenceWithoutGap(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	lab := labtest.NewAnnouncing(t)
	f := startFRR(t, lab)
	s := speaker(t, lab, f.Client())
	lab.ChangesPreference(t, func(p fabric.Preference) { require.NoError(t, s.Put(t.Context(), routes(p)...)) }, guest)
	require.NoError(t, s.Remove(t.Context(), guest...))
	lab.Hears(t)
	assert.Positive(t, lab.Withdrawals(t), "the reflector counts them")
}

// TestPortEndsUnannounced: what the kernel drops with a port, or without a word
// to anybody, is withdrawn.
func TestPortEndsUnannounced(t *testing.T) {
	labtest.Need(t, "bird", "frr")
	lab := labtest.NewAnnouncing(t)
	f := startFRR(t, lab)
	s := speaker(t, lab, f.Client())
	lab.PortEnds(t, func() { require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...)) }, guest)
}

// TestDiagnose: an FRR that is not set up as it must be is told of.
func TestDiagnose(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird", "frr")
	lab := labtest.NewAnnouncing(t)
	lab.Cluster.Reflectors = append(lab.Cluster.Reflectors, fabric.RR{Name: "rr2", Address: testenv.Underlay4(12), ASN: lab.Cluster.ASN})
	conf := lab.FRRConf()
	last := strings.LastIndex(conf, "  redistribute kernel")
	f, err := lab.Node.StartFRR(t.Context(), conf[:last]+conf[last+strings.Index(conf[last:], "\n"):])
	require.NoError(t, err)
	s := speaker(t, lab, f.Client())
	lab.Prepare(t, guest)
	require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...))
	lab.Hears(t, guest[0])
	want := []string{
		"frr sends reflector rr1 (10.10.0.11) 1 of the 2 prefixes that this node announces; it must have redistribute kernel in each family, with a route map that takes metrics below 1024: vmfabric render frr --for node1",
		"frr has no session with reflector rr2 (10.10.0.12); load what this prints: vmfabric render frr --for node1",
	}
	require.Eventually(t, func() bool { return slices.Equal(want, s.Diagnose()) }, time.Minute, 100*time.Millisecond)
}
