package agent_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestReconfigure: requests are judged by the cluster as it is now, and nothing happens to
// a guest that is here.
func TestReconfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.run(func() {
			n.apply(web(), fabric.Live)
			n.apply(db(), fabric.Live)
			n.journal.Take()
			new4, new6 := guest("new", "192.0.2.1"), guest("new", "203.0.113.30 2001:db8:999::1")
			for _, vm := range []fabric.VM{new4, new6} {
				require.ErrorIs(t, n.Apply(t.Context(), vm, fabric.Live), fabric.ErrRefused)
			}
			was, c := *n.Cluster(), *n.Cluster()
			c.Pools = append(slices.Clone(c.Pools),
				fabric.Pool{Name: "more4", Prefix: netip.MustParsePrefix("192.0.2.0/24")}, fabric.Pool{Name: "more6", Prefix: netip.MustParsePrefix("2001:db8:999::/48")})
			require.NoError(t, n.Reconfigure(c))
			for _, vm := range []fabric.VM{new4, new6} {
				n.apply(vm, fabric.Live)
				n.apply(vm, fabric.Absent)
			}
			n.journal.Take()

			c.Pools = c.Pools[1:] // without that of web and db
			require.NoError(t, n.Reconfigure(c))
			time.Sleep(2 * time.Minute)
			n.did()
			n.holds(want{web(), fabric.Live}, want{db(), fabric.Live})
			problems := n.problems()
			require.Len(t, problems, 2)
			assert.Contains(t, problems[0], "guest db: NIC 0: address 203.0.113.20: outside the pools")
			assert.Contains(t, problems[0], "(it keeps what it had until it is detached)")
			n.apply(db(), fabric.Absent)
			assert.Len(t, n.problems(), 1)
			require.ErrorIs(t, n.Apply(t.Context(), db(), fabric.Live), fabric.ErrRefused)
			n.journal.Take()

			require.NoError(t, n.Reconfigure(was))
			assert.Empty(t, n.problems())
			n.did()

			c.Nodes = nil
			require.ErrorContains(t, n.Reconfigure(c), "nodes: ")
			c = was
			c.ASN = 0
			require.ErrorContains(t, n.Reconfigure(c), "cluster msk1: asn: ")
			assert.Equal(t, &was, n.Cluster(), "as it was")
		})
	})
}
