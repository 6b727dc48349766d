package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/endure"
)

// warmUp starts every guest once, and ends it, so that what is kept for good is there.
func (e *endurance) warmUp() {
	for _, g := range e.world.Guests {
		e.tell("warming up: %s", g.Name)
		x := endure.Doing{Act: endure.Start, Guest: g.Name, To: g.Hosts[0]}
		require.NoError(e.t, e.act(soon(e.t), x), g.Name)
		e.locate(x)
	}
	e.isRight()
	e.emptied()
}

// isRight waits until everything is right.
func (e *endurance) isRight() {
	took, wrong := e.rights(endure.Episode{})
	require.Empty(e.t, wrong, "after %v", took)
	e.tell("right after %v", took)
}

// emptied ends every guest, and waits until nothing of them is left but what their
// hypervisors know.
func (e *endurance) emptied() {
	for _, g := range e.world.Running() {
		x := endure.Doing{Act: endure.Stop, Guest: g.Name, From: g.On}
		require.NoError(e.t, e.act(soon(e.t), x), g.Name)
		e.locate(x)
		require.Empty(e.t, e.world.Guest(g.Name).On)
	}
	e.isRight()
}

// measured is what an agent takes of its machine.
type measured struct{ rss, fds, sockets, goroutines int }

// measure looks at every agent, as long as nothing runs.
func (e *endurance) measure() map[string]measured {
	all := map[string]measured{}
	for name, a := range e.agents {
		m := measured{goroutines: e.goroutines(name)}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.Pid()))
		require.NoError(e.t, err)
		m.fds = len(fds)
		for _, fd := range fds {
			if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", a.Pid(), fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
				m.sockets++
			}
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.Pid()))
		require.NoError(e.t, err)
		kb := regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB`).FindSubmatch(status)
		require.NotNil(e.t, kb)
		m.rss, _ = strconv.Atoi(string(kb[1]))
		all[name] = m
		e.tell("%s: RSS %d kB, %d descriptors, %d of them sockets, %d goroutines", name, m.rss, m.fds, m.sockets, m.goroutines)
	}
	return all
}

// goroutines reads a metric of an agent.
func (e *endurance) goroutines(node string) int {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return e.top.Nodes[node].Dial(ctx, network, address)
	}}}
	answer, err := c.Get("http://" + e.cluster.Metrics.String() + "/metrics")
	require.NoError(e.t, err)
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, is := strings.CutPrefix(lines.Text(), "go_goroutines "); is {
			n, err := strconv.Atoi(text)
			require.NoError(e.t, err)
			return n
		}
	}
	e.t.Fatal("no metric go_goroutines")
	return 0
}

// What an agent may take more after a run: connections come and go, and Go's heap breathes.
const moreDescriptors, moreGoroutines, moreMemory = 8, 16, 1.5

// flat compares what agents take. The witness has lived through all of it; the others
// were killed, and are compared with what they were, too.
func (e *endurance) flat(before, after map[string]measured) {
	for name, was := range before {
		is := after[name]
		assert.LessOrEqual(e.t, is.fds, was.fds+moreDescriptors, "%s: descriptors", name)
		assert.LessOrEqual(e.t, is.sockets, was.sockets+moreDescriptors, "%s: sockets", name)
		assert.LessOrEqual(e.t, is.goroutines, was.goroutines+moreGoroutines, "%s: goroutines", name)
		assert.LessOrEqual(e.t, float64(is.rss), float64(was.rss)*moreMemory, "%s: memory", name)
	}
}

// removed removes the guests from their hypervisors, and compares what is on the nodes
// with what was there before the first of them.
func (e *endurance) removed(bare map[string][]string) {
	for name, g := range e.tenants {
		require.NoError(e.t, g.forget(soon(e.t)), name)
	}
	var last string
	e.eventually("nothing is left", func() error {
		last = ""
		for node, had := range bare {
			if d := difference(had, e.inventory()[node]); d != "" {
				last += node + ": " + d + "\n"
			}
		}
		for name, a := range e.agents {
			out, errs, code := a.cli("address", "list", "--json")
			if code != 0 {
				return fmt.Errorf("%s: %s", name, errs)
			}
			for _, is := range decode[[]fabric.Allocation](e.t, out) {
				if is.State != fabric.Quarantined {
					last += fmt.Sprintf("%s: %s is %s\n", name, is.Prefix, is.State)
				}
			}
			if out, _, code := a.cli("status", "--json"); code != 0 {
				last += name + ": " + out + "\n"
			}
		}
		if last != "" {
			return fmt.Errorf("left:\n%s", last)
		}
		return nil
	})
}

// inventory lists what is on each node: links, addresses, routes, rules, nftables,
// processes, files of the agent.
func (e *endurance) inventory() map[string][]string {
	e.t.Helper()
	all := map[string][]string{}
	for name, h := range e.top.Nodes {
		var lines []string
		links, err := h.Netlink().LinkList()
		require.NoError(e.t, err)
		for _, l := range links {
			lines = append(lines, "link "+l.Attrs().Name+" "+l.Attrs().Alias)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := h.Routes(family, 0)
			require.NoError(e.t, err)
			for _, r := range routes {
				lines = append(lines, "route "+r.String())
			}
			rules, err := h.Netlink().RuleList(family)
			require.NoError(e.t, err)
			seen := map[string]bool{}
			for _, r := range rules { // the fabric's stay when they were needed once, each once
				line := fmt.Sprintf("rule of family %d: %v", family, r)
				if ours := r.Table >= fabric.ArrivingTable && r.Table <= fabric.MetadataTable; !ours || seen[line] {
					lines = append(lines, line)
				}
				seen[line] = true
			}
		}
		out, err := h.Run(soon(e.t), "nft", "list", "ruleset")
		require.NoError(e.t, err)
		lines = append(lines, rulesetLines(out)...)
		lines = append(lines, e.processes(name)...)
		require.NoError(e.t, filepath.WalkDir(filepath.Join(h.Dir(), "state"), func(path string, d os.DirEntry, err error) error {
			if file := strings.TrimPrefix(path, h.Dir()); err == nil && !d.IsDir() && !slices.Contains(lasting, d.Name()) {
				lines = append(lines, "file "+numbers.ReplaceAllString(file, ""))
			}
			return nil
		}))
		slices.Sort(lines)
		all[name] = lines
	}
	return all
}

// lasting are files that an agent keeps for good, whatever is in them, once it had
// something to write.
var lasting = []string{"gone.json", "own.json", "moves.json"}

var (
	numbers    = regexp.MustCompile(`\d+$`) // of the file that the next state is written to
	countersOf = regexp.MustCompile(`packets \d+ bytes \d+`)
	passing    = regexp.MustCompile(`expires|timeout`)
)

// rulesetLines gives the lines of what nft lists, without what packets change.
func rulesetLines(out string) (lines []string) {
	where := ""
	for line := range strings.Lines(out) {
		switch text := countersOf.ReplaceAllString(strings.TrimSpace(line), "packets"); {
		case strings.HasPrefix(text, "table "):
			where = text
		case text != "" && !passing.MatchString(text):
			lines = append(lines, "nft "+where+" "+text)
		}
	}
	return lines
}

// processes names the processes in the network namespace of a node.
func (e *endurance) processes(node string) (names []string) {
	own, err := os.Stat(e.top.Nodes[node].NamespacePath())
	require.NoError(e.t, err)
	all, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(e.t, err)
	for _, dir := range all {
		is, err := os.Stat(dir + "/ns/net")
		if err != nil || !os.SameFile(own, is) {
			continue
		}
		if name, err := os.ReadFile(dir + "/comm"); err == nil {
			names = append(names, "process "+strings.TrimSpace(string(name)))
		}
	}
	return names
}
