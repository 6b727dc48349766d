package conformance

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// StoreControls has the functions that the store's suite needs beside the store.
type StoreControls struct {
	// Again returns a second store over the same state, as after a restart; the
	// suite does not use the first any more.
	Again func(t *testing.T) fabric.Store
	// Damage makes the state of a guest unreadable.
	Damage func(t *testing.T, vm string)
}

// Store runs the laws of [fabric.Store] as subtests. Each call of start makes an
// empty store, which lives until its t ends.
func Store(t *testing.T, start func(t *testing.T) (fabric.Store, StoreControls)) {
	for _, law := range []struct {
		name string
		hold func(*testing.T, fabric.Store, StoreControls)
	}{
		{"a guest comes back as it was", storeRoundTrip},
		{"Put is idempotent and replaces", storeReplace},
		{"Delete of what is absent succeeds", storeDeleteAbsent},
		{"half a guest is refused", storeRefuse},
		{"a second instance has it all", storeAgain},
		{"what cannot be read is an error beside the rest", storeDamage},
		{"different guests at the same time", storeConcurrent},
		{"a drain comes back as it was", storeDrain},
		{"reports of moves come back as they were", storeMoves},
		{"guests that are gone for good come back as they were", storeGone},
		{"blackholes come back as they were", storeBlackholes},
		{"any state is reached from any other", storeWalk},
	} {
		t.Run(law.name, func(t *testing.T) {
			s, c := start(t)
			requireGuests(t, s)
			law.hold(t, s, c)
		})
	}
}

func desired(vm string, state fabric.State) fabric.Desired {
	return fabric.Desired{
		VM: fabric.VM{Name: vm, UUID: "6b9c1c3e-7b0a-4b61-9c59-0d6f8a3f2d11", Origin: "libvirt", NICs: []fabric.NIC{{
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
			Routes:    prefixes("198.51.100.0/29", "2001:db8:200::/64"),
			Kind:      fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 1}, Queues: 4, MTU: 9000,
		}, {
			Addresses: []netip.Addr{netip.MustParseAddr("2001:db8:100::11")}, Kind: fabric.Adopt,
		}}, NoDHCP: true, NoRA: true, NoMetadata: true, Isolated: true, Firewall: &fabric.Firewall{
			Ingress: fabric.Filter{Drop: true, Rules: []fabric.Rule{{
				Protocol: fabric.TCP, Ports: []fabric.PortRange{{First: 22, Last: 22}, {First: 8000, Last: 8100}}, Peers: prefixes("198.51.100.0/24", "2001:db8:5::/48"),
			}, {Protocol: fabric.ICMP}}},
			Egress: fabric.Filter{Rules: []fabric.Rule{{Drop: true, Protocol: fabric.TCP, Ports: []fabric.PortRange{{First: 25, Last: 25}}}}}, Stateful: true,
		}},
		State: state, Incoming: state == fabric.Wired, Since: time.Date(2026, 11, 22, 12, 3, 4, 5678, time.UTC), Boot: "boot", Run: "7",
	}
}

func requireGuests(t *testing.T, s fabric.Store, want ...fabric.Desired) {
	t.Helper()
	got, err := s.All(t.Context())
	require.NoError(t, err)
	require.ElementsMatch(t, want, got)
}

