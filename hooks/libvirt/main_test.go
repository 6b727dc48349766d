package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
	"github.com/vmfabric/vmfabric/hooks"
	lab "github.com/vmfabric/vmfabric/testenv/fake"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "hook")
	if err != nil {
		log.Fatal(err)
	}
	binary = filepath.Join(dir, "vmfabric")
	build := exec.Command("go", "build", "-ldflags", "-X main.version=9.9.9", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		log.Fatalf("%v: %s", err, out)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// fake is an agent that writes down what it was asked, and answers err.
type fake struct {
	hooks.Hypervisors // which libvirt's hook does not ask
	hooks.Registry    // likewise
	hooks.Cluster     // likewise
	mu                sync.Mutex
	asked             []string
	vms               []fabric.VM
	err               error
}

func (f *fake) note(vm fabric.VM, what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.vms = append(f.asked, vm.Name+" "+what), append(f.vms, vm)
	return f.err
}

func (f *fake) Apply(_ context.Context, vm fabric.VM, s fabric.State) error {
	return f.note(vm, s.String())
}
func (f *fake) Started(_ context.Context, vm fabric.VM) error { return f.note(vm, "started") }
func (f *fake) Withdraw(_ context.Context, vm string) error {
	return f.note(fabric.VM{Name: vm}, "withdrawn")
}

func (f *fake) Expect(_ context.Context, vm string) error {
	return f.note(fabric.VM{Name: vm}, "expected")
}
func (f *fake) List(context.Context) ([]fabric.PortEntry, error)     { return nil, f.err }
func (f *fake) Status(context.Context) (fabric.Status, error)        { return fabric.Status{}, f.err }
func (f *fake) Moves(context.Context, string) ([]fabric.Move, error) { return nil, f.err }
func (f *fake) Drain(context.Context) error                          { return f.err }
func (f *fake) Advertisements(context.Context, netip.Prefix) ([]fabric.Advertisement, error) {
	return nil, f.err
}
func (f *fake) Undrain(context.Context) error                     { return f.err }
func (f *fake) Traffic(context.Context) ([]fabric.Traffic, error) { return nil, f.err }
func (f *fake) Blackhole(context.Context, netip.Addr, time.Duration) (fabric.Blackhole, error) {
	return fabric.Blackhole{}, f.err
}
func (f *fake) LiftBlackhole(context.Context, netip.Addr) error        { return f.err }
func (f *fake) Blackholes(context.Context) ([]fabric.Blackhole, error) { return nil, f.err }
func (f *fake) CheckForwarding(context.Context) ([]fabric.ForwardingFault, error) {
	return nil, f.err
}

func serve(t *testing.T, agent hooks.Agent) (socket string) {
	socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := hooks.Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- hooks.Serve(ctx, l, agent, nil) }()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	return socket
}

// written is XML as libvirt wrote it for its hook.
func written(t *testing.T, file string) string {
	b, err := os.ReadFile("../../fabric/libvirt/domxml/testdata/" + file)
	require.NoError(t, err)
	return string(b)
}

// command is the hook as libvirt runs it.
func command(socket string, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/", "LC_ALL=C", "VMFABRIC_SOCKET=" + socket}
	return cmd
}

// run gives the hook's exit status and what it said. It never says anything on
// standard output, nor more than a line on standard error.
func run(t *testing.T, socket, op, xml string) (status int, said string) {
	t.Helper()
	return runAs(t, "sea_gold", socket, op, xml)
}

func runAs(t *testing.T, domain, socket, op, xml string) (status int, said string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := command(socket, domain, op, "begin", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(xml), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		assert.NoError(t, err)
		return -1, ""
	}
	assert.Empty(t, stdout.String())
	said = stderr.String()
	if said != "" {
		assert.Equal(t, len(said)-1, strings.IndexByte(said, '\n'), "one line: %q", said)
	}
	return cmd.ProcessState.ExitCode(), strings.TrimSuffix(said, "\n")
}

// refusal is the exit status of what cannot be done.
func refusal(op string) int {
	if op == "prepare" || op == "start" {
		return 1
	}
	return 0
}

func TestNoAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("waits 4 s for an agent")
	}
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	xml := written(t, "started.xml")
	var all sync.WaitGroup
	for op, o := range operations {
		all.Go(func() {
			began := time.Now()
			status, said := run(t, socket, op, xml)
			waits := patience{time.Second, 5 * time.Second}
			if refusal(op) == 1 {
				waits = patience{4 * time.Second, 20 * time.Second}
			}
			assert.Equal(t, refusal(op), status, op)
			assert.Equal(t, "vmfabric: no agent answers on "+socket+" (connect: no such file or directory); start it: systemctl start vmfabric", said)
			assert.Equal(t, waits, o.patience, op)
			assert.Greater(t, time.Since(began), waits.absent/2, op)
		})
	}
	all.Wait()
}

