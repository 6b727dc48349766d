package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func try(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &out, &errs)
	return out.String(), errs.String(), code
}

// owned puts copies that nobody else can write in the place of the checkout's
// cluster files.
func owned(t *testing.T, args string) []string {
	words := strings.Fields(args)
	for i, word := range words {
		if strings.HasPrefix(word, "../../") {
			words[i] = labtest.Own(t, word)
		}
	}
	return words
}

func TestExitCodes(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "no.sock")
	for _, tc := range []struct {
		args string
		code int
		says string // on standard error, in its one line
	}{
		{"version", exitGood, ""},
		{"port-name sea_gold", exitGood, ""},
		{"help attach", exitGood, ""},
		{"completion bash", exitGood, ""},
		{"check nowhere.yaml", exitBad, "nowhere.yaml"},
		{"port-name a/b", exitBad, "rename the VM"},
		{"list --socket " + nowhere, exitBad, "start it: systemctl start vmfabric"},
		{"check /nonexistent/cluster.yaml", exitBad, "reflectors and nodes, then verify it with 'vmfabric check'\n"},
		{"status --socket " + nowhere, exitBad, "no agent answers on " + nowhere},
		{"attach web --address 203.0.113.10 --socket " + nowhere, exitBad, "no agent"},
		{"agent --config nowhere.yaml", exitBad, "nowhere.yaml"},
		{"agent --log-level loud", exitUsage, "debug, info, warn, error"},
		{"reflector", exitUsage, "name"},
		{"reflector --name rr9 --config ../../packaging/cluster.yaml.example", exitBad, "it has rr1, rr2"},
		{"reflector --name rr1 --config nowhere.yaml", exitBad, "nowhere.yaml"},
		{"reflector --name rr1 --config ../../packaging/cluster.yaml.example --metrics 9179 --socket " + nowhere, exitUsage, "write 127.0.0.1:9179"},
		{"reflector --name rr1 --config ../../packaging/cluster.yaml.example --metrics 192.0.2.1:9179 --socket " + nowhere, exitBad, "give --metrics an address of this machine"},
		{"reflector --name rr1 --config ../../packaging/cluster.yaml.example --socket " + nowhere, exitBad, "reflector rr1: listen on 10.10.0.11:179"},
		{"nonsense", exitUsage, "unknown command"},
		{"list --nonsense", exitUsage, "unknown flag"},
		{"list more", exitUsage, "unknown command"},
		{"attach", exitUsage, "accepts 1 arg"},
		{"attach web", exitUsage, "address"},
		{"attach web --address x", exitUsage, "not an address"},
		{"attach web --address 203.0.113.10 --route x", exitUsage, "not a prefix"},
		{"attach web --address 203.0.113.10 --mac x", exitUsage, "not a MAC address"},
		{"why here", exitUsage, "not an address"},
		{"port-name web 64", exitUsage, "NIC number"},
		{"demo --json", exitUsage, "for people"},
		{"render bird --for rr1 --config ../../fabric/clusterfile/testdata/cluster.yaml", exitGood, ""},
		{"render junos --for core1 --config ../../fabric/clusterfile/testdata/cluster.yaml", exitGood, ""},
		{"render bird --for rr1 --config nowhere.yaml", exitBad, "nowhere.yaml"},
		{"render bird --for nobody --config ../../fabric/clusterfile/testdata/cluster.yaml", exitBad, "no reflector, core gateway or node"},
		{"render junos --for rr1 --config ../../fabric/clusterfile/testdata/cluster.yaml", exitBad, "render bird or frr for a reflector"},
		{"render junos --for core1 --check --config ../../fabric/clusterfile/testdata/cluster.yaml", exitBad, "commit check"},
		{"render bird --for rr1 --role core --config ../../fabric/clusterfile/testdata/cluster.yaml", exitBad, "not in cluster msk1"},
		{"render ios --for rr1", exitUsage, "not one of bird, frr, junos"},
		{"render bird --for rr1 --role router", exitUsage, "not one of reflector, core, node"},
		{"render bird", exitUsage, "for"},
		{"render --for rr1", exitUsage, "accepts 1 arg"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			_, errs, code := try(owned(t, tc.args)...)
			assert.Equal(t, tc.code, code, errs)
			if tc.says == "" {
				assert.Empty(t, errs)
				return
			}
			assert.Contains(t, errs, tc.says)
			assert.Equal(t, 1, strings.Count(errs, "\n"), errs)
		})
	}
}

