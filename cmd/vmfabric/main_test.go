package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/render"
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
		{"--version", exitGood, ""},
		{"port-name sea_gold", exitGood, ""},
		{"help attach", exitGood, ""},
		{"completion bash", exitGood, ""},
		{"check nowhere.yaml", exitBad, "nowhere.yaml"},
		{"port-name a/b", exitBad, "rename the VM"},
		{"list --socket " + nowhere, exitBad, "start it: systemctl start vmfabric"},
		{"check /nonexistent/cluster.yaml", exitBad, "reflectors and nodes, or have 'vmfabric init' write a first one, then verify it with 'vmfabric check'\n"},
		{"status --socket " + nowhere, exitBad, "no agent answers on " + nowhere},
		{"attach web --address 203.0.113.10 --socket " + nowhere, exitBad, "no agent"},
		{"agent --config nowhere.yaml", exitBad, "nowhere.yaml"},
		{"init --pool 203.0.113.1 --config " + nowhere, exitUsage, `--pool: "203.0.113.1" is not a prefix; write one such as 203.0.113.0/24`},
		{"init --reflector rr1 --config " + nowhere, exitUsage, "rr1=10.10.0.11"},
		{"init --address node1 --config " + nowhere, exitUsage, "write one such as 10.10.0.21"},
		{"agent --log-level loud", exitUsage, "debug, info, warn, error"},
		{"reflector", exitUsage, "name"},
		{"reflector --name rr9 --config ../../packaging/cluster.yaml.example", exitBad, "it has rr1, rr2"},
		{"reflector --name rr1 --config nowhere.yaml", exitBad, "nowhere.yaml"},
		{"reflector --name rr1 --config ../../packaging/cluster.yaml.example --metrics 9179 --socket " + nowhere, exitUsage, "write 127.0.0.1:9179"},
		{"reflector --name rr1 --config ../../packaging/cluster.yaml.example --metrics 192.0.2.1:9179 --socket " + nowhere, exitBad, "give --metrics an address of this machine"},
		{"reflector --name rr1 --config ../../packaging/cluster.yaml.example --socket " + nowhere, exitBad, "reflector rr1: listen on 10.10.0.11:179"},
		{"nonsense", exitUsage, "unknown command"},
		{"doctor nonsense", exitUsage, "no check is called"},
		{"doctor --config nowhere.yaml", exitUnable, "name the cluster file"},
		{"list --nonsense", exitUsage, "unknown flag"},
		{"list more", exitUsage, "unknown command"},
		{"attach", exitUsage, "vmfabric: attach: accepts 1 arg"},
		{"attach web", exitUsage, "address"},
		{"attach web --address x", exitUsage, "not an address"},
		{"attach web --address 203.0.113.10 --route x", exitUsage, "not a prefix"},
		{"attach web --address 203.0.113.10 --mac x", exitUsage, "not a MAC address"},
		{"attach web --address 203.0.113.10 --mac 01:00:5e:00:01:01", exitUsage, `--mac: "01:00:5e:00:01:01" is not a unicast address`},
		{"attach web --address 203.0.113.10 --mac 00:00:00:00:00:00", exitUsage, "not a unicast address"},
		{"why here", exitUsage, "not an address"},
		{"why fe80::1%eth0", exitUsage, "not an address"},
		{"address move 203.0.113.10", exitUsage, "required flag"},
		{"address move here --to web", exitUsage, "no address and no prefix"},
		{"import now", exitUsage, "unknown command"},
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
		{"render etcd --for rr1 --config ../../packaging/cluster.yaml.example", exitBad, "names no etcd"},
		{"render etcd --for rr1 --part none", exitUsage, "is not one of environment, unit,"},
		{"render etcd --for rr1 --role core", exitUsage, "--role is for routers"},
		{"render etcd --for rr1 --restored -1", exitUsage, "counts from 0"},
		{"render bird --for rr1 --part unit", exitUsage, "are for etcd"},
		{"registry adopt more", exitUsage, "unknown command"},
		{"registry adopt --socket " + nowhere, exitBad, nowhere},
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

