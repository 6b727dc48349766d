package main

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

// eastWest makes the speaker put the routes to other nodes' guests into peers.
// Without east-west, peers only removes the routes that an earlier agent left.
func eastWest(c fabric.Cluster, peers *kernel.FIB) ([]gobgp.Option, error) {
	if !c.EastWest {
		return nil, peers.Close()
	}
	return []gobgp.Option{gobgp.WithLearner(peers)}, nil
}

// elsewhere says through which node the kernel reaches an address that no guest
// here has, if it has learned a route.
func elsewhere(a netip.Addr, steps []step) []step {
	if len(steps) != 1 || steps[0].Good {
		return steps
	}
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: fabric.PeerProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return steps
	}
	longest, text := -1, ""
	for _, r := range routes {
		if r.Dst == nil || !r.Dst.Contains(a.AsSlice()) {
			continue
		}
		if bits, _ := r.Dst.Mask.Size(); bits > longest {
			longest, text = bits, fmt.Sprintf("on another node: %s goes to %s directly, as the reflectors say (east_west)", r.Dst, r.Gw)
		}
	}
	if longest < 0 {
		return steps
	}
	return []step{{"guest", true, text}}
}
