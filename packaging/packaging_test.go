package packaging

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

func TestClusterExample(t *testing.T) {
	c, err := clusterfile.Load(labtest.Own(t, "cluster.yaml.example"))
	require.NoError(t, err)
	assert.Contains(t, strings.Join(clusterfile.Warnings(c), "\n"), "no key_file")
	c.Key = "the key of the cluster"
	onlyReflectorsIPv6(t, c)
}

// onlyReflectorsIPv6 holds for a cluster in which everything is named but the
// reflectors' IPv6 addresses, which their machines have and the file cannot say.
func onlyReflectorsIPv6(t *testing.T, c fabric.Cluster) {
	t.Helper()
	warnings := clusterfile.Warnings(c)
	require.Len(t, warnings, 1)
	assert.Contains(t, warnings[0], "reflectors rr1 and rr2 are not: their IPv6 routes ride on IPv4 sessions")
}

// TestClusterExampleUncommented: what the example offers in comments is right too.
func TestClusterExampleUncommented(t *testing.T) {
	text := regexp.MustCompile(`(?m)^( *)#( *[a-z0-9_]+: )`).ReplaceAllString(read(t, "cluster.yaml.example"), "$1$2")
	text = strings.Replace(text, "#timers:", "timers:", 1)
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rr.password"), []byte("s3cret\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cluster.key"), []byte("the key of the cluster\n"), 0o600))
	c, err := clusterfile.Load(file)
	require.NoError(t, err)

	assert.Equal(t, "the key of the cluster", c.Key)
	assert.Equal(t, fabric.DefaultMAC, c.Gateway.MAC)
	assert.Len(t, c.Routed, 2)
	assert.Len(t, c.Guests.Reach, 2)
	assert.Len(t, c.Guests.NodePorts, 2)
	assert.Equal(t, []string{"example.net"}, c.Guests.Search)
	assert.Len(t, c.Guests.NTP, 1)
	assert.Equal(t, 1500, c.Guests.MTU)
	assert.False(t, c.Guests.NoDHCP || c.Guests.NoRA)
	assert.Equal(t, fabric.RR{
		Name: "rr1", Address: netip.MustParseAddr("10.10.0.11"), ASN: 64512, Port: 179, Password: "s3cret", GTSM: true, BFD: true,
	}, c.Reflectors[0])
	timers := fabric.DefaultTimers
	timers.LongLived = time.Hour
	assert.Equal(t, timers, c.Timers)
	assert.NotRegexp(t, `(?m)^ *#[a-z0-9_]+:`, text, "a key is still commented out")
}

// TestRendered runs what the example cluster's reflectors and core gateway are
// rendered to, on BIRD: host routes of the pools with the cluster's community
// pass from a node to the core gateway's kernel, and nothing else does.
func TestRendered(t *testing.T) {
	labtest.Need(t, "bird")
	c, err := clusterfile.Load(labtest.Own(t, "cluster.yaml.example"))
	require.NoError(t, err)
	_, top := labtest.Build(t, c)
	start := func(h *core.Host) *routers.Bird {
		conf, err := render.Router(c, render.BIRD, h.Name())
		require.NoError(t, err)
		b, err := routers.StartBird(labtest.Soon(t), h, strings.Replace(conf, "log syslog all", "log stderr all", 1))
		require.NoError(t, err)
		return b
	}
	var reflectors []*routers.Bird
	for _, h := range top.Reflectors {
		reflectors = append(reflectors, start(h))
	}
	start(top.Core)

	good := prefixes("203.0.113.10/32", "2001:db8:100::10/128")
	bad := prefixes("203.0.113.64/26", "2001:db8:100:1::/64", "198.51.100.7/32", "2001:db8:9::7/128", "203.0.113.255/32", "0.0.0.0/0", "::/0")
	node := top.Nodes["node1"]
	speaker := routers.Announcer{
		RouterID: node.Addr4(), Communities: c.Communities, Routes: append(good, bad...),
		Reflectors: []netip.Addr{c.Reflectors[0].Address, c.Reflectors[1].Address},
	}
	b, err := routers.StartBird(labtest.Soon(t), node, speaker.Bird())
	require.NoError(t, err)
	inCore := func(p netip.Prefix, want bool) {
		t.Helper()
		require.NoError(t, core.Until(labtest.Soon(t), func() error {
			if r, there, err := top.Core.Route(p); err != nil || there != want {
				return fmt.Errorf("core gateway: %s: %v %v %w", p, r, there, err)
			}
			return nil
		}))
	}
	for _, p := range good {
		inCore(p, true)
	}
	// Of everything that is announced, the reflectors keep this alone.
	for _, rr := range reflectors {
		require.NoError(t, core.Until(labtest.Soon(t), func() error {
			routes, err := rr.Routes(labtest.Soon(t))
			if err == nil && len(routes) != len(good) {
				err = fmt.Errorf("reflector has %v", routes)
			}
			return err
		}))
	}
	for _, p := range bad {
		inCore(p, false)
	}
	for _, p := range prefixes("203.0.113.0/24", "2001:db8:100::/48") {
		inCore(p, true) // addresses that no guest has end here
	}

	speaker.Communities = []fabric.Community{{A: 64512, B: 666}}
	require.NoError(t, b.Configure(labtest.Soon(t), speaker.Bird()))
	for _, p := range good {
		inCore(p, false)
	}
}