// TestRenderEtcd prints a member's files of a cluster that has an etcd.
func TestRenderEtcd(t *testing.T) {
	text, err := os.ReadFile("../../packaging/cluster.yaml.example")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	with := string(text) + "\nregistry: {etcd: {endpoints: ['https://10.10.0.11:2379'], ca_file: none, cert_file: none, key_file: none}}\n"
	require.NoError(t, os.WriteFile(file, []byte(with), 0o600))
	out, errs, code := try("render", "etcd", "--for", "rr1", "--restored", "2", "--config", file)
	assert.Equal(t, exitGood, code, errs)
	assert.Contains(t, out, "ETCD_NAME=rr1\n")
	assert.Contains(t, out, "ETCD_INITIAL_CLUSTER_TOKEN=vmfabric-msk1-3\n")
	out, errs, code = try("render", "etcd", "--for", "rr1", "--part", "backup", "--json", "--config", file)
	assert.Equal(t, exitGood, code, errs)
	assert.Contains(t, out, "snapshot save")
	out, errs, code = try("render", "etcd", "--for", "rr1", "--check", "--config", file)
	assert.Equal(t, exitBad, code)
	assert.Empty(t, out)
	assert.Contains(t, errs, render.EtcdEnvironmentFile)
}

// TestCheckWarns: a good file may have what is seldom meant, a line for each.
func TestCheckWarns(t *testing.T) {
	out, errs, code := try("check", "../../packaging/cluster.yaml.example")
	assert.Equal(t, exitGood, code, errs)
	assert.Contains(t, errs, "reflectors rr1 and rr2 are not: their IPv6 routes ride on IPv4 sessions")
	assert.Contains(t, errs, "no key_file: ")
	assert.Contains(t, out, " pools, 2 reflectors, 1 core gateway, ")
	assert.Equal(t, 2, strings.Count(errs, "\n"), errs)
	_, errs, _ = try("check", "../../fabric/clusterfile/testdata/cluster.yaml")
	assert.Contains(t, errs, "no guests.dns: ")
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

// viewsAgent answers as an agent of node1 in a cluster of three nodes.
type viewsAgent struct {
	hooks.Agent
	steps    []fabric.Step
	imported fabric.Import
	wrote    *bool
}

func (a viewsAgent) Explain(context.Context, netip.Addr) ([]fabric.Step, error) { return a.steps, nil }

func (a viewsAgent) Nodes(context.Context) ([]string, error) {
	return []string{"node1", "node2", "node3"}, nil
}

// ListNode tells node2's two guests in two parts, and nothing of node3's.
func (a viewsAgent) ListNode(_ context.Context, node, after string) (fabric.PortPage, error) {
	port := fabric.PortEntry{VM: "web", Port: "web_net0", Kind: fabric.Tap, State: fabric.Live, Addresses: dual, Node: node, Since: time.Now()}
	port.Contacts = []fabric.Contact{{Protocol: fabric.DHCPv4, At: time.Now().Add(-5 * time.Second), Message: "REQUEST", Hostname: "web", Client: "udhcp"}}
	switch {
	case node == "node3":
		return fabric.PortPage{}, errors.New("node node3: its agent is older and does not tell its ports; upgrade it")
	case node == "node2" && after == "":
		return fabric.PortPage{Ports: []fabric.PortEntry{port}, Next: "web"}, nil
	case node == "node2":
		port.VM, port.Port, port.State, port.Trouble = "zoo", "zoo_net0", fabric.Wired, "no tap"
		port.Contacts = nil
		return fabric.PortPage{Ports: []fabric.PortEntry{port}}, nil
	}
	return fabric.PortPage{Ports: []fabric.PortEntry{}}, nil
}

func (a viewsAgent) Import(_ context.Context, write bool) (fabric.Import, error) {
	*a.wrote = write
	return a.imported, nil
}

var dual = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}

