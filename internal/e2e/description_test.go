package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

const namespace = "urn:vmfabric:domain:1"

// says waits until status has a line with all of these words, or with none is healthy.
func (a *agent) says(words ...string) {
	a.s.t.Helper()
	a.s.eventually(fmt.Sprintf("status says %q", words), func() error {
		problems := a.status().Problems
		if len(words) == 0 && len(problems) == 0 {
			return nil
		}
		for _, line := range problems {
			all := len(words) > 0
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("problems: %q; %s", problems, a.Log())
	})
}

// changeMetadata changes the metadata of sea_gold by virsh.
func changeMetadata(t *testing.T, lv *hypervisors.Libvirt, args ...string) {
	t.Helper()
	_, err := lv.Virsh(soon(t), append([]string{"metadata", "sea_gold", namespace}, args...)...)
	require.NoError(t, err)
}

// withAddresses are arguments of virsh metadata that give a guest addresses.
func withAddresses(addresses ...string) []string {
	text := "<vm><nic>"
	for _, addr := range addresses {
		text += "<address>" + addr + "</address>"
	}
	return []string{"--key", "fabric", "--set", text + "</nic></vm>"}
}

// described are changes to the metadata of sea_gold as it runs, and what status says.
var described = []struct {
	name string
	args []string
	says []string
}{
	{
		"taken away",
		[]string{"--live", "--remove"},
		[]string{"guest sea_gold: libvirt does not say any more what it has; it keeps 203.0.113.10, 2001:db8:100::10 while it runs", "stop and start it"},
	},
	{
		"other addresses", append(withAddresses("203.0.113.12", "2001:db8:100::12"), "--live"),
		[]string{"guest sea_gold: libvirt says now that it has 203.0.113.12, 2001:db8:100::12; it keeps 203.0.113.10, 2001:db8:100::10 while it runs", "stop and start it"},
	},
}

// TestRunningGuestKeepsWhatItStartedWith: somebody else touches the metadata of
// a domain that runs, and agent and libvirtd restart around it.
func TestRunningGuestKeepsWhatItStartedWith(t *testing.T) {
	t.Parallel()
	s := start(t, options{noAgent: true})
	lv := s.hypervisor("node1")
	a, node := s.agents["node1"], s.top.Nodes["node1"]
	d := s.domain(lv, "sea_gold", tap("203.0.113.10", "2001:db8:100::10"))
	require.NoError(t, d.Start(soon(t)))
	require.NoError(t, d.WaitReady(soon(t)))
	s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
	index := func() int {
		l, err := node.Link("sea_gold_net0")
		require.NoError(t, err)
		return l.Attrs().Index
	}
	made := index()
	restartAgent := func() {
		require.NoError(t, a.Kill())
		a.start()
	}
	restartLibvirt := func() { require.NoError(t, lv.Restart(soon(t))) }

	watch := s.watchGuest(node, "sea_gold_net0")
	probes := map[netip.Addr]*core.Prober{}
	for _, p := range seaGold {
		probe, err := s.top.Client.Probe(p.Addr(), 10*time.Millisecond)
		require.NoError(t, err)
		probes[p.Addr()] = probe
	}
	for _, change := range described {
		for restart, f := range map[string][]func(){
			"the agent": {restartAgent}, "libvirtd": {restartLibvirt}, "both": {restartLibvirt, restartAgent}, "both, the agent first": {restartAgent, restartLibvirt},
		} {
			changeMetadata(t, lv, change.args...)
			for _, f := range f {
				f()
			}
			a.says(change.says...)
			s.coreHas(node, seaGold...)
			require.Equal(t, made, index(), "%s, %s restarts: its tap", change.name, restart)
			s.nobodyHas(netip.MustParsePrefix("203.0.113.12/32"), netip.MustParsePrefix("2001:db8:100::12/128"))
			changeMetadata(t, lv, append(withAddresses("203.0.113.10", "2001:db8:100::10"), "--live")...)
			restartAgent()
			a.says()
		}
	}
	changeMetadata(t, lv, "--live", "--remove")
	restartAgent()
	a.says("does not say any more")
	results := map[netip.Addr]core.ProbeResult{}
	for to, probe := range probes {
		results[to] = probe.Stop()
	}
	watch.lostNothing(results)

	// It ends although nothing calls it ours by now, and its next life has the
	// definition's new addresses.
	changeMetadata(t, lv, append(withAddresses("203.0.113.12", "2001:db8:100::12"), "--config")...)
	require.NoError(t, d.Destroy(soon(t)))
	s.leavesNothing(node, seaGold...)
	a.says()
	require.NoError(t, d.Start(soon(t)))
	s.coreHas(node, netip.MustParsePrefix("203.0.113.12/32"), netip.MustParsePrefix("2001:db8:100::12/128"))
	s.nobodyHas(seaGold...)
	a.says()
}
