package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// host is what all ports of the node share: that it forwards, the packet filter,
// the proxies for neighbours, and the underlay.
type host struct {
	ipv6       bool
	underlay   *underlay
	filter     *filter
	proxying   proxying
	conditions *conditions
	features   *features
}

// families lists the address families of this node.
func (h *host) families() []uint8 {
	if !h.ipv6 {
		return []uint8{unix.AF_INET}
	}
	return []uint8{unix.AF_INET, unix.AF_INET6}
}

// protect keeps the node forwarding and the packet filter in force. If arriving is
// nil, the chains of arriving guests stay as they are.
func (h *host) protect(arriving func() map[string][]netip.Prefix) {
	h.proxying.look()
	if err := enableForwarding(); err != nil {
		h.conditions.set("forwarding", "forwarding: "+err.Error())
	} else {
		h.conditions.set("forwarding", "")
	}
	h.keepFilter(arriving)
}

// keepFilter keeps the packet filter in force, and reports an error as a condition.
func (h *host) keepFilter(arriving func() map[string][]netip.Prefix) {
	if err := h.filter.ensure(arriving); err != nil {
		h.conditions.set("filter", fmt.Sprintf("the filter of the ports by nftables is off, a guest can send with another's IPv6 source, and reach the node and the underlay, and one with a firewall is refused: %v", h.whyNoFilter(err)))
	} else {
		h.conditions.set("filter", "")
	}
}

// whyNoFilter returns what the kernel lacks for the filter, where that is why it could not
// be made.
func (h *host) whyNoFilter(err error) error {
	if lack := h.features.lack(filtering...); lack != nil {
		return lack
	}
	return fmt.Errorf("%w; load nf_tables and nft_fib_inet", err)
}

// expectArrivals makes the rules by which the kernel looks up packets from the
// underlay among the ports whose guests are about to arrive. If the underlay has no
// link, there are no rules, and the dataplane reports that.
func (h *host) expectArrivals() error {
	links, err := h.underlay.links()
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	if len(links) == 0 {
		h.conditions.set("underlay", "no link leads to another machine of the cluster: packets for guests that are about to arrive are not taken; see ip route")
	} else {
		h.conditions.set("underlay", "")
	}
	var rules []rule
	for _, name := range links {
		for _, f := range h.families() {
			rules = append(rules, rule{family: f, priority: fabric.ArrivingRule, iif: name, table: fabric.ArrivingTable})
		}
	}
	return h.underlay.rtnl.ensureRules(rules)
}