// TestWhyPrints what the agent says, and exits 1 when something is missing or disagrees.
func TestWhyPrints(t *testing.T) {
	good := fabric.Step{Step: "guest", Good: true, Text: "web on node2", Node: "node2"}
	missing, wrong := fabric.Step{Step: "reflector rr1", Text: "was not sent"}, fabric.Step{Step: fabric.Disagreement, Text: "two have it"}
	for _, tc := range []struct {
		steps []fabric.Step
		code  int
		out   string
	}{
		{[]fabric.Step{good}, exitGood, "ok      guest: web on node2\n"},
		{[]fabric.Step{good, missing}, exitBad, "ok      guest: web on node2\nMISSING reflector rr1: was not sent\n"},
		{[]fabric.Step{good, wrong}, exitBad, "ok      guest: web on node2\nWRONG   disagreement: two have it\n"},
	} {
		socket := serveAgent(t, viewsAgent{steps: tc.steps})
		for _, a := range dual {
			out, errs, code := try("why", a.String(), "--socket", socket)
			assert.Equal(t, tc.code, code, errs)
			assert.Equal(t, tc.out, out)
		}
		out, errs, code := try("why", "203.0.113.10", "--json", "--socket", socket)
		assert.Equal(t, tc.code, code, errs)
		var steps []fabric.Step
		require.NoError(t, json.Unmarshal([]byte(out), &steps))
		assert.Equal(t, tc.steps, steps)
	}
}

// TestListCluster has all parts of all nodes, and names the node that does not tell.
func TestListCluster(t *testing.T) {
	socket := serveAgent(t, viewsAgent{})
	const silent = "vmfabric: node node3: its agent is older and does not tell its ports; upgrade it\n"
	out, errs, code := try("list", "--cluster", "--socket", socket)
	assert.Equal(t, exitBad, code)
	assert.Equal(t, "zoo on node2: no tap\n"+silent, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 3)
	assert.Equal(t, []string{"NODE", "VM", "PORT", "KIND", "STATE", "ADDRESSES", "ROUTES", "SINCE", "ASKED", "CLIENT"}, strings.Fields(lines[0]))
	assert.Equal(t, []string{"node2", "web", "web_net0", "tap", "live", "203.0.113.10,2001:db8:100::10", "-", "0s", "5s", "DHCPv4", "web", "(udhcp)"}, strings.Fields(lines[1]))
	assert.Equal(t, "zoo", strings.Fields(lines[2])[1])
	assert.Equal(t, []string{"-", "-"}, strings.Fields(lines[2])[8:], "it never asked")

	out, errs, code = try("list", "--cluster", "--json", "--socket", socket)
	assert.Equal(t, exitBad, code)
	assert.Equal(t, silent, errs)
	var ports []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &ports))
	require.Len(t, ports, 2)
	assert.Equal(t, "node2", ports[0]["node"])
	require.Len(t, ports[0]["contacts"], 1)
	assert.NotContains(t, ports[1], "contacts")
	assert.Equal(t, "wired", ports[1]["state"])
}

// TestListCounters prints what the node dropped, by port and reason.
func TestListCounters(t *testing.T) {
	socket := serveAgent(t, dropsAgent{})
	out, errs, code := try("list", "--counters", "--socket", socket)
	assert.Equal(t, exitGood, code, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 4)
	assert.Equal(t, []string{"VM", "PORT", "DROPPED", "BY", "PACKETS", "BYTES", "LAST"}, strings.Fields(lines[0]))
	assert.Equal(t, []string{"db", "db_net0", "-", "0", "0", "-"}, strings.Fields(lines[1]))
	assert.Equal(t, []string{"web", "web_net0", "source", "3", "180", "5s"}, strings.Fields(lines[2]))
	assert.Equal(t, []string{"web", "web_net0", "node_port", "1", "60", "-"}, strings.Fields(lines[3]))

	out, errs, code = try("list", "--counters", "--json", "--socket", socket)
	assert.Equal(t, exitGood, code, errs)
	var ports []portDrops
	require.NoError(t, json.Unmarshal([]byte(out), &ports))
	require.Len(t, ports, 2)
	assert.NotNil(t, ports[0].Drops)
	assert.Empty(t, ports[0].Drops)
	assert.Equal(t, uint64(180), ports[1].Drops[0].Bytes)

	_, errs, code = try("list", "--counters", "--cluster", "--socket", socket)
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, errs, "this node's own")
}

