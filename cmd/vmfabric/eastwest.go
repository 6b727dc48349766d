package main

import (
	"fmt"
	"net/netip"
	"slices"

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

// elsewhere says through which node the kernel reaches an address, if it has learned a
// route. That the steps name no guest means that a reflector has a route to nobody.
func elsewhere(a netip.Addr, steps []fabric.Step) []fabric.Step {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: fabric.PeerProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil
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
		return nil
	}
	if !slices.ContainsFunc(steps, func(s fabric.Step) bool { return s.Step == "guest" && s.Good }) {
		return []fabric.Step{{Step: fabric.Disagreement, Text: text + ", and no node that answers has a guest with it"}}
	}
	return []fabric.Step{{Step: "path", Good: true, Text: text}}
}