func TestOperations(t *testing.T) {
	t.Parallel()
	for op, c := range map[string]struct{ file, asked string }{
		"prepare":   {"started.xml", "sea_gold wired"},
		"start":     {"started.xml", "sea_gold wired"},
		"started":   {"started.xml", "sea_gold started"},
		"reconnect": {"started.xml", "sea_gold started"},
		"stopped":   {"stopped.xml", "sea_gold withdrawn"},
		"release":   {"release.xml", "sea_gold absent"},
		"migrate":   {"stopped.xml", "sea_gold expected"},
		"restore":   {"stopped.xml", ""},
		"attach":    {"started.xml", ""},
		"":          {"started.xml", ""},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			agent := &fake{}
			status, said := run(t, serve(t, agent), op, written(t, c.file))
			assert.Zero(t, status)
			assert.Empty(t, said)
			if c.asked == "" {
				assert.Empty(t, agent.asked)
				return
			}
			require.Equal(t, []string{c.asked}, agent.asked)
			if c.file == "started.xml" {
				vm := agent.vms[0]
				assert.Equal(t, "libvirt", vm.Origin)
				assert.Equal(t, "aaaaaaaa-0000-4000-8000-000000000001", vm.UUID)
				require.Len(t, vm.NICs, 2)
				assert.Equal(t, fabric.Tap, vm.NICs[0].Kind)
				assert.Equal(t, fabric.Adopt, vm.NICs[1].Kind)
				assert.Equal(t, "[203.0.113.10 2001:db8:100::10]", fmt.Sprint(vm.NICs[0].Addresses))
			}
		})
	}
}

// emptied is what libvirt wrote, with an empty <fabric:vm/>.
func emptied(t *testing.T, file string) string {
	before, rest, _ := strings.Cut(written(t, file), "<fabric:nic>")
	_, after, found := strings.Cut(rest, "</fabric:vm>")
	require.True(t, found)
	return before + "</fabric:vm>" + after
}

// A guest that has run since its port had a name that begins with '-' goes on, and
// is told how to write it when it is to start again.
func TestFormerPortName(t *testing.T) {
	t.Parallel()
	for op, asked := range map[string]string{
		"prepare": "", "start": "", "started": "-web started", "reconnect": "-web started", "stopped": "-web withdrawn", "release": "-web absent",
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			agent := &fake{}
			status, said := runAs(t, "-web", serve(t, agent), op, strings.ReplaceAll(written(t, "started.xml"), "sea_gold", "-web"))
			if asked == "" {
				assert.Equal(t, 1, status)
				assert.Equal(t, "vmfabric: domain -web: <target dev='-web_net0'>: names of ports begin with a letter or a digit now; write <target dev='webttbriwy_net0'> (virsh edit)", said)
				assert.Empty(t, agent.asked)
				return
			}
			assert.Zero(t, status)
			assert.Empty(t, said)
			require.Equal(t, []string{asked}, agent.asked)
			if strings.HasSuffix(asked, "started") {
				assert.Equal(t, fabric.Tap, agent.vms[0].NICs[0].Kind)
				assert.Equal(t, fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, agent.vms[0].NICs[0].MAC)
			}
		})
	}
}

// A guest whose domain does not say what it has is the agent's to find out
// about, and needs no more than its name on the way down.
func TestResolve(t *testing.T) {
	t.Parallel()
	for op, c := range map[string]struct{ file, asked string }{
		"prepare":   {"started.xml", "sea_gold wired"},
		"start":     {"started.xml", "sea_gold wired"},
		"started":   {"started.xml", "sea_gold started"},
		"reconnect": {"started.xml", "sea_gold started"},
		"stopped":   {"stopped.xml", "sea_gold withdrawn"},
		"release":   {"release.xml", "sea_gold absent"},
		"migrate":   {"stopped.xml", "sea_gold expected"},
		"restore":   {"stopped.xml", ""},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			agent := &fake{}
			xml := emptied(t, c.file)
			status, said := run(t, serve(t, agent), op, xml)
			assert.Zero(t, status)
			assert.Empty(t, said)
			if c.asked == "" {
				assert.Empty(t, agent.asked)
				return
			}
			require.Equal(t, []string{c.asked}, agent.asked)
			if c.file == "started.xml" {
				assert.Equal(t, fabric.VM{
					Name: "sea_gold", UUID: "aaaaaaaa-0000-4000-8000-000000000001", Origin: "libvirt", Resolve: true,
					NICs: []fabric.NIC{
						{Kind: fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, Queues: 2, MTU: 9000},
						{Kind: fabric.Adopt, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0b}},
					},
				}, agent.vms[0])
				assert.True(t, agent.vms[0].Unresolved())
			}

			// Without an interface there is nothing to ask about.
			agent = &fake{}
			status, said = run(t, serve(t, agent), op, strings.ReplaceAll(xml, "sea_gold_net", "vnet"))
			assert.Equal(t, refusal(op), status)
			if c.file == "started.xml" {
				assert.Equal(t, "vmfabric: domain sea_gold: <fabric:vm> is empty, and no interface has <target dev='sea_gold_net0'>; add <interface type='ethernet'><target dev='sea_gold_net0' managed='no'/><model type='virtio'/></interface> for addresses of the resolver or the pools, or a <fabric:nic> with its own", said)
				assert.Empty(t, agent.asked)
			} else {
				assert.Empty(t, said)
				assert.Equal(t, []string{c.asked}, agent.asked)
			}
		})
	}
}

