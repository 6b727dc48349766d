package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/attack"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// A flood is that many bursts of that many frames. Without the packet filter it is only as
// long as it must be: namespaces share the size of the neighbour tables.
const bursts, unfilteredBursts, inBurst = 20, 4, 64

// TestFloods sends each flood of the attack suite from a tap and a veth. What guests share
// stays within its bounds, and the other guest loses nothing, and is served like beside an
// honest guest that sends as much. Without the packet filter, what a flood fills goes
// beyond its bound, or the check could not fail.
func TestFloods(t *testing.T) {
	t.Parallel()
	a := newArena(t, func(c *fabric.Cluster) { c.Guests.Metadata = true })
	trip := a.roundTrips()
	before := a.resources()
	for _, by := range a.attackers {
		for _, f := range attack.Families {
			honest := a.flood(by, f, bursts, attack.HonestFlood, trip)
			for _, flood := range attack.Floods {
				if !flood.Has(f) {
					continue
				}
				took := a.flood(by, f, bursts, flood.Frame, trip)
				after := a.resources()
				name := fmt.Sprintf("%s, %s, by %s", flood.Name, f, by.vm.Name)
				t.Logf("%s: a round trip of the other guest takes %v, beside an honest guest %v; %v", name, took, honest, growth(before, after))
				for r, most := range attack.Bounds {
					assert.LessOrEqual(t, after[r]-before[r], most, "%s: %s", name, r)
				}
				assert.Less(t, took, 10*honest, "%s: a round trip of the other guest, and beside an honest guest", name)
				before = after
			}
		}
	}
	a.otherIsServed()
	assert.Empty(t, a.agents["node1"].status().Problems)

	a.disarm()
	for _, by := range a.attackers {
		for _, flood := range attack.Floods {
			for _, f := range attack.Families {
				if flood.Fills == "" || !flood.Has(f) {
					continue
				}
				a.forgetNeighbours()
				before := a.atRest(flood.Fills)
				a.flood(by, f, unfilteredBursts, flood.Frame, trip)
				grown := a.resources()[flood.Fills] - before
				assert.Greater(t, grown, attack.Bounds[flood.Fills], "%s by %s, %s, without the packet filter: %s", flood.Name, by.vm.Name, f, flood.Fills)
			}
		}
	}
}

// growth describes what there is more of.
func growth(before, after map[attack.Resource]int) string {
	var more []string
	for r := range after {
		if n := after[r] - before[r]; n > 0 {
			more = append(more, fmt.Sprintf("%d %s", n, r))
		}
	}
	slices.Sort(more)
	return strings.Join(more, ", ")
}

