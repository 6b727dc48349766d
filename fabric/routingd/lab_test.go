package routingd_test

import (
	"fmt"
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
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/fabric/routingd"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var guest = []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}

func routes(pref fabric.Preference) []fabric.Route {
	return []fabric.Route{{Prefix: guest[0], Preference: pref}, {Prefix: guest[1], Preference: pref}}
}

// daemon is a daemon on the node of a lab, which may run or not.
type daemon interface {
	speaker(t *testing.T) *routingd.Speaker
	start(t *testing.T, conf string)
	// end ends the daemon, the part last without which it has no sessions, and
	// returns the speaker's error then.
	end(t *testing.T) (reason string)
	conf() string
	withoutIPv6() string // conf without what takes IPv6 routes from the kernel
	learns() string      // what must be in it, as Diagnose has it
	absent() string      // the speaker's error when the daemon was not started
}

type birdDaemon struct {
	lab     *labtest.Announcing
	running *routers.Bird
}

func (d *birdDaemon) socket() string { return filepath.Join(d.lab.Node.Dir(), "bird.ctl") }

func (d *birdDaemon) speaker(t *testing.T) *routingd.Speaker {
	t.Helper()
	return on(t, d.lab.Node, func() (*routingd.Speaker, error) {
		return bird.New(t.Context(), bird.Config{Cluster: d.lab.Cluster, Node: d.lab.Cluster.Nodes[0], Socket: d.socket()})
	})
}

func (d *birdDaemon) start(t *testing.T, conf string) {
	t.Helper()
	var err error
	d.running, err = routers.StartBird(t.Context(), d.lab.Node, conf)
	require.NoError(t, err)
	require.Equal(t, d.socket(), d.running.Socket())
}

func (d *birdDaemon) end(t *testing.T) string {
	t.Helper()
	require.NoError(t, d.running.Kill())
	return "bird: BIRD does not run"
}

func (d *birdDaemon) conf() string   { return d.lab.BirdConf() }
func (d *birdDaemon) absent() string { return "bird: BIRD has no control socket at " + d.socket() }

func (d *birdDaemon) withoutIPv6() string {
	return strings.ReplaceAll(d.conf(), "protocol kernel k6 { learn;", "protocol kernel k6 {")
}

func (d *birdDaemon) learns() string {
	return "a kernel protocol of each family that learns routes of protocol 147 with metrics below 1024"
}

type frrDaemon struct {
	lab     *labtest.Announcing
	running *routers.FRR
}

func (d *frrDaemon) speaker(t *testing.T) *routingd.Speaker {
	t.Helper()
	if d.running == nil { // how it is asked is known of one that was started
		d.start(t, d.conf())
		require.NoError(t, d.running.Kill())
	}
	return on(t, d.lab.Node, func() (*routingd.Speaker, error) {
		return frr.New(t.Context(), frr.Config{Cluster: d.lab.Cluster, Node: d.lab.Cluster.Nodes[0], Client: d.running.Client()})
	})
}

func (d *frrDaemon) start(t *testing.T, conf string) {
	t.Helper()
	if d.running != nil {
		require.NoError(t, d.running.Kill(), "what is left of it")
	}
	var err error
	d.running, err = routers.StartFRR(t.Context(), d.lab.Node, conf)
	require.NoError(t, err)
}

func (d *frrDaemon) end(t *testing.T) string {
	t.Helper()
	require.NoError(t, d.running.BGP.Kill())
	return "frr: FRR's bgpd does not run"
}

func (d *frrDaemon) conf() string   { return d.lab.FRRConf() }
func (d *frrDaemon) absent() string { return "frr: vtysh reaches no daemon of FRR" }

func (d *frrDaemon) withoutIPv6() string {
	conf := d.conf()
	last := strings.LastIndex(conf, "  redistribute kernel")
	return conf[:last] + conf[last+strings.Index(conf[last:], "\n"):]
}

func (d *frrDaemon) learns() string {
	return "redistribute kernel in each family, with a route map that takes metrics below 1024"
}

// on makes a speaker on the lab's node.
func on(t *testing.T, node *core.Host, make func() (*routingd.Speaker, error)) *routingd.Speaker {
	t.Helper()
	var s *routingd.Speaker
	require.NoError(t, node.Do(func() (err error) {
		s, err = make()
		return err
	}))
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	labtest.Running(t, s)
	return s
}

// overEach runs a test over a daemon of each kind, which is not started.
func overEach(t *testing.T, test func(t *testing.T, lab func(*testing.T) (*labtest.Announcing, daemon))) {
	t.Run("bird", func(t *testing.T) {
		labtest.Need(t, "bird")
		test(t, func(t *testing.T) (*labtest.Announcing, daemon) {
			lab := labtest.NewAnnouncing(t)
			return lab, &birdDaemon{lab: lab}
		})
	})
	t.Run("frr", func(t *testing.T) {
		labtest.Need(t, "bird", "frr")
		test(t, func(t *testing.T) (*labtest.Announcing, daemon) {
			lab := labtest.NewAnnouncing(t)
			return lab, &frrDaemon{lab: lab}
		})
	})
}

func sessions(t *testing.T, s *routingd.Speaker) []fabric.Session {
	t.Helper()
	all, err := s.Sessions(t.Context())
	require.NoError(t, err)
	return all
}

// TestConformance runs the speaker's laws on a daemon that takes routes from the
// kernel, with a reflector.
func TestConformance(t *testing.T) {
	overEach(t, func(t *testing.T, over func(*testing.T) (*labtest.Announcing, daemon)) {
		conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
			lab, d := over(t)
			d.start(t, d.conf())
			return d.speaker(t), lab.Controls(func(t *testing.T) fabric.Speaker { return d.speaker(t) })
		})
	})
}