// A guest that asks for addresses of pools passes with what it asks for, and needs no
// more than its name on the way down.
func TestPools(t *testing.T) {
	t.Parallel()
	for op, c := range map[string]struct{ file, asked string }{
		"prepare":   {"started.xml", "sea_gold wired"},
		"start":     {"started.xml", "sea_gold wired"},
		"started":   {"started.xml", "sea_gold started"},
		"reconnect": {"started.xml", "sea_gold started"},
		"stopped":   {"stopped.xml", "sea_gold withdrawn"},
		"release":   {"release.xml", "sea_gold absent"},
		"migrate":   {"stopped.xml", "sea_gold expected"},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			agent := &fake{}
			xml := strings.Replace(emptied(t, c.file), "</fabric:vm>",
				`<fabric:nic><fabric:address>203.0.113.10</fabric:address><fabric:address pool="public6"/></fabric:nic><fabric:nic/></fabric:vm>`, 1)
			status, said := run(t, serve(t, agent), op, xml)
			assert.Zero(t, status)
			assert.Empty(t, said)
			require.Equal(t, []string{c.asked}, agent.asked)
			if c.file != "started.xml" {
				return
			}
			vm := agent.vms[0]
			assert.False(t, vm.Resolve)
			require.Len(t, vm.NICs, 2)
			assert.Equal(t, "[203.0.113.10]", fmt.Sprint(vm.NICs[0].Addresses))
			assert.Equal(t, []string{"public6"}, vm.NICs[0].Pools)
			assert.Equal(t, []string{fabric.AutoPool}, vm.NICs[1].Pools)
			assert.True(t, vm.Unresolved())
			assert.NoError(t, vm.Validate())

			status, said = run(t, serve(t, agent), op, strings.Replace(xml, "public6", "", 1))
			assert.Equal(t, refusal(op), status)
			assert.Equal(t, `vmfabric: domain sea_gold: <fabric:nic> 0: <fabric:address pool=""/>: "" is not the name of a pool; write one such as public4, or auto`, said)
		})
	}
}

// The whole way to an agent, and its word back.
func TestResolveRefused(t *testing.T) {
	t.Parallel()
	for op := range operations {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			cluster := fabric.Cluster{
				Name: "msk1", ASN: 64512, Communities: []fabric.Community{{A: 64512, B: 100}},
				Gateway:    fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1")},
				Pools:      []fabric.Pool{{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24")}, {Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48")}},
				Reflectors: []fabric.RR{{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}},
				Nodes:      []fabric.Node{{Name: "node1", Address: netip.MustParseAddr("10.10.0.21")}},
			}
			var j lab.Journal
			agent, err := agent.New(agent.Config{Cluster: cluster, Node: "node1", Dataplane: lab.NewDataplane(&j), Speaker: lab.NewSpeaker(&j), Store: lab.NewStore(&j)}, agent.WithRemedies(hooks.Remedy))
			require.NoError(t, err)
			status, said := run(t, serve(t, agent), op, emptied(t, "started.xml"))
			assert.Equal(t, refusal(op), status)
			if operations[op].up {
				assert.Equal(t, "vmfabric: guest sea_gold refused: it does not say what it has, and this node has no resolver; name one in the cluster file (resolver:), or write its addresses into the XML, or the instance's keys", said)
			} else {
				assert.Empty(t, said)
			}
			assert.Empty(t, j.Take())
		})
	}
}

