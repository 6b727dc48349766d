package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

func lookAtKernel(ctx context.Context, e *examination) (found []Finding) {
	if os.Geteuid() != 0 {
		return unknown("what the kernel can was not tried", nil)
	}
	probed, err := e.Features(ctx)
	if err != nil {
		return unknown("what the kernel can was not tried", err)
	}
	for _, line := range probed.Notes {
		found = append(found, sentence(Note, line))
	}
	for _, line := range probed.Faults {
		f := sentence(Wrong, line)
		if f.WayOut == "" {
			f.WayOut = "see that the kernel has it, and this user may use it: modprobe tun, veth, nf_tables, nft_fib_inet, nfnetlink_log, act_mirred; ls -l /dev/net/tun"
		}
		found = append(found, f)
	}
	return found
}

// lookAtForwarding has the agent try whether guests' packets pass, or else tries it.
func lookAtForwarding(ctx context.Context, e *examination) (found []Finding) {
	var faults []fabric.ForwardingFault
	var err error
	switch {
	case e.status != nil:
		var reply hooks.Reply
		reply, err = hooks.Call(ctx, e.Socket, hooks.Request{Op: hooks.Forwarding})
		faults = reply.Forwarding
	case os.Geteuid() != 0, e.runs():
		faults = kernel.ForwardingOff(e.Root, e.exists("/proc/sys/net/ipv6"))
		found = unknown("whether guests' packets pass this node was not tried", nil)
	default:
		faults, err = e.survey.CheckForwarding(ctx)
	}
	ours := parseSysctls("", e.Settings)
	for _, f := range faults {
		line := sentence(Wrong, f.Text)
		named := func(a assignment) bool { return strings.Contains(f.Text, "setting "+a.name()+" = ") }
		switch {
		case slices.ContainsFunc(ours, named):
			line.fix = func() error { return e.apply(ours) }
		case slices.ContainsFunc(kept, named) && !e.runs():
			line.State, line.WayOut = Note, "the agent turns it on when it starts; whether a filter is in the way was not tried"
		}
		found = append(found, line)
	}
	if err != nil {
		found = append(found, sentence(Unknown, oneline.Of(err.Error())))
	}
	if len(found) == 0 {
		return good("packets of guests pass this node in each family of the pools, as tried with our own")
	}
	return found
}

func lookAtReversePath(_ context.Context, e *examination) []Finding {
	links, err := e.survey.Underlay()
	if err != nil {
		return unknown("the links of the underlay", err)
	}
	return reversePath(e.sysctl("net/ipv4/conf/all/rp_filter"), links)
}

// reversePath weighs rp_filter of all links against that of the links of the underlay:
// the kernel takes the greater.
func reversePath(all string, links []kernel.SurveyLink) (found []Finding) {
	if all == "2" {
		found = append(found, note("net.ipv4.conf.all.rp_filter = 2 loosens the strict filter of the ports", "nothing is to be done: the table inet vmfabric drops forged sources all the same"))
	}
	for _, l := range links {
		if strict := l.ReversePath == 1 && all != "2" || l.ReversePath == 0 && all == "1"; strict && len(links) > 1 {
			found = append(found, wrong(fmt.Sprintf("the underlay has %d links, and %s drops what comes in by it and would be answered by another (rp_filter is 1)", len(links), l.Name),
				fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2, and in a file of /etc/sysctl.d", l.Name)))
		}
	}
	if len(found) == 0 {
		return good("rp_filter suits the ports and the underlay")
	}
	return found
}

func lookAtNeighbours(_ context.Context, e *examination) (found []Finding) {
	ports, err := e.survey.Ports()
	if err != nil {
		return unknown("the ports of this node", err)
	}
	for _, text := range kernel.NeighbourFaults(e.Root, len(ports)) {
		f := sentence(Wrong, text)
		if strings.Contains(text, " holds ") {
			f.fix = func() error { return e.apply(parseSysctls("", e.Settings)) }
		}
		found = append(found, f)
	}
	return found
}

// lookAtTable says whether guests run without the fabric's rules.
func lookAtTable(_ context.Context, e *examination) []Finding {
	ports, err := e.survey.Ports()
	if err == nil && len(ports) == 0 {
		return good("no port needs it")
	}
	has := false
	if err == nil {
		has, err = e.survey.HasFilter()
	}
	switch {
	case err != nil:
		return unknown("the tables inet vmfabric and arp vmfabric", err)
	case has:
		return good("the tables inet vmfabric and arp vmfabric are there")
	}
	f := wrong("ports of guests are here, and the nftables tables inet vmfabric and arp vmfabric are not", "start the agent, which makes them: systemctl start vmfabric")
	if !e.runs() { // a running agent makes them within a second
		f.fix = e.survey.RestoreFilter
	}
	return []Finding{f}
}

// defaultMTU is that of ports and guests for which the cluster file says nothing.
const defaultMTU = 1500

func lookAtMTU(ctx context.Context, e *examination) []Finding {
	links, err := e.survey.Underlay()
	if err != nil {
		return unknown("the links of the underlay", err)
	}
	want := defaultMTU
	if e.cluster != nil && e.cluster.Guests.MTU > 0 {
		want = e.cluster.Guests.MTU
	}
	found := narrow(links, want)
	switch {
	case len(found) > 0:
		return found
	case e.cluster == nil || e.noNode != nil:
		return good("the underlay's links take packets of %d bytes, as guests send them", want)
	}
	if os.Geteuid() != 0 {
		return append(found, unknown("whether large packets get to the core gateways and the reflectors was not tried", nil)...)
	}
	return append(found, e.blackHoles(ctx, want)...)
}

// narrow reports links of the underlay that take less than guests send.
func narrow(links []kernel.SurveyLink, want int) (found []Finding) {
	for _, l := range links {
		if l.MTU < want {
			found = append(found, wrong(fmt.Sprintf("guests send packets of %d bytes, and %s of the underlay takes %d", want, l.Name, l.MTU),
				fmt.Sprintf("ip link set %s mtu %d where the network takes that, or mtu: %d under guests in the cluster file", l.Name, want, l.MTU)))
		}
	}
	return found
}

// blackHoles pings the machines of the cluster that carry guests' packets, with large
// packets and with small ones.
func (e *examination) blackHoles(ctx context.Context, want int) (found []Finding) {
	type machine struct {
		name    string
		address netip.Addr
	}
	var all []machine
	for _, g := range e.cluster.Core {
		all = append(all, machine{"core gateway " + g.Name, g.Address})
	}
	for _, r := range e.cluster.Reflectors {
		all = append(all, machine{"reflector " + r.Name, r.Address})
	}
	const atMost = 16
	results := make([]error, min(len(all), atMost))
	each(len(results), func(i int) {
		if from, ok := e.from(all[i].address); ok {
			results[i] = pathTakes(ctx, from, all[i].address, want)
		}
	})
	for i, err := range results {
		switch {
		case errors.Is(err, errTooLarge):
			found = append(found, wrong(fmt.Sprintf("packets of %d bytes do not get to %s (%s), smaller ones do", want, all[i].name, all[i].address),
				"raise the MTU of the network between, or write a smaller mtu under guests in the cluster file"))
		case err != nil:
			found = append(found, unknown(fmt.Sprintf("whether packets of %d bytes get to %s (%s)", want, all[i].name, all[i].address), err)...)
		}
	}
	if len(found) == 0 {
		return good("packets of %d bytes, as guests send them, get to the core gateways and the reflectors that answer pings", want)
	}
	return found
}