func storeRoundTrip(t *testing.T, s fabric.Store, _ StoreControls) {
	plain := fabric.Desired{VM: fabric.VM{Name: "plain"}, State: fabric.Absent, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	want := []fabric.Desired{plain}
	require.NoError(t, s.Put(t.Context(), plain))
	for _, name := range []string{
		"web", "WEB", "my server", "Мой сервер", ".", "..", "a:b", "%41", "A", "web.json", "-rf", "~",
		strings.Repeat("n", fabric.MaxNameBytes), strings.Repeat("я", fabric.MaxNameBytes/2),
	} {
		d := desired(name, fabric.Live)
		require.NoError(t, s.Put(t.Context(), d), name)
		want = append(want, d)
	}
	requireGuests(t, s, want...)
}

func storeReplace(t *testing.T, s fabric.Store, _ StoreControls) {
	for _, state := range []fabric.State{fabric.Wired, fabric.Live, fabric.Live, fabric.Wired, fabric.Absent} {
		require.NoError(t, s.Put(t.Context(), desired("web", state)))
		requireGuests(t, s, desired("web", state))
	}
}

func storeDeleteAbsent(t *testing.T, s fabric.Store, _ StoreControls) {
	require.NoError(t, s.Delete(t.Context(), "web"))
	require.NoError(t, s.Put(t.Context(), desired("web", fabric.Live)))
	require.NoError(t, s.Put(t.Context(), desired("db", fabric.Live)))
	require.NoError(t, s.Delete(t.Context(), "web"))
	require.NoError(t, s.Delete(t.Context(), "web"), "once more")
	requireGuests(t, s, desired("db", fabric.Live))
	require.NoError(t, s.Put(t.Context(), desired("web", fabric.Wired)))
	requireGuests(t, s, desired("db", fabric.Live), desired("web", fabric.Wired))
}

func storeRefuse(t *testing.T, s fabric.Store, _ StoreControls) {
	require.Error(t, s.Put(t.Context(), desired("web", 0)), "a state that was forgotten")
	require.Error(t, s.Put(t.Context(), desired("", fabric.Live)), "no name")
	requireGuests(t, s)
}

func storeAgain(t *testing.T, s fabric.Store, c StoreControls) {
	need(t, c.Again != nil, "Again")
	require.NoError(t, s.Put(t.Context(), desired("web", fabric.Wired)))
	require.NoError(t, s.Put(t.Context(), desired("web", fabric.Live)))
	require.NoError(t, s.Put(t.Context(), desired("db", fabric.Wired)))
	require.NoError(t, s.Delete(t.Context(), "db"))
	second := c.Again(t)
	requireGuests(t, second, desired("web", fabric.Live))
	require.False(t, second.Fresh())
	require.Empty(t, second.Diagnose(t.Context()))
	require.NoError(t, second.Delete(t.Context(), "web"))
	third := c.Again(t)
	requireGuests(t, third)
	require.False(t, third.Fresh(), "that no guest is wanted is a state, too")
}

func storeDamage(t *testing.T, s fabric.Store, c StoreControls) {
	need(t, c.Damage != nil, "Damage")
	for _, vm := range []string{"a", "b", "c", "d"} {
		require.NoError(t, s.Put(t.Context(), desired(vm, fabric.Live)))
	}
	c.Damage(t, "b")
	c.Damage(t, "d")
	got, err := s.All(t.Context())
	require.Error(t, err)
	assert.Contains(t, err.Error(), "b")
	assert.Contains(t, err.Error(), "d")
	assert.ElementsMatch(t, []fabric.Desired{desired("a", fabric.Live), desired("c", fabric.Live)}, got)

	require.NoError(t, s.Put(t.Context(), desired("b", fabric.Wired)), "a new Put heals")
	require.NoError(t, s.Delete(t.Context(), "d"), "and so does Delete")
	requireGuests(t, s, desired("a", fabric.Live), desired("b", fabric.Wired), desired("c", fabric.Live))
}

func storeConcurrent(t *testing.T, s fabric.Store, _ StoreControls) {
	var wg sync.WaitGroup
	var want []fabric.Desired
	for i := range 8 {
		vm := fmt.Sprint("g", i)
		want = append(want, desired(vm, fabric.Live))
		wg.Go(func() {
			for range 10 {
				assert.NoError(t, s.Put(t.Context(), desired(vm, fabric.Wired)))
				_, err := s.All(t.Context())
				assert.NoError(t, err)
				assert.NoError(t, s.Delete(t.Context(), vm))
			}
			assert.NoError(t, s.Put(t.Context(), desired(vm, fabric.Live)))
		})
	}
	wg.Wait()
	requireGuests(t, s, want...)
}

func storeWalk(t *testing.T, s fabric.Store, _ StoreControls) {
	w, l := fabric.Wired, fabric.Live
	states := map[string]map[string]fabric.State{
		"nothing": {}, "web wired": {"web": w}, "web live": {"web": l}, "db live": {"db": l},
		"both": {"web": l, "db": w}, "many": {"web": w, "db": l, "mail": l, "ns": w},
	}
	walk(t, states, func(t *testing.T, from, to map[string]fabric.State) {
		for vm := range from {
			if _, stays := to[vm]; !stays {
				require.NoError(t, s.Delete(t.Context(), vm))
			}
		}
		var want []fabric.Desired
		for _, vm := range slices.Sorted(maps.Keys(to)) {
			require.NoError(t, s.Put(t.Context(), desired(vm, to[vm])))
			want = append(want, desired(vm, to[vm]))
		}
		requireGuests(t, s, want...)
	})
}

// storeDrain checks that a store keeps a drain.
func storeDrain(t *testing.T, s fabric.Store, c StoreControls) {
	requireDrained := func(want time.Time) {
		t.Helper()
		got, err := s.Drained(t.Context())
		require.NoError(t, err)
		require.True(t, want.Equal(got), "%v, not %v", got, want)
	}
	requireDrained(time.Time{})
	require.NoError(t, s.SetDrained(t.Context(), time.Time{}))
	require.NoError(t, s.Put(t.Context(), desired("web", fabric.Live)))
	for _, since := range []time.Time{
		time.Date(2026, 11, 22, 12, 3, 4, 5678, time.UTC), time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC),
	} {
		for range 2 {
			require.NoError(t, s.SetDrained(t.Context(), since))
			requireDrained(since)
		}
	}
	requireGuests(t, s, desired("web", fabric.Live))
	if c.Again != nil {
		s = c.Again(t)
		requireDrained(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC))
	}
	for range 2 {
		require.NoError(t, s.SetDrained(t.Context(), time.Time{}))
		requireDrained(time.Time{})
	}
	if c.Again != nil {
		s = c.Again(t)
		requireDrained(time.Time{})
	}
}