// TestLife follows a node whose daemon and reflector end and come back: the
// announcements stay in the kernel, and a new daemon or reflector gets them.
func TestLife(t *testing.T) {
	overEach(t, func(t *testing.T, over func(*testing.T) (*labtest.Announcing, daemon)) {
		lab, d := over(t)
		s := d.speaker(t)
		lab.Prepare(t, guest)

		// No daemon yet.
		require.NoError(t, s.Put(t.Context(), routes(fabric.Fresh)...))
		_, err := s.Sessions(t.Context())
		require.ErrorContains(t, err, d.absent())
		require.Equal(t, []string{err.Error()}, s.Diagnose(t.Context()))

		d.start(t, d.conf())
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
		assert.Empty(t, s.Diagnose(t.Context()))

		// The daemon ends, and misses a change.
		reason := d.end(t)
		_, err = s.Sessions(t.Context())
		require.ErrorContains(t, err, reason)
		require.NoError(t, s.Remove(t.Context(), guest[0]))
		d.start(t, d.conf())
		lab.Hears(t, guest[1])
		require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...))
		lab.Hears(t, guest...)

		require.NoError(t, lab.Reflector.Kill())
		require.Eventually(t, func() bool { return sessions(t, s)[0].State != "established" }, time.Minute, 50*time.Millisecond)
		lab.StartReflector(t)
		lab.Hears(t, guest...)
	})
}

// TestPreferenceWithoutGap: a guest that moves is never withdrawn.
func TestPreferenceWithoutGap(t *testing.T) {
	overEach(t, func(t *testing.T, over func(*testing.T) (*labtest.Announcing, daemon)) {
		lab, d := over(t)
		d.start(t, d.conf())
		s := d.speaker(t)
		lab.ChangesPreference(t, func(p fabric.Preference) { require.NoError(t, s.Put(t.Context(), routes(p)...)) }, guest)
		require.NoError(t, s.Remove(t.Context(), guest...))
		lab.Hears(t)
		assert.Positive(t, lab.Withdrawals(t), "the reflector counts them")
	})
}

// TestPortEndsUnannounced: what the kernel drops with a port, or without a word
// to anybody, is withdrawn.
func TestPortEndsUnannounced(t *testing.T) {
	overEach(t, func(t *testing.T, over func(*testing.T) (*labtest.Announcing, daemon)) {
		lab, d := over(t)
		d.start(t, d.conf())
		s := d.speaker(t)
		lab.PortEnds(t, func() { require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...)) }, guest)
	})
}

// TestDiagnose: the speaker reports a daemon that is not set up as it must be.
func TestDiagnose(t *testing.T) {
	overEach(t, func(t *testing.T, over func(*testing.T) (*labtest.Announcing, daemon)) {
		lab, d := over(t)
		lab.Cluster.Reflectors = append(lab.Cluster.Reflectors, fabric.RR{Name: "rr2", Address: core.Underlay4(12), ASN: lab.Cluster.ASN})
		d.start(t, d.withoutIPv6())
		s := d.speaker(t)
		lab.Prepare(t, guest)
		require.NoError(t, s.Put(t.Context(), routes(fabric.Normal)...))
		lab.Hears(t, guest[0])
		name := filepath.Base(t.Name())
		want := []string{
			fmt.Sprintf("%s sends reflector rr1 (10.10.0.11) 1 of the 2 prefixes that this node announces; it must have %s", name, d.learns()),
			fmt.Sprintf("%s has no session with reflector rr2 (10.10.0.12); load the configuration that is rendered for this node", name),
		}
		require.Eventually(t, func() bool { return slices.Equal(want, s.Diagnose(t.Context())) }, time.Minute, 100*time.Millisecond)
		for _, p := range guest {
			ads, err := s.Advertisements(t.Context(), p)
			require.NoError(t, err)
			require.Len(t, ads, 2)
			assert.Equal(t, p == guest[0], ads[0].Sent)
			assert.Contains(t, ads[1].Reason, name+" has no session with it")
		}
	})
}

// TestNotificationOutlastsTheSession: why a session ended stays known, with the
// time, while the daemon tries in vain to connect.
func TestNotificationOutlastsTheSession(t *testing.T) {
	overEach(t, func(t *testing.T, over func(*testing.T) (*labtest.Announcing, daemon)) {
		lab, d := over(t)
		s := d.speaker(t)
		d.start(t, d.conf())
		lab.EndIsTold(t, func() fabric.Session { return sessions(t, s)[0] })
	})
}