func prefixes(all ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range all {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func TestReadmeClusterFile(t *testing.T) {
	key := filepath.Join(t.TempDir(), "cluster.key")
	text := labtest.Blocks(t, "../README.md", "", "yaml")[0]
	require.Contains(t, text, "key_file: /etc/vmfabric/cluster.key")
	// The command that it gives makes one that is taken.
	command, _, found := strings.Cut(regexp.MustCompile(`(?m)^\(umask .*$`).FindString(read(t, "../README.md")), "   #")
	require.True(t, found)
	out, err := exec.Command("sh", "-c", strings.ReplaceAll(command, "/etc/vmfabric/cluster.key", key)).CombinedOutput()
	require.NoError(t, err, string(out))
	c, err := clusterfile.Parse("README.md", []byte(strings.ReplaceAll(text, "/etc/vmfabric/cluster.key", key)))
	require.NoError(t, err)
	assert.Len(t, c.Key, 44)
	onlyReflectorsIPv6(t, c)
}

func TestReadmeDomain(t *testing.T) {
	metadata, devices, found := strings.Cut(labtest.Blocks(t, "../README.md", "", "xml")[0], "...\n")
	require.True(t, found)
	d, err := domxml.Parse(strings.NewReader("<domain><name>sea_gold</name>" + metadata + "<devices>" + devices + "</devices></domain>"))
	require.NoError(t, err)
	require.NoError(t, d.Plugged())
	assert.Equal(t, prefixes("203.0.113.10/32", "2001:db8:100::10/128"), d.VM().Prefixes())
	assert.Equal(t, fabric.Tap, d.VM().NICs[0].Kind)
}

// TestReadmeProgram: what the README shows of the library compiles.
func TestReadmeProgram(t *testing.T) {
	const module = "github.com/vmfabric/vmfabric/"
	var b strings.Builder
	b.WriteString("package main\n\nimport (\n\t\"context\"\n\t\"net/netip\"\n\n")
	for _, p := range []string{"fabric", "fabric/agent", "fabric/clusterfile", "fabric/disk", "fabric/gobgp", "fabric/kernel"} {
		fmt.Fprintf(&b, "\t%q\n", module+p)
	}
	b.WriteString(")\n\nfunc main() {\n\tctx := context.Background()\n")
	b.WriteString(labtest.Blocks(t, "../README.md", "", "go")[0])
	b.WriteString("}\n\nfunc must[T any](v T, err error) T { return v }\n")
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o600))
	out, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestGuestConfigDocument: the netplan of two NICs is what guest-config prints, which the
// tests of the renderer apply.
func TestGuestConfigDocument(t *testing.T) {
	vm := fabric.VM{Name: "web", NICs: []fabric.NIC{
		{MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x10}, Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}},
		{MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x11}, Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.20"), netip.MustParseAddr("2001:db8:100::20")}},
	}}
	c, err := clusterfile.Load(labtest.Own(t, "cluster.yaml.example"))
	require.NoError(t, err)
	text, err := render.Guest(vm, c.Network(), render.Netplan, nil)
	require.NoError(t, err)
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	assert.Contains(t, read(t, "../docs/guest-config.md"), "```yaml\n"+text+"```\n")
}

// TestWatchdogIsInTime: an agent that stands still is ended before its reflectors take its
// node for dead, also if it sent the last keepalive a third of the hold time before, and
// with a second left for a machine that is busy.
func TestWatchdogIsInTime(t *testing.T) {
	m := regexp.MustCompile(`(?m)^WatchdogSec=(\d+)$`).FindStringSubmatch(read(t, "vmfabric.service"))
	require.NotNil(t, m)
	within, err := time.ParseDuration(m[1] + "s")
	require.NoError(t, err)
	assert.LessOrEqual(t, within, fabric.DefaultTimers.Hold*2/3-time.Second)
	assert.Contains(t, read(t, "vmfabric.service"), "\nWatchdogSignal=SIGKILL\n", "another lets Go write traces until it is too late")
}

// TestLinks: the documents lead to files that are there.
func TestLinks(t *testing.T) {
	documents, err := filepath.Glob("../*.md")
	require.NoError(t, err)
	more, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	documents = append(append(documents, more...), "README.md")
	for _, doc := range documents {
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(read(t, doc), -1) {
			// The benchmark writes its report; a checkout may be without.
			if filepath.Base(m[1]) == "performance.md" {
				continue
			}
			_, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1]))
			assert.NoError(t, err, "%s: link to %s", doc, m[1])
		}
	}
}