// TestCheckWarns: a good file may have what is seldom meant, a line for each.
func TestCheckWarns(t *testing.T) {
	out, errs, code := try("check", "../../packaging/cluster.yaml.example")
	assert.Equal(t, exitGood, code, errs)
	assert.Contains(t, errs, "reflectors rr1 and rr2 are not: their IPv6 routes ride on IPv4 sessions")
	assert.Contains(t, errs, "no key_file: ")
	assert.Contains(t, out, " pools, 2 reflectors, 1 core gateway, ")
	assert.Equal(t, 2, strings.Count(errs, "\n"), errs)
}

func TestEveryCommandHasAnExample(t *testing.T) {
	for _, c := range newRoot().Commands() {
		assert.NotEmpty(t, c.Example, c.Name())
		assert.NotEmpty(t, c.Short, c.Name())
		var examples []string
		for line := range strings.Lines(c.Example) {
			examples = append(examples, strings.TrimSpace(line))
		}
		for _, e := range examples {
			assert.True(t, strings.HasPrefix(e, "vmfabric "+c.Name()), e)
		}
	}
}

func TestJSON(t *testing.T) {
	for args, keys := range map[string][]string{
		"version --json":              {"version", "go", "platform"},
		"port-name sea_gold 1 --json": {"vm", "nic", "port", "full", "peer"},
		"check --json ../../fabric/clusterfile/testdata/dualstack.yaml":                        {"file", "ok", "errors", "warnings"},
		"render bird --for rr1 --json --config ../../fabric/clusterfile/testdata/cluster.yaml": {"for", "role", "format", "text"},
	} {
		out, errs, code := try(owned(t, args)...)
		require.Zero(t, code, errs)
		var v map[string]any
		require.NoError(t, json.Unmarshal([]byte(out), &v), out)
		for _, k := range keys {
			assert.Contains(t, v, k, args)
		}
	}
	out, errs, code := try("check", "--json", "nowhere.yaml")
	assert.Equal(t, exitBad, code)
	assert.Empty(t, errs)
	assert.Contains(t, out, `"ok": false`)
}

func TestWhyNamesTheFirstThatIsMissing(t *testing.T) {
	a, prefix := netip.MustParseAddr("203.0.113.10"), netip.MustParsePrefix("198.51.100.0/29")
	live := fabric.PortEntry{
		VM: "web", Port: "web_net0", Kind: fabric.Tap, State: fabric.Live,
		Addresses: []netip.Addr{a}, Routes: []netip.Prefix{prefix}, Since: time.Now(),
	}
	wired, broken := live, live
	wired.State = fabric.Wired
	broken.Trouble = "port web_net0: no such device"
	up := fabric.Status{Node: "node1", Sessions: []fabric.Session{{Peer: "rr1", State: "established"}, {Peer: "rr2", State: "active"}}}
	for _, tc := range []struct {
		name    string
		ask     netip.Addr
		port    fabric.PortEntry
		missing string
		text    string
	}{
		{"nobody has it", netip.MustParseAddr("203.0.113.11"), live, "guest", "no guest on node1"},
		{"trouble", a, broken, "port", "no such device"},
		{"not announced", a, wired, "announcement", "does not run yet"},
		{"session down", a, live, "reflector rr2", "active"},
		{"routed prefix", prefix.Addr().Next(), live, "reflector rr2", "active"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steps := explain(tc.ask, []fabric.PortEntry{tc.port}, up)
			if p, ok := prefixOf(tc.ask, []fabric.PortEntry{tc.port}); ok && steps[len(steps)-1].Good {
				steps = append(steps, announcedTo(p, up.Sessions, nil)...)
			}
			last := steps[len(steps)-1]
			assert.False(t, last.Good)
			assert.Equal(t, tc.missing, last.Step)
			assert.Contains(t, last.Text, tc.text)
			for _, s := range steps[:len(steps)-1] {
				assert.True(t, s.Good, s)
			}
		})
	}
}

