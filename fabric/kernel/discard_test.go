package kernel_test

import (
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestDiscard: packets to the address are dropped, those of other guests and those that
// the guest sends are not; the kernel ends it by itself, and pays for nothing afterwards.
func TestDiscard(t *testing.T) {
	lab, d, g, h := countedGuests(t, &kept{})
	bothFamilies(t, func(t *testing.T, v4 bool) {
		web, db := fabric.HostPrefix(guestAddr[v4]), fabric.HostPrefix(second[v4])
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web")
		awaitCounters(t, d, lab.core, client[v4], second[v4], "db")
		hole := []fabric.Blackhole{{Prefix: web, VM: "web", Until: time.Now().Add(time.Hour)}}
		for range 2 {
			require.NoError(t, d.Discard(t.Context(), hole))
		}
		wasWeb, wasDB := traffic(t, d, "web", web), traffic(t, d, "db", db)
		sendUDP(t, lab.core, client[v4], guestAddr[v4], 10, 100)
		sendUDP(t, h, second[v4], guestAddr[v4], 10, 100)
		sendUDP(t, g, guestAddr[v4], client[v4], 10, 100)
		sendUDP(t, lab.core, client[v4], second[v4], 10, 100)
		settled(t, func() bool {
			return traffic(t, d, "db", db).Received.External.Packets == wasDB.Received.External.Packets+10
		})
		isWeb := traffic(t, d, "web", web)
		assert.Equal(t, wasWeb.Received, isWeb.Received, "nothing comes to it")
		assert.Equal(t, wasWeb.Sent.External.Packets+10, isWeb.Sent.External.Packets, "what it sends goes on")

		require.NoError(t, exec.Command("nft", "flush", "ruleset").Run())
		require.NoError(t, d.Discard(t.Context(), hole))
		assert.True(t, there(), "after somebody flushed the tables")

		hole[0].Until = time.Now().Add(1500 * time.Millisecond)
		require.NoError(t, d.Discard(t.Context(), hole))
		awaitCounters(t, d, lab.core, client[v4], guestAddr[v4], "web") // nobody lifts it but the kernel
		require.NoError(t, d.Discard(t.Context(), nil))
		require.NoError(t, d.Discard(t.Context(), nil))
		assert.False(t, there())
	})
	require.NoError(t, d.Remove(t.Context(), "web_net0", "db_net0"))
	require.NoError(t, d.Close())
}

// there reports whether the node has the table that discards packets.
func there() bool {
	return exec.Command("nft", "list", "table", "inet", "vmfabric-blackhole").Run() == nil
}