func TestAgentSaysNo(t *testing.T) {
	t.Parallel()
	for op := range operations {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			socket := serve(t, &fake{err: errors.New("guest sea_gold refused:\nits address is that of web")})
			status, said := run(t, socket, op, written(t, "started.xml"))
			assert.Equal(t, refusal(op), status)
			assert.Equal(t, "vmfabric: guest sea_gold refused:; its address is that of web", said)
		})
	}
}

func TestAgentComesBack(t *testing.T) {
	t.Parallel()
	agent := &fake{}
	socket := serve(t, agent)
	away := socket + ".away"
	require.NoError(t, os.Rename(socket, away))
	time.AfterFunc(300*time.Millisecond, func() { assert.NoError(t, os.Rename(away, socket)) })
	status, said := run(t, socket, "prepare", written(t, "started.xml"))
	assert.Zero(t, status)
	assert.Empty(t, said)
	assert.Equal(t, []string{"sea_gold wired"}, agent.asked)
}

// An agent that takes the request and does not answer.
func TestSilentAgent(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	socket := serve(t, stuck{&fake{}, release})
	o := operations["prepare"]
	o.silent = 200 * time.Millisecond
	err := o.do(t.Context(), "sea_gold", socket, strings.NewReader(written(t, "started.xml")))
	assert.EqualError(t, err, "the agent on "+socket+" did not answer within 200ms (context deadline exceeded); see its log: journalctl -u vmfabric")
}

type stuck struct {
	*fake
	release chan struct{}
}

func (s stuck) Apply(context.Context, fabric.VM, fabric.State) error { <-s.release; return nil }

func TestNotOurs(t *testing.T) {
	t.Parallel()
	const mention = `<domain><name>sea_gold</name><description>was in urn:vmfabric:domain:1</description></domain>`
	for op := range operations {
		for name, xml := range map[string]string{
			"no metadata": strings.ReplaceAll(written(t, "started.xml"), "urn:vmfabric", "urn:other"),
			"mentioned":   mention,
			"empty":       "",
		} {
			t.Run(op+" "+name, func(t *testing.T) {
				t.Parallel()
				// A connection would fail, and the failure be told.
				status, said := run(t, "/nonexistent/agent.sock", op, xml)
				assert.Zero(t, status)
				assert.Empty(t, said)
			})
		}
	}
}

func TestBadXML(t *testing.T) {
	t.Parallel()
	xml := written(t, "started.xml")
	cases := map[string]struct{ xml, said string }{
		"another version": {
			strings.ReplaceAll(xml, "urn:vmfabric:domain:1", "urn:vmfabric:domain:7"),
			`vmfabric: domain sea_gold: <vm> is in the namespace "urn:vmfabric:domain:7"; write xmlns:fabric="urn:vmfabric:domain:1"`,
		},
		"cut off": {xml[:800], "vmfabric: domain sea_gold: line 25 of the XML: unexpected EOF; check it with virt-xml-validate"},
		"no interface": {
			strings.ReplaceAll(xml, "<target dev='sea_gold_net1'/>", ""),
			"vmfabric: domain sea_gold: <fabric:nic> 1 has no interface with <target dev='sea_gold_net1'>; add <interface type='ethernet'><target dev='sea_gold_net1' managed='no'/><model type='virtio'/></interface>",
		},
	}
	down := map[string]string{"stopped": "sea_gold withdrawn", "release": "sea_gold absent", "migrate": "sea_gold expected"}
	for op := range operations {
		for name, c := range cases {
			t.Run(op+" "+name, func(t *testing.T) {
				t.Parallel()
				agent := &fake{}
				status, said := run(t, serve(t, agent), op, c.xml)
				assert.Equal(t, refusal(op), status)
				if what, is := down[op]; is {
					assert.Equal(t, []string{what}, agent.asked, "the name is enough")
					assert.Empty(t, said)
				} else {
					assert.Empty(t, agent.asked)
					assert.Equal(t, c.said, said)
				}
			})
		}
	}
}

// libvirt must be able to write all of the XML, even for an operation that is
// not looked at.
func TestInputIsDrained(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"restore", "prepare"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			cmd := command("/nonexistent/agent.sock", "sea_gold", op, "begin", "-")
			stdin, err := cmd.StdinPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			for range 20 {
				_, err = io.WriteString(stdin, strings.Repeat("x", 1<<20))
				require.NoError(t, err)
			}
			require.NoError(t, stdin.Close())
			assert.NoError(t, cmd.Wait())
		})
	}
}