// TestWhyTellsWhatWasSent: sessions that are up say nothing of a prefix.
func TestWhyTellsWhatWasSent(t *testing.T) {
	p := netip.MustParsePrefix("2001:db8:100::10/128")
	up := fabric.Session{Peer: "rr1", Address: "10.10.0.11", State: "established", Advertised: 2}
	deaf := fabric.Session{Peer: "rr2", Address: "10.10.0.12", State: "established", Families: []fabric.Family{fabric.IPv4}}
	shut := fabric.Session{Peer: "rr3", State: "active", Notification: fabric.NewNotification(false, 6, 2, "planned work", time.Time{})}
	sessions := []fabric.Session{up, deaf, shut}
	good := func(steps []step) (all []bool) {
		for _, s := range steps {
			all = append(all, s.Good)
		}
		return all
	}
	guessed := announcedTo(p, sessions, nil)
	assert.Equal(t, []bool{true, false, false}, good(guessed))
	assert.Contains(t, guessed[1].Text, "it takes no IPv6")
	assert.Contains(t, guessed[2].Text, `Cease, Administrative Shutdown (6/2), "planned work"`)
	told := announcedTo(p, sessions, []fabric.Advertisement{
		{Peer: "rr1", Address: "10.10.0.11"}, {Peer: "rr2", Address: "10.10.0.12", Reason: "it takes no IPv6"}, {Peer: "rr3", Sent: true},
	})
	assert.Equal(t, []bool{false, false, true}, good(told), "what the speaker says counts")
	assert.Equal(t, "10.10.0.11, 2001:db8:100::10/128 was not sent: the speaker does not say why; see vmfabric status", told[0].Text)
	assert.Equal(t, step{"reflector rr2", false, "10.10.0.12, 2001:db8:100::10/128 was not sent: it takes no IPv6"}, told[1])
	assert.Empty(t, announcedTo(p, sessions, []fabric.Advertisement{}))
}

// whyAgent has one guest of both families, and speaks to one reflector.
type whyAgent struct {
	hooks.Agent
	faults []fabric.ForwardingFault
}

var dual = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}

func (whyAgent) List(context.Context) ([]fabric.PortEntry, error) {
	return []fabric.PortEntry{{VM: "web", Port: "web_net0", Kind: fabric.Tap, State: fabric.Live, Addresses: dual, Since: time.Now()}}, nil
}

func (whyAgent) Status(context.Context) (fabric.Status, error) {
	return fabric.Status{Node: "node1", Sessions: []fabric.Session{{Peer: "rr1", Address: "10.10.0.11", State: "established"}}}, nil
}

func (a whyAgent) Advertisements(_ context.Context, p netip.Prefix) ([]fabric.Advertisement, error) {
	sent := !slices.ContainsFunc(a.faults, func(f fabric.ForwardingFault) bool { return f.Withdrawn && f.Family == familyOf(p.Addr()) })
	return []fabric.Advertisement{{Peer: "rr1", Address: "10.10.0.11", Sent: sent}}, nil
}

func (a whyAgent) CheckForwarding(context.Context) ([]fabric.ForwardingFault, error) {
	return a.faults, nil
}

