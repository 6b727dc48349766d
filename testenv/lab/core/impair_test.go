package core_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestImpair: an impaired path delays and loses packets, and large ones alone if it has an
// MTU; afterwards it is as before.
func TestImpair(t *testing.T) {
	t.Parallel()
	lab, top := labtest.Build(t, core.SmallCluster(2))
	from, to := top.Nodes["node1"], top.Nodes["node2"]
	ping := func(args ...string) error {
		for _, a := range []string{to.Addr4().String(), to.Addr6().String()} {
			if _, err := from.Run(labtest.Soon(t), "ping", append(append([]string{"-n", "-q", "-c1", "-W2"}, args...), a)...); err != nil {
				return err
			}
		}
		return nil
	}
	require.NoError(t, ping("-s1400"))

	const delay = 100 * time.Millisecond
	through, err := from.Probe(to.Addr4(), time.Millisecond)
	require.NoError(t, err)
	undo, err := lab.Impair(to, core.Impairment{Delay: delay, MTU: 1400})
	require.NoError(t, err)
	for _, a := range []netip.Addr{to.Addr4(), to.Addr6()} {
		rtt, err := from.Ping(labtest.Soon(t), a)
		require.NoError(t, err)
		assert.GreaterOrEqual(t, rtt, 2*delay)
	}
	require.NoError(t, ping("-s1300"))
	require.Error(t, ping("-s1400"))
	require.NoError(t, undo())
	r := through.Stop()
	assert.Zero(t, r.Lost, "small packets pass all the time: %v", r)

	undo, err = lab.Impair(to, core.Impairment{Loss: 0.5})
	require.NoError(t, err)
	p, err := from.Probe(to.Addr6(), time.Millisecond)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return p.Received() > 100 }, time.Minute, time.Millisecond)
	r = p.Stop()
	assert.Greater(t, r.Lost, r.Sent/2, "a half of the requests, and a half of the answers")
	assert.Less(t, r.Lost, r.Sent)
	require.NoError(t, undo())
	require.NoError(t, ping("-s1400"))
}
