package kernel

import (
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// fibFamilies are a prefix and two next hops of each family.
var fibFamilies = map[string]struct {
	prefix netip.Prefix
	via    [2]netip.Addr
}{
	"IPv4": {netip.MustParsePrefix("203.0.113.10/32"), [2]netip.Addr{netip.MustParseAddr("10.10.0.22"), netip.MustParseAddr("10.10.0.23")}},
	"IPv6": {netip.MustParsePrefix("2001:db8:100::10/128"), [2]netip.Addr{netip.MustParseAddr("fd00:10:10::22"), netip.MustParseAddr("fd00:10:10::23")}},
}

// kinds lists what the changes ask of the kernel.
func kinds(changes []fibChange) []netlink.HeaderType {
	all := []netlink.HeaderType{}
	for _, c := range changes {
		all = append(all, c.message.Header.Type)
	}
	return all
}

// TestFIBRoutes: a route that an earlier process left stays until it is settled
// which are wanted; changes are asked for once, and have changes by notifications
// alone.
func TestFIBRoutes(t *testing.T) {
	t.Parallel()
	for name, c := range fibFamilies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newFIBRoutes(148, 4096, signal.New())
			left := r.message(unix.RTM_NEWROUTE, 0, r.key(c.prefix), c.via[0])
			r.load([]netlink.Message{left})
			r.touchAll()
			assert.Empty(t, r.differences(), "the route of an earlier process")

			r.put(c.prefix, c.via[0])
			assert.Empty(t, r.differences(), "the kernel has it")
			r.put(c.prefix, c.via[1])
			changes := r.differences()
			assert.Equal(t, []netlink.HeaderType{unix.RTM_NEWROUTE}, kinds(changes))
			assert.Equal(t, netlink.Replace, changes[0].message.Header.Flags&(netlink.Replace|netlink.Create))
			assert.Empty(t, r.differences(), "asked for already")
			r.apply(changes[0].message)

			r.settle()
			assert.Empty(t, r.differences(), "it was put again")
			r.remove(c.prefix)
			assert.Equal(t, []netlink.HeaderType{unix.RTM_DELROUTE}, kinds(r.differences()))
		})
	}
}

// TestFIBRefusal: a refusal is reported until the kernel takes the route; the first
// one makes the routes be listed anew where a route may have been missed.
func TestFIBRefusal(t *testing.T) {
	t.Parallel()
	for name, c := range fibFamilies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newFIBRoutes(148, 4096, signal.New())
			r.put(c.prefix, c.via[0])
			change := r.differences()[0]
			assert.True(t, r.note(change, &rtnl.Error{Errno: unix.EEXIST}))
			assert.True(t, r.stale)
			assert.Len(t, r.refusals(), 1)

			r.stale = false
			r.retry()
			assert.Equal(t, []netlink.HeaderType{unix.RTM_NEWROUTE}, kinds(r.differences()))
			assert.False(t, r.note(change, &rtnl.Error{Errno: unix.EEXIST}), "not the first one")
			assert.False(t, r.stale)
			assert.False(t, r.note(change, nil))
			assert.Empty(t, r.refusals())
		})
	}
}
