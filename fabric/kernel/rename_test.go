package kernel_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestFormerNames: a port of before, whose name begins with '-', is the same port
// under its name of now, in use as it was; nobody else's link is touched.
func TestFormerNames(t *testing.T) {
	newMoveLab(t)
	const vm = "база-1"
	former, name := fabric.FormerPortName(vm, 0), fabric.PortName(vm, 0)
	require.Equal(t, "-1c5gcdxv_net0", former)
	p := port(vm, fabric.NIC{Addresses: addrs("203.0.113.10", "2001:db8:100::10")})
	p.Name = former
	d := open(t)
	require.NoError(t, d.Put(t.Context(), p))
	plug(t, nil, former)
	before := link(t, former).Attrs().Index

	other := port(vm, fabric.NIC{Addresses: addrs("203.0.113.11")})
	other.Name, other.Cluster, other.Index = fabric.FormerPortName(vm, 1), "another", 1
	d2 := openFor(t, "another")
	require.NoError(t, d2.Put(t.Context(), other))

	d = open(t)
	p.Name = name
	assert.Equal(t, before, link(t, name).Attrs().Index)
	require.NoError(t, d.Put(t.Context(), p))
	require.Eventually(t, func() bool {
		ports, err := d.Actual(t.Context())
		require.NoError(t, err)
		return len(ports) == 1 && ports[0].Name == name && ports[0].Carrier && len(ports[0].Faults) == 0
	}, 20*time.Second, 5*time.Millisecond)
	assert.NotNil(t, link(t, other.Name), "another cluster's")
	require.NoError(t, d.Remove(t.Context(), name))
	_, err := netlink.LinkByIndex(before)
	require.Error(t, err)
}