// A guest that runs must not pay for a libvirtd that does not listen.
// However much stands before <fabric:vm>, the guest is not started without the
// fabric; and one that has none is not the fabric's however long its XML is.
func TestLongXML(t *testing.T) {
	t.Parallel()
	agent := &fake{}
	socket := serve(t, agent)
	xml := written(t, "started.xml")
	comment := func(length int) string { return "<!--" + strings.Repeat("x", length-len("<!---->")) + "-->" }
	at := strings.Index(xml, "urn:vmfabric")
	for name, long := range map[string]string{
		"before": strings.Replace(xml, "<metadata>", "<metadata>"+comment(domxml.MaxBytes+1), 1),
		"across": strings.Replace(xml, "<metadata>", "<metadata>"+comment(domxml.MaxBytes+1-at-5), 1),
		"after":  strings.Replace(xml, "</metadata>", "</metadata>"+comment(domxml.MaxBytes+1), 1),
	} {
		require.Greater(t, len(long), domxml.MaxBytes+1, name)
		for _, op := range []string{"prepare", "started", "release"} {
			status, said := run(t, socket, op, long)
			assert.Equal(t, refusal(op), status, "%s %s", name, op)
			if operations[op].up {
				assert.Contains(t, said, "domain sea_gold: the XML is longer than 16777216 bytes; give what virsh dumpxml prints", "%s %s", name, op)
			}
		}
		status, said := run(t, socket, "prepare", strings.ReplaceAll(long, "urn:vmfabric", "urn:other"))
		assert.Zero(t, status, said)
		assert.Empty(t, said)
	}
	agent.mu.Lock()
	defer agent.mu.Unlock()
	for _, asked := range agent.asked {
		assert.NotContains(t, []string{"sea_gold wired", "sea_gold live", "sea_gold started"}, asked)
	}
	assert.Contains(t, agent.asked, "sea_gold absent", "the way down needs the name alone")
}

func TestNobodyReadsStandardError(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	defer w.Close()
	cmd := command("/nonexistent/agent.sock", "sea_gold", "reconnect", "begin", "-")
	cmd.Stdin, cmd.Stderr = strings.NewReader(written(t, "started.xml")), w
	assert.NoError(t, cmd.Run())
}

type broken struct{}

func (broken) Read([]byte) (int, error) { panic("a fault\nin two lines") }

func TestPanic(t *testing.T) {
	t.Parallel()
	for op, o := range operations {
		err := o.do(t.Context(), "sea_gold", "", broken{})
		assert.EqualError(t, err, `domain sea_gold: fault in the hook: "a fault\nin two lines"; please report it`, op)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--help"}} {
		var stdout, stderr bytes.Buffer
		cmd := command("", args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		var exit *exec.ExitError
		require.ErrorAs(t, cmd.Run(), &exit)
		assert.Equal(t, 2, exit.ExitCode())
		assert.Empty(t, stdout.String())
		assert.Equal(t, "vmfabric's hook for libvirt, version 9.9.9\nusage: "+binary+" DOMAIN OPERATION SUB-OPERATION - < domain.xml\n", stderr.String())
	}
}

// The hook runs four times for every start of a guest.
func TestImportsAreFew(t *testing.T) {
	t.Parallel()
	const module = "github.com/vmfabric/vmfabric/"
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	out, err := cmd.Output()
	require.NoError(t, err)
	assert.Equal(t, []string{
		module + "fabric", module + "fabric/libvirt/domxml", module + "internal/backoff", module + "internal/oneline", module + "hooks", module + "internal/version", module + "hooks/libvirt",
	}, slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool { return strings.HasPrefix(path, module+"fabric/internal/") }))
	out, err = exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	for _, heavy := range []string{"net/http", "crypto/tls", "text/template", "os/exec"} {
		assert.NotContains(t, strings.Fields(string(out)), heavy)
	}
}

func BenchmarkHook(b *testing.B) {
	xml, err := os.ReadFile("../../fabric/libvirt/domxml/testdata/started.xml")
	require.NoError(b, err)
	socket := filepath.Join(b.TempDir(), "agent.sock")
	l, err := hooks.Listen(b.Context(), socket)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- hooks.Serve(ctx, l, &fake{}, nil) }()
	for b.Loop() {
		cmd := command(socket, "sea_gold", "prepare", "begin", "-")
		cmd.Stdin = bytes.NewReader(xml)
		require.NoError(b, cmd.Run())
	}
	cancel()
	require.NoError(b, <-done)
}

// TestVersion: it is the only thing that the hook ever prints to its standard output.
func TestVersion(t *testing.T) {
	out, err := exec.Command(binary, "--version").Output()
	require.NoError(t, err)
	assert.Regexp(t, `^vmfabric-hook-libvirt 9\.9\.9 \(go.*\)\n$`, string(out))
}