type dropsAgent struct{ hooks.Agent }

func (dropsAgent) List(context.Context) ([]fabric.PortEntry, error) {
	return []fabric.PortEntry{{VM: "db", Port: "db_net0", State: fabric.Live}, {VM: "web", Port: "web_net0", State: fabric.Live, Drops: []fabric.Drops{
		{Reason: fabric.DropSource, Packets: 3, Bytes: 180, Last: time.Now().Add(-5500 * time.Millisecond)}, {Reason: fabric.DropNodePort, Packets: 1, Bytes: 60},
	}}}, nil
}

// TestImportPrints what was compared; nothing is written without --yes.
func TestImportPrints(t *testing.T) {
	var wrote bool
	record := fabric.ImportEntry{Node: "node2", VM: "web", Guest: "libvirt 1", Prefix: fabric.HostPrefix(dual[0]), Outcome: fabric.ToRecord}
	bad := fabric.ImportEntry{Node: "node2", VM: "db", Guest: "libvirt 2", Prefix: fabric.HostPrefix(dual[1]), Outcome: fabric.Conflict, Text: "it is reserved"}
	for _, tc := range []struct {
		is      fabric.Import
		args    []string
		code    int
		out     string
		errs    string
		written bool
	}{
		{fabric.Import{Guests: 2, Known: 4}, nil, exitGood, "2 guests: 4 addresses known, 0 to record, 0 in conflict, 0 held back\n", "", false},
		{fabric.Import{Guests: 1, Entries: []fabric.ImportEntry{record}}, nil, exitGood, "NODE   VM   NIC  ADDRESS       OUTCOME    WHY\nnode2  web  0    203.0.113.10  to record  -\n1 guest: 0 addresses known, 1 to record, 0 in conflict, 0 held back\nnothing was written; vmfabric import --yes records it\n", "", false},
		{fabric.Import{Guests: 1, Entries: []fabric.ImportEntry{bad}}, []string{"--yes"}, exitBad, "NODE   VM  NIC  ADDRESS           OUTCOME   WHY\nnode2  db  0    2001:db8:100::10  conflict  it is reserved\n1 guest: 0 addresses known, 0 recorded now, 1 in conflict, 0 held back\n", "", true},
		{fabric.Import{Guests: 1, Silent: []string{"node node3: no answer"}}, nil, exitBad, "1 guest: 0 addresses known, 0 to record, 0 in conflict, 0 held back\n", "vmfabric: node node3: no answer\n", false},
	} {
		socket := serveAgent(t, viewsAgent{imported: tc.is, wrote: &wrote})
		out, errs, code := try(append([]string{"import", "--socket", socket}, tc.args...)...)
		assert.Equal(t, tc.code, code)
		assert.Equal(t, tc.out, out)
		assert.Equal(t, tc.errs, errs)
		assert.Equal(t, tc.written, wrote)
		out, _, code = try(append([]string{"import", "--json", "--socket", socket}, tc.args...)...)
		assert.Equal(t, tc.code, code)
		var is fabric.Import
		require.NoError(t, json.Unmarshal([]byte(out), &is))
		assert.Equal(t, tc.is, is)
	}
}

// TestMark: only what is there is ok. A node that does not answer is not.
func TestMark(t *testing.T) {
	for want, s := range map[string]fabric.Step{
		"ok     ": {Step: "guest", Good: true}, "MISSING": {Step: "guest"}, "WRONG  ": {Step: fabric.Disagreement}, "UNKNOWN": {Step: "node node3", Good: true},
	} {
		assert.Equal(t, want, mark(s))
	}
	assert.Equal(t, "UNKNOWN", mark(fabric.Step{Step: "node node3"}))
}

// TestNumbers: one of something is not several.
func TestNumbers(t *testing.T) {
	var out strings.Builder
	cmd := newRoot()
	cmd.SetOut(&out)
	printStatus(cmd, fabric.Status{Node: "node1", Cluster: "msk1", Ports: 1, Live: 1, Sources: []fabric.SourceStatus{{Name: "libvirt", Guests: 1}}})
	assert.Contains(t, out.String(), "1 port, 1 live")
	assert.Contains(t, out.String(), "1 guest ")
}

