package probe_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/internal/probe"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestEveryRequestIsAccountedFor probes a host that answers, and then one that
// is cut off in the middle.
func TestEveryRequestIsAccountedFor(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	one, err := lab.AddReflector("one", core.Underlay4(31), core.Underlay6(31))
	require.NoError(t, err)
	two, err := lab.AddReflector("two", core.Underlay4(32), core.Underlay6(32))
	require.NoError(t, err)
	for _, to := range []netip.Addr{two.Addr4(), two.Addr6()} {
		_, err := one.Ping(t.Context(), to)
		require.NoError(t, err)
		var p *probe.Prober
		begin := func(count int) {
			require.NoError(t, one.Do(func() (err error) {
				p, err = probe.Start(probe.Config{To: to, Interval: time.Millisecond, Count: count})
				return err
			}))
		}
		begin(300)
		<-p.Sent()
		r := p.Stop()
		assert.Equal(t, 300, r.Sent)
		assert.Equal(t, 300, r.Received)
		assert.Zero(t, r.Lost+r.Duplicates+r.Reordered+r.Refused+r.LongestLoss)
		assert.Greater(t, r.Took, 250*time.Millisecond)

		begin(0)
		require.Eventually(t, func() bool { return p.Received() > 100 }, 10*time.Second, time.Millisecond)
		require.NoError(t, lab.Disconnect(two))
		time.Sleep(200 * time.Millisecond)
		require.NoError(t, lab.Reconnect(two))
		had := p.Received()
		require.Eventually(t, func() bool { return p.Received() > had+100 }, 10*time.Second, time.Millisecond)
		r = p.Stop()
		assert.Equal(t, r.Sent, r.Received+r.Lost)
		assert.Equal(t, r.Lost, r.LongestLoss, "one cut, one run: %+v", r)
		assert.Greater(t, r.LongestLoss, 50)
		assert.Greater(t, r.LongestLossFrom, 99)
		assert.Greater(t, r.LongestGap, 150*time.Millisecond)
		require.Len(t, r.Losses, r.Lost)
		assert.Equal(t, r.LongestLossFrom, r.Losses[0].Seq)
		assert.WithinRange(t, r.GapFrom, r.Began, r.Losses[0].At.Add(time.Millisecond))
		since := r.LostSince(r.Losses[0].At)
		assert.Zero(t, since[0])
		assert.Equal(t, r.Losses[r.Lost-1].At.Sub(r.Losses[0].At), since[r.Lost-1])
		assert.True(t, slices.IsSorted(since))
	}
}

// TestFastRate: four thousand a second of each family at once are sent when they
// are due, and their answers are all heard.
func TestFastRate(t *testing.T) {
	lab := labtest.New(t)
	one, err := lab.AddReflector("one", core.Underlay4(31), core.Underlay6(31))
	require.NoError(t, err)
	two, err := lab.AddReflector("two", core.Underlay4(32), core.Underlay6(32))
	require.NoError(t, err)
	const rate, count = 4000, 8000
	var ps []*probe.Prober
	for _, to := range []netip.Addr{two.Addr4(), two.Addr6()} {
		_, err := one.Ping(t.Context(), to)
		require.NoError(t, err)
		require.NoError(t, one.Do(func() error {
			p, err := probe.Start(probe.Config{To: to, Interval: time.Second / rate, Count: count})
			ps = append(ps, p)
			return err
		}))
	}
	for _, p := range ps {
		<-p.Sent()
		r := p.Stop()
		assert.Equal(t, count, r.Received, "%+v", r)
		assert.Zero(t, r.Lost+r.Unsent+r.Duplicates+r.Reordered)
		nominal := (count - 1) * time.Second / rate
		assert.GreaterOrEqual(t, r.Took, nominal-time.Millisecond)
		assert.LessOrEqual(t, r.Took, nominal+r.Late+50*time.Millisecond, "no later than the latest of them")
		t.Logf("at most %v late, %v to an answer, %v between answers", r.Late, r.MaxRTT, r.LongestGap)
	}
}

// TestRefused: a router that has no route says so.
func TestRefused(t *testing.T) {
	t.Parallel()
	lab := labtest.New(t)
	core, err := lab.AddCore("core", core.CoreAddr4, core.CoreAddr6)
	require.NoError(t, err)
	client, err := lab.AddClient("client", core)
	require.NoError(t, err)
	for _, to := range []string{"203.0.113.10", "2001:db8:100::10"} {
		p, err := client.Probe(netip.MustParseAddr(to), 20*time.Millisecond)
		require.NoError(t, err)
		time.Sleep(500 * time.Millisecond)
		r := p.Abandon()
		assert.Zero(t, r.Received)
		assert.Equal(t, r.Sent, r.Lost)
		assert.Positive(t, r.Refused, to)
	}
}

// TestResultInALine: thousands of losses do not make a log that nobody can read.
func TestResultInALine(t *testing.T) {
	t.Parallel()
	r := probe.Result{Sent: 10, Received: 7, Lost: 3, LongestLoss: 2, LongestGap: time.Second, Losses: []probe.Loss{{Seq: 1}, {Seq: 4}, {Seq: 5}}}
	assert.Equal(t, "10 sent, 3 lost (numbers 1 to 5, at most 2 in a row), 0 not sent, 0 answered twice, 0 out of order, 0 refused, "+
		"longest gap 1s, longest round trip 0s, at most 0s behind the schedule", fmt.Sprintf("%+v", r))
}