// storeGone checks that a store keeps which guests are gone for good.
func storeGone(t *testing.T, s fabric.Store, c StoreControls) {
	for _, guests := range [][]fabric.VM{nil, {desired("web", fabric.Live).VM}, {desired("web", fabric.Live).VM, {Name: "db"}}, nil} {
		require.NoError(t, s.KeepGone(t.Context(), guests))
		if c.Again != nil {
			s = c.Again(t)
		}
		kept, err := s.KeptGone(t.Context())
		require.NoError(t, err)
		require.Equal(t, guests, kept)
	}
}

// storeBlackholes checks that a store keeps the blackholes.
func storeBlackholes(t *testing.T, s fabric.Store, c StoreControls) {
	until := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	b4 := fabric.Blackhole{Prefix: netip.MustParsePrefix("203.0.113.10/32"), VM: "web", Since: until.Add(-time.Hour), Until: until}
	b6 := fabric.Blackhole{Prefix: netip.MustParsePrefix("2001:db8:100::10/128"), VM: "web", Since: until.Add(-time.Hour), Until: until}
	for _, all := range [][]fabric.Blackhole{nil, {b4}, {b4, b6}, nil} {
		require.NoError(t, s.KeepBlackholes(t.Context(), all))
		if c.Again != nil {
			s = c.Again(t)
		}
		kept, err := s.KeptBlackholes(t.Context())
		require.NoError(t, err)
		require.Equal(t, all, kept)
	}
}

// storeMoves checks that a store keeps the reports of moves.
func storeMoves(t *testing.T, s fabric.Store, c StoreControls) {
	kept, err := s.KeptMoves(t.Context())
	require.NoError(t, err)
	require.Empty(t, kept)
	at := time.Date(2026, 11, 22, 12, 3, 4, 5678, time.UTC)
	for n := range 3 {
		moves := []fabric.Move{{
			VM: "web", UUID: "aaaaaaaa-0000-4000-8000-000000000001", Prefixes: desired("web", fabric.Live).VM.Prefixes(),
			From: "node1", To: "node2", Outcome: "moved", Expected: at, Resent: n, Seen: map[string]time.Time{"rr1": at},
		}, {VM: "db", Outcome: "under way"}}
		require.NoError(t, s.KeepMoves(t.Context(), moves))
		if c.Again != nil {
			s = c.Again(t)
		}
		kept, err := s.KeptMoves(t.Context())
		require.NoError(t, err)
		require.Equal(t, moves, kept)
	}
	require.NoError(t, s.KeepMoves(t.Context(), nil))
	kept, err = s.KeptMoves(t.Context())
	require.NoError(t, err)
	require.Empty(t, kept)
}