// TestNotesOfStatus: a node with a note is healthy, and says it.
func TestNotesOfStatus(t *testing.T) {
	var out strings.Builder
	cmd := newRoot()
	cmd.SetOut(&out)
	printStatus(cmd, fabric.Status{Node: "node1", Cluster: "msk1", Healthy: true, Notes: []string{"no taps; modprobe tun"}})
	assert.Contains(t, out.String(), "node1 of cluster msk1 is healthy")
	assert.Contains(t, out.String(), "\n  - no taps; modprobe tun\n")
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{5 * time.Second: "5s", 3 * time.Minute: "3m", 30 * time.Hour: "30h", 80 * time.Hour: "3d"} {
		assert.Equal(t, want, ago(time.Now().Add(-d-time.Millisecond)))
	}
	assert.Equal(t, "-", ago(time.Time{}))
}

// TestLastContact is of the latest request, with the name that the guest last gave.
func TestLastContact(t *testing.T) {
	at := func(p fabric.ContactProtocol, age time.Duration, host, client string) fabric.Contact {
		return fabric.Contact{Protocol: p, At: time.Now().Add(-age - time.Millisecond), Hostname: host, Client: client}
	}
	dhcp, ra := at(fabric.DHCPv4, time.Minute, "web", "udhcp 1.36"), at(fabric.RouterSolicitation, 3*time.Second, "", "")
	stranger, noIPv6 := dhcp, ra
	stranger.Refused, noIPv6.Refused = "it came from 0a:00:00:00:00:01, and the NIC has 52:54:00:00:00:10", "the NIC has no IPv6 address"
	for _, tc := range []struct {
		contacts      []fabric.Contact
		asked, client string
	}{
		{nil, "-", "-"},
		{[]fabric.Contact{ra}, "3s RS", "-"},
		{[]fabric.Contact{dhcp, ra}, "3s RS", "web (udhcp 1.36)"},
		{[]fabric.Contact{ra, dhcp}, "3s RS", "web (udhcp 1.36)"},
		{[]fabric.Contact{noIPv6, dhcp}, "3s RS", "web (udhcp 1.36)"},
		{[]fabric.Contact{noIPv6, stranger}, "3s RS, refused", "web (udhcp 1.36)"},
		{[]fabric.Contact{dhcp, at(fabric.DHCPv6, time.Second, "db", "")}, "1s DHCPv6", "db"},
		{[]fabric.Contact{at("new", time.Second, "", strings.Repeat("ж", 30))}, "1s new", strings.Repeat("ж", 24) + "..."},
	} {
		asked, client := lastContact(tc.contacts)
		assert.Equal(t, [2]string{tc.asked, tc.client}, [2]string{asked, client})
	}
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

// TestMatching: a guest's addresses, with those that rest, and who has one.
func TestMatching(t *testing.T) {
	at := func(address string, state fabric.AllocationState, vm string) fabric.Allocation {
		return fabric.Allocation{Prefix: fabric.HostPrefix(netip.MustParseAddr(address)), State: state, VM: vm, Guest: fabric.Identity("uuid-of-" + vm)}
	}
	all := []fabric.Allocation{
		at("203.0.113.1", fabric.Allocated, "web"), at("203.0.113.2", fabric.Quarantined, "web"), at("203.0.113.3", fabric.Allocated, "db"),
		at("203.0.113.4", fabric.Reserved, ""), at("2001:db8:100::1", fabric.Quarantined, "web"),
	}
	assert.Equal(t, []fabric.Allocation{all[0], all[1], all[4]}, matching(all, "web"))
	assert.Equal(t, []fabric.Allocation{all[3]}, matching(all, "203.0.113.4"))
	assert.Equal(t, []fabric.Allocation{all[4]}, matching(all, "2001:db8:100::/64"))
	assert.Empty(t, matching(all, "mx"))
}