// flood sends a flood, and returns the median of a round trip of the other guest's after
// each of its bursts.
func (a *arena) flood(by *attacker, f attack.Family, times int, frame func(*attack.Volley, uint32), trip func() time.Duration) time.Duration {
	a.t.Helper()
	var took []time.Duration
	for b := range times {
		v := attack.NewVolley(by.cast, f, 0, by.letter, false)
		for n := range inBurst {
			frame(v, uint32(b*inBurst+n))
		}
		a.fire(by, v)
		took = append(took, trip())
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// forgetNeighbours takes those from the node's tables that it has found by itself.
func (a *arena) forgetNeighbours() {
	a.t.Helper()
	neighbours, err := a.node.Netlink().NeighList(0, netlink.FAMILY_ALL)
	require.NoError(a.t, err)
	for _, n := range neighbours {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
			_ = a.node.Netlink().NeighDel(&n) // it may have gone
		}
	}
}

// atRest waits until an agent's node has as much of something as a moment before, since
// what the kernel has left to do takes longer on a busy machine, and returns that.
func (a *arena) atRest(of attack.Resource) (have int) {
	a.t.Helper()
	have = -1
	a.eventually("what the flood before has left is gone", func() error {
		before := have
		if have = a.resources()[of]; have != before {
			return fmt.Errorf("%d %s, and %d before", have, of, before)
		}
		return nil
	})
	return have
}

// roundTrips returns a function that has the other guest ask a machine in the Internet, and
// waits for the answer.
func (a *arena) roundTrips() func() time.Duration {
	a.t.Helper()
	var at *net.UDPConn
	require.NoError(a.t, a.top.Client.Do(func() (err error) {
		at, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(core.ClientAddr4, 7)))
		return err
	}))
	a.t.Cleanup(func() { at.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := at.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = at.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	c, err := a.other.Dial(soon(a.t), "udp", netip.AddrPortFrom(core.ClientAddr4, 7).String())
	require.NoError(a.t, err)
	a.t.Cleanup(func() { c.Close() })
	number := 0
	return func() time.Duration {
		number++
		text, b := strconv.Itoa(number), make([]byte, 64)
		began := time.Now()
		require.NoError(a.t, c.SetDeadline(began.Add(patience)))
		_, err := c.Write([]byte(text))
		require.NoError(a.t, err)
		n, err := c.Read(b)
		require.NoError(a.t, err, "a packet of the other guest is lost")
		require.Equal(a.t, text, string(b[:n]))
		return time.Since(began)
	}
}

// resources counts what guests share.
func (a *arena) resources() map[attack.Resource]int {
	a.t.Helper()
	have := map[attack.Resource]int{attack.Lines: strings.Count(a.agents["node1"].Log(), "\n")}
	neighbours, err := a.node.Netlink().NeighList(0, netlink.FAMILY_ALL)
	require.NoError(a.t, err)
	have[attack.Neighbours] = len(neighbours)
	addresses, err := a.node.Netlink().AddrList(nil, netlink.FAMILY_ALL)
	require.NoError(a.t, err)
	have[attack.Routes] = len(addresses)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := a.node.Routes(family, 0)
		require.NoError(a.t, err)
		have[attack.Routes] += len(routes)
	}
	// There is no table while the filter is away.
	rules, _ := a.node.Run(soon(a.t), "nft", "list", "ruleset")
	have[attack.Elements] = strings.Count(rules, " expires ")
	require.NoError(a.t, a.node.Do(func() error {
		if tracked, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count"); err == nil {
			have[attack.Tracked], _ = strconv.Atoi(strings.TrimSpace(string(tracked)))
		}
		for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
			if err := countSockets(table, have); err != nil {
				return err
			}
		}
		return countFragments(have)
	}))
	return have
}

// countSockets reads a table of sockets of the thread's namespace (proc_net_tcp of the
// kernel's documentation). An orphan has no inode, nor has a connection that is half open.
func countSockets(table string, have map[attack.Resource]int) error {
	text, err := os.ReadFile("/proc/thread-self/net/" + table)
	if err != nil {
		return err
	}
	const state, inode, timeWait, halfOpen = 3, 9, "06", "03"
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[1:] {
		fields := strings.Fields(line)
		have[attack.Sockets]++
		if strings.HasPrefix(table, "tcp") && fields[inode] == "0" && fields[state] != timeWait && fields[state] != halfOpen {
			have[attack.Orphans]++
		}
	}
	return nil
}

// countFragments reads how much memory fragments have that wait for others.
func countFragments(have map[attack.Resource]int) error {
	for _, table := range []string{"sockstat", "sockstat6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if err != nil {
			return err
		}
		defer f.Close()
		for in := bufio.NewScanner(f); in.Scan(); {
			var kind string
			var queues, memory int
			if _, err := fmt.Sscanf(in.Text(), "%s inuse %d memory %d", &kind, &queues, &memory); err == nil && strings.HasPrefix(kind, "FRAG") {
				have[attack.Fragments] += memory
			}
		}
	}
	return nil
}

// otherIsServed: the other guest has its metadata and its gateway.
func (a *arena) otherIsServed() {
	a.t.Helper()
	a.reaches(a.other.Host, "169.254.1.1", "fe80::1%eth0")
	a.eventually("the other guest's metadata", func() error {
		c, err := a.other.Dial(soon(a.t), "tcp", netip.AddrPortFrom(fabric.Metadata4, 80).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "GET /meta-data HTTP/1.0\r\nHost: %s\r\n\r\n", fabric.Metadata4); err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && !strings.Contains(line, " 200 ") {
			err = fmt.Errorf("%q", line)
		}
		return err
	})
}
