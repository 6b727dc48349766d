package fake_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

func web() fabric.VM {
	return fabric.VM{Name: "web", NICs: []fabric.NIC{{
		Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}, Kind: fabric.Tap,
	}}}
}

func webPort() fabric.Port { return web().Ports(&fabric.Cluster{Name: "c1"})[0] }

func TestJournalTellsWhatChangedInOrder(t *testing.T) {
	var j fake.Journal
	d, sp, st := fake.NewDataplane(&j), fake.NewSpeaker(&j), fake.NewStore(&j)
	up := fabric.Desired{VM: web(), State: fabric.Live}
	var routes []fabric.Route
	for _, p := range web().Prefixes() {
		routes = append(routes, fabric.Route{Prefix: p})
	}
	for range 2 { // the second time changes nothing
		require.NoError(t, st.Put(t.Context(), up))
		require.NoError(t, d.Put(t.Context(), webPort()))
		require.NoError(t, sp.Put(t.Context(), routes...))
	}
	for range 2 {
		require.NoError(t, sp.Remove(t.Context(), web().Prefixes()...))
		require.NoError(t, d.Remove(t.Context(), "web_net0"))
		require.NoError(t, st.Delete(t.Context(), "web"))
	}
	assert.Equal(t, []string{
		"store web live", "wire web_net0", "announce 198.51.100.7/32", "announce 2001:db8::7/128",
		"withdraw 198.51.100.7/32", "withdraw 2001:db8::7/128", "unwire web_net0", "forget web",
	}, j.Take())
	assert.Empty(t, j.Lines())
}

func TestTroubleStopsAnEffectBeforeItHappens(t *testing.T) {
	var j fake.Journal
	d := fake.NewDataplane(&j)
	broken := errors.New("no such device")
	for _, effect := range []string{"wire", "wire web_net0"} {
		d.Fail(effect, broken)
		require.ErrorIs(t, d.Put(t.Context(), webPort()), broken)
		d.Fail(effect, nil)
	}
	d.Fail("wire db_net0", broken)
	d.Fail("list ports", broken)
	_, err := d.Actual(t.Context())
	require.ErrorIs(t, err, broken)
	assert.Empty(t, j.Lines())

	release := d.Hang("wire web_net0")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Put(ctx, webPort()) }()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	go func() { done <- d.Put(t.Context(), webPort()) }()
	release()
	release()
	require.NoError(t, <-done)
	assert.Equal(t, []string{"wire web_net0"}, j.Take())
}

func TestRepairIsAnEffectAndMutedEventsAreLost(t *testing.T) {
	var j fake.Journal
	d := fake.NewDataplane(&j)
	require.NoError(t, d.Put(t.Context(), webPort()))
	d.Mute(true)
	d.Break("web_net0", "no route 198.51.100.7/32")
	d.SetCarrier("web_net0", false)
	assert.Empty(t, d.Changed())
	ports, err := d.Actual(t.Context())
	require.NoError(t, err)
	require.Len(t, ports, 1)
	assert.Equal(t, []string{"no route 198.51.100.7/32"}, ports[0].Faults)
	assert.True(t, ports[0].Lost)
	require.NoError(t, d.Put(t.Context(), webPort()))
	assert.Equal(t, []string{"wire web_net0", "wire web_net0"}, j.Take())
}

func TestSourceTellsWhatHappensToGuests(t *testing.T) {
	s := fake.NewSource("libvirt")
	s.Set(web(), fabric.Live)
	s.SetQuietly(fabric.VM{Name: "db"}, fabric.Wired)
	s.Lose()
	first := <-s.Changes()
	assert.Equal(t, fabric.Live, first.Guest.State)
	assert.Equal(t, "libvirt", first.Guest.VM.Origin)
	assert.False(t, first.Guest.Since.IsZero())
	assert.Equal(t, fabric.Change{Lost: true}, <-s.Changes())

	got, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, got, 2)
	assert.Equal(t, "db", got[0].VM.Name)
	s.Set(web(), fabric.Absent)
	assert.Equal(t, fabric.Absent, (<-s.Changes()).Guest.State)
	got, err = s.Guests(t.Context())
	require.NoError(t, err)
	assert.Len(t, got, 1)
}

func TestNodesWriteWhatTheyTell(t *testing.T) {
	journal := &fake.Journal{}
	ends := fake.NewNodes(journal, fabric.Node{Name: "node1"}, fabric.Node{Name: "node2"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- ends["node2"].Serve(ctx, func(context.Context, fabric.Node, fabric.Notice) fabric.Answer { return fabric.Answer{} })
	}()
	ask := func(vm string) error {
		_, err := ends["node1"].Ask(t.Context(), "node2", fabric.Notice{Kind: fabric.Claimed, VM: vm})
		return err
	}
	require.Eventually(t, func() bool { return ask("web") == nil }, 20*time.Second, time.Millisecond)
	require.Equal(t, []string{"node1 tells node2 claimed web"}, journal.Take())

	ends["node2"].Fail("node1 tells node2 claimed web", errors.New("lost"))
	require.EqualError(t, ask("web"), "lost")
	ends["node1"].Cut("node2", true)
	require.ErrorContains(t, ask("db"), "node2: cut off")
	ends["node2"].Cut("node1", false)
	require.NoError(t, ask("db"))
	require.Equal(t, []string{"node1 tells node2 claimed db"}, journal.Take())
	cancel()
	require.NoError(t, <-done)
	require.ErrorContains(t, ask("db"), "no agent listens there")
	require.Empty(t, journal.Take())
}