// TestWhyOfAWithdrawnFamily: what the node withdrew on purpose has that reason,
// once, and nobody is said not to say why.
func TestWhyOfAWithdrawnFamily(t *testing.T) {
	for _, a := range dual {
		t.Run(familyOf(a), func(t *testing.T) {
			gone := fabric.ForwardingFault{Family: familyOf(a), Text: "announced for no guest: next hop is gone; give it back", Withdrawn: true}
			blocked := fabric.ForwardingFault{Family: familyOf(a), Text: "packets are dropped by a chain"}
			socket := serveAgent(t, whyAgent{faults: []fabric.ForwardingFault{gone, blocked}})
			out, errs, code := try("why", a.String(), "--socket", socket)
			assert.Equal(t, exitBad, code, errs)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			require.Len(t, lines, 4, out)
			assert.Equal(t, "MISSING announcement: "+gone.Text, lines[2])
			assert.Equal(t, "MISSING forwarding: "+blocked.Text, lines[3])
			for _, other := range dual {
				if other != a {
					out, errs, code := try("why", other.String(), "--socket", socket)
					assert.Zero(t, code, out+errs)
				}
			}
		})
	}
}

func TestPrefixOf(t *testing.T) {
	a6 := netip.MustParseAddr("2001:db8:100::10")
	ports := []fabric.PortEntry{{
		Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), a6},
		Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.0/29")},
	}}
	for ask, want := range map[string]string{
		"203.0.113.10": "203.0.113.10/32", a6.String(): a6.String() + "/128", "198.51.100.3": "198.51.100.0/29", "198.51.100.9": "198.51.100.0/24",
	} {
		p, ok := prefixOf(netip.MustParseAddr(ask), ports)
		assert.True(t, ok)
		assert.Equal(t, want, p.String())
	}
	_, ok := prefixOf(netip.MustParseAddr("203.0.113.11"), ports)
	assert.False(t, ok)
}

func TestCount(t *testing.T) {
	for n, want := range []string{"0 core gateways", "1 core gateway", "2 core gateways"} {
		assert.Equal(t, want, count(n, "core gateway"))
	}
	assert.Equal(t, "1 frame", count(uint64(1), "frame"))
	var out strings.Builder
	cmd := newRoot()
	cmd.SetOut(&out)
	printStatus(cmd, fabric.Status{Node: "node1", Cluster: "msk1", Ports: 1, Live: 1, Sources: []fabric.SourceStatus{{Name: "libvirt", Guests: 1}}})
	assert.Contains(t, out.String(), "1 port, 1 live")
	assert.Contains(t, out.String(), "1 guest ")
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{5 * time.Second: "5s", 3 * time.Minute: "3m", 30 * time.Hour: "30h", 80 * time.Hour: "3d"} {
		assert.Equal(t, want, ago(time.Now().Add(-d-time.Millisecond)))
	}
	assert.Equal(t, "-", ago(time.Time{}))
}

func TestDiversionText(t *testing.T) {
	now := time.Now()
	d := fabric.DiversionStatus{VM: "web", Node: "node2", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")}, Since: now.Add(-5 * time.Second)}
	assert.Equal(t, "packets for web (203.0.113.10/32,2001:db8:100::10/128) go to node2 since 5s, on its word alone, which ends by itself", diversionText(d))
	d.Confirmed = true
	assert.Equal(t, "packets for web (203.0.113.10/32,2001:db8:100::10/128) go to node2 since 5s", diversionText(d))
	d.Ended, d.Outcome = now.Add(-time.Second), "the routers know where it is"
	assert.Equal(t, "packets for web (203.0.113.10/32,2001:db8:100::10/128) went to node2 for 4s, until 1s ago: the routers know where it is", diversionText(d))
	assert.Equal(t, "packets for a guest that left (203.0.113.10/32) go to another node since 5s", diversionText(fabric.DiversionStatus{Prefixes: d.Prefixes[:1], Since: d.Since}))
}
