package doctor_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/doctor"
	"github.com/vmfabric/vmfabric/packaging"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Inside(m, nil)) }

// far is the network namespace of the other machines: the core gateway, the reflector
// rr1, and node2.
type far struct{ handle netns.NsHandle }

// do runs f on a thread of its own in the namespace.
func (s *far) do(f func() error) error {
	return labtest.InNamespace(&s.handle, f)
}

// run runs a program with a script on standard input.
func run(script string, command ...string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// lab is a node, the namespace of the test, in which everything is right, and the other
// machines.
type lab struct {
	t    *testing.T
	far  *far
	root string
	cfg  doctor.Config

	node2 atomic.Pointer[identity]
}

// identity is what the agent of node2 says of itself.
type identity struct {
	name  string
	ahead time.Duration // its clock
}

const clusterFile = `name: lab
asn: 64512
community: "64512:100"
gateway: {ipv4: 169.254.1.1, ipv6: "fe80::1"}
pools:
  - {name: public4, prefix: 203.0.113.0/24}
  - {name: public6, prefix: "2001:db8:100::/48"}
reflectors:
  - {name: rr1, address: 10.10.0.11, password_file: rr.password}
core:
  - {name: core1, address: 10.10.0.1}
nodes:
  - {name: node1, address: 10.10.0.21, address6: "fd00:10:10::21"}
  - {name: node2, address: 10.10.0.22, address6: "fd00:10:10::22"}
guests: {dns: [9.9.9.9, "2620:fe::fe"]}
key_file: cluster.key
`

// unwired are the checks that need nothing of the network.
var unwired = []string{
	"cluster", "files", "kernel", "sysctl", "networkmanager", "networkd", "netplan", "firewalld", "ufw", "docker", "libvirt", "virtqemud", "denials",
}

// newLab makes what a check needs; all without a check.
func newLab(t *testing.T, check string) *lab {
	l := &lab{t: t, far: &far{}, root: t.TempDir()}
	l.node2.Store(&identity{name: "node2"})
	l.settings()
	l.files()
	l.cfg = doctor.Config{
		Root: l.root, File: filepath.Join(l.root, "etc/vmfabric/cluster.yaml"), Socket: filepath.Join(l.root, "agent.sock"),
		StateDir: "/var/lib/vmfabric", Settings: packaging.Settings, Libvirt: filepath.Join(l.root, "libvirt.sock"), Hooks: "/etc/libvirt/hooks",
		ThisNode: func(c *fabric.Cluster, running string) (fabric.Node, error) { return c.Node(cmp.Or(running, "node1")) },
		Kernel: func(c *fabric.Cluster, n fabric.Node) kernel.Config {
			other, _ := c.Node("node2")
			return kernel.Config{
				Cluster: c.Name, Underlay: addrs(c.Core[0].Address, other.Address, other.Address6), Private: c.Private(),
				Samples: addrs(c.Pools[0].Blocks()[0].Addr().Next(), c.Pools[1].Blocks()[0].Addr().Next()),
			}
		},
		Features: func(context.Context) (kernel.Probed, error) { return kernel.Probed{}, nil },
	}
	if !slices.Contains(unwired, check) {
		l.network()
		l.listen("10.10.0.11:179", "the password")
		l.agent()
	}
	return l
}

func (l *lab) network() {
	t := l.t
	_ = exec.Command("ip", "link", "del", "up0").Run() // of a test before
	require.NoError(t, l.far.do(func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0), os.WriteFile("/proc/sys/net/ipv6/conf/all/accept_dad", []byte("0"), 0))
	}))
	t.Cleanup(func() { l.far.handle.Close() })
	l.ip("link add up0 type veth peer name eth0 netns "+fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(l.far.handle)),
		"addr add 10.10.0.21/24 dev up0", "addr add fd00:10:10::21/64 dev up0 nodad", "link set up0 up")
	require.NoError(t, l.far.do(func() error {
		script := "link set lo up\nlink set eth0 up\n"
		for _, a := range []string{"10.10.0.1/24", "10.10.0.11/24", "10.10.0.22/24", "fd00:10:10::1/64", "fd00:10:10::22/64"} {
			script += "addr add " + a + " dev eth0" + map[bool]string{true: " nodad"}[strings.Contains(a, ":")] + "\n"
		}
		return run(script, "ip", "-batch", "-")
	}))
	l.ip("route add default via 10.10.0.1", "route add default via fd00:10:10::1")
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", "up0").Run()
		_ = exec.Command("nft", "flush", "ruleset").Run() // of this namespace
	})
}

// settings puts those of the node in force.
func (l *lab) settings() {
	l.sysctl("net/ipv4/ip_forward", "1")
	l.sysctl("net/ipv6/conf/all/forwarding", "1")
	l.sysctl("net/ipv4/conf/all/send_redirects", "0")
	l.sysctl("net/ipv4/conf/default/send_redirects", "0")
	l.sysctl("net/ipv4/conf/all/rp_filter", "0")
}

