package bird_test

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/testenv"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var guest = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

func routes(pref fabric.Preference) []fabric.Route {
	return []fabric.Route{{Prefix: guest[0], Preference: pref}, {Prefix: guest[1], Preference: pref}}
}

// speaker makes a speaker on the lab's node.
func speaker(t *testing.T, lab *labtest.Announcing, socket string) *bird.Speaker {
	t.Helper()
	var s *bird.Speaker
	require.NoError(t, lab.Node.Do(func() (err error) {
		s, err = bird.New(bird.Config{Cluster: lab.Cluster, Node: lab.Cluster.Nodes[0], Socket: socket})
		return err
	}))
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func startBird(t *testing.T, lab *labtest.Announcing) *testenv.Bird {
	t.Helper()
	b, err := lab.Node.StartBird(t.Context(), lab.BirdConf())
	require.NoError(t, err)
	return b
}

// TestConformance runs the speaker's laws on a BIRD that learns from the
// kernel, with a reflector that hears.
func TestConformance(t *testing.T) {
	labtest.Need(t, "bird")
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		lab := labtest.NewAnnouncing(t)
		b := startBird(t, lab)
		return speaker(t, lab, b.Socket()), lab.Controls(func(t *testing.T) fabric.Speaker { return speaker(t, lab, b.Socket()) })
	})
}

func sessions(t *testing.T, s *bird.Speaker) []fabric.Session {
	t.Helper()
	all, err := s.Sessions(t.Context())
	require.NoError(t, err)
	return all
}

// TestLife follows a node whose BIRD and reflector end and come back: what is
// announced stays in the kernel, and is told to whoever is there.
func TestLife(t *testing.T) {
	labtest.Need(t, "bird")
	lab := labtest.NewAnnouncing(t)
	socket := filepath.Join(lab.Node.Dir(), "bird.ctl")
	s := speaker(t, lab, socket)
	lab.Prepare(t, guest)

	// No BIRD yet.
	require.NoError(t, s.Put(t.Context(), routes(fabric.Fresh)...))
	_, err := s.Sessions(t.Context())
	require.ErrorContains(t, err, "bird: BIRD has no control socket at "+socket)
	require.Equal(t, []string{err.Error()}, s.Diagnose())

	b := startBird(t, lab)
	require.Equal(t, socket, b.Socket())
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

	// BIRD ends, and misses a change.
	require.NoError(t, b.Kill())
	_, err = s.Sessions(t.Context())
	require.ErrorContains(t, err, "BIRD does not run")
	require.NoError(t, s.Remove(t.Context(), guest[0]))
	startBird(t, lab)
	lab.Hears(t, guest[1])
	require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...))
	lab.Hears(t, guest...)

	require.NoError(t, lab.Reflector.Kill())
	require.Eventually(t, func() bool { return sessions(t, s)[0].State != "established" }, time.Minute, 10*time.Millisecond)
	lab.StartReflector(t)
	lab.Hears(t, guest...)
}

// TestPreferenceWithoutGap: a guest that moves is never withdrawn.
func TestPreferenceWithoutGap(t *testing.T) {
	labtest.Need(t, "bird")
	lab := labtest.NewAnnouncing(t)
	b := startBird(t, lab)
	s := speaker(t, lab, b.Socket())
	lab.ChangesPreference(t, func(p fabric.Preference) { require.NoError(t, s.Put(t.Context(), routes(p)...)) }, guest)
	require.NoError(t, s.Remove(t.Context(), guest...))
	lab.Hears(t)
	assert.Positive(t, lab.Withdrawals(t), "the reflector counts them")
}

// TestPortEndsUnannounced: what the kernel drops with a port, or without a word
// to anybody, is withdrawn.
func TestPortEndsUnannounced(t *testing.T) {
	labtest.Need(t, "bird")
	lab := labtest.NewAnnouncing(t)
	b := startBird(t, lab)
	s := speaker(t, lab, b.Socket())
	lab.PortEnds(t, func() { require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...)) }, guest)
}

// TestDiagnose: a BIRD that is not set up as it must be is told of.
func TestDiagnose(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "bird")
	lab := labtest.NewAnnouncing(t)
	lab.Cluster.Reflectors = append(lab.Cluster.Reflectors, fabric.RR{Name: "rr2", Address: testenv.Underlay4(12), ASN: lab.Cluster.ASN})
	b, err := lab.Node.StartBird(t.Context(), strings.ReplaceAll(lab.BirdConf(), "protocol kernel k6 { learn;", "protocol kernel k6 {"))
	require.NoError(t, err)
	s := speaker(t, lab, b.Socket())
	lab.Prepare(t, guest)
	require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...))
	lab.Hears(t, guest[0])
	want := []string{
		"bird sends reflector rr1 (10.10.0.11) 1 of the 2 prefixes that this node announces; it must have a kernel protocol of each family that learns routes of protocol 147 with metrics below 1024: vmfabric render bird --for node1",
		"bird has no session with reflector rr2 (10.10.0.12); load what this prints: vmfabric render bird --for node1",
	}
	require.Eventually(t, func() bool { return slices.Equal(want, s.Diagnose()) }, time.Minute, 100*time.Millisecond)
}