func (l *lab) files() {
	require.NoError(l.t, os.Symlink("/proc", filepath.Join(l.root, "proc")))
	l.write("etc/sysctl.d/90-vmfabric.conf", packaging.Settings)
	l.write("etc/vmfabric/cluster.yaml", clusterFile)
	l.secret("etc/vmfabric/cluster.key", "the key of the cluster")
	l.secret("etc/vmfabric/rr.password", "the password")
	l.write("dev/kmsg", "6,1,1,-;Linux version\n")
	require.NoError(l.t, os.MkdirAll(filepath.Join(l.root, "var/lib/vmfabric"), 0o700))
}

func (l *lab) write(path, text string) {
	l.t.Helper()
	file := filepath.Join(l.root, path)
	require.NoError(l.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(l.t, os.WriteFile(file, []byte(text), 0o644))
}

func (l *lab) secret(path, text string) {
	l.t.Helper()
	l.write(path, text)
	l.chmod(path, 0o600)
}

func (l *lab) chmod(path string, mode os.FileMode) {
	l.t.Helper()
	require.NoError(l.t, os.Chmod(filepath.Join(l.root, path), mode))
}

// enable has systemd start a unit at boot.
func (l *lab) enable(unit string) {
	l.t.Helper()
	l.write("lib/systemd/system/"+unit, "")
	wants := filepath.Join(l.root, "etc/systemd/system/multi-user.target.wants")
	require.NoError(l.t, os.MkdirAll(wants, 0o755))
	require.NoError(l.t, os.Symlink("/lib/systemd/system/"+unit, filepath.Join(wants, unit)))
}

func (l *lab) edit(path, from, to string) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.root, path))
	require.NoError(l.t, err)
	require.Contains(l.t, string(text), from)
	l.write(path, strings.Replace(string(text), from, to, 1))
}

func (l *lab) ip(commands ...string) {
	l.t.Helper()
	require.NoError(l.t, run(strings.Join(commands, "\n")+"\n", "ip", "-batch", "-"))
}

func (l *lab) nft(script string) {
	l.t.Helper()
	require.NoError(l.t, run(script, "nft", "-f", "-"))
}

// farNft loads rules on the other machines.
func (l *lab) farNft(script string) {
	l.t.Helper()
	require.NoError(l.t, l.far.do(func() error { return run(script, "nft", "-f", "-") }))
}

func (l *lab) sysctl(path, value string) {
	l.t.Helper()
	require.NoError(l.t, os.WriteFile("/proc/sys/"+path, []byte(value), 0))
}

// proc gives the node a /proc of files, in the place of the kernel's.
func (l *lab) proc(files map[string]string) {
	l.t.Helper()
	require.NoError(l.t, os.Remove(filepath.Join(l.root, "proc")))
	for path, text := range files {
		l.write("proc/"+path, text)
	}
}

// listen has another machine listen for sessions with a password.
func (l *lab) listen(at, password string) {
	l.t.Helper()
	var listener net.Listener
	require.NoError(l.t, l.far.do(func() (err error) {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = protect(int(fd), password) }), err)
		}}
		config.SetMultipathTCP(false)
		listener, err = config.Listen(l.t.Context(), "tcp", at)
		return err
	}))
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// agent has node2 answer greetings as its agent does.
func (l *lab) agent() {
	l.t.Helper()
	for _, at := range []string{"10.10.0.22:7147", "[fd00:10:10::22]:7147"} {
		var listener net.Listener
		require.NoError(l.t, l.far.do(func() (err error) {
			listener, err = net.Listen("tcp", at)
			return err
		}))
		l.t.Cleanup(func() { listener.Close() })
		go l.answer(listener)
	}
}

// status has an agent of this node answer its hooks; an error in the reply is for what is
// not asked about its status.
func (l *lab) status(reply hooks.Reply) {
	l.t.Helper()
	listener, err := hooks.Listen(l.t.Context(), l.cfg.Socket)
	require.NoError(l.t, err)
	require.NoError(l.t, listener.Close()) // it made the folder
	u, err := net.Listen("unix", l.cfg.Socket)
	require.NoError(l.t, err)
	l.chmod("agent.sock", 0o600)
	l.t.Cleanup(func() { u.Close() })
	failed, err := json.Marshal(hooks.Reply{V: hooks.Version, Error: reply.Error})
	require.NoError(l.t, err)
	failing := reply.Error != ""
	reply.V, reply.OK, reply.Error = hooks.Version, true, ""
	line, err := json.Marshal(reply)
	require.NoError(l.t, err)
	go func() {
		for {
			c, err := u.Accept()
			if err != nil {
				return
			}
			if request, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				answer := line
				if failing && !strings.Contains(request, `"status"`) {
					answer = failed
				}
				_, _ = c.Write(append(answer, '\n'))
			}
			c.Close()
		}
	}()
}
