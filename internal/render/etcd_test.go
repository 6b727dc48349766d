package render_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// etcdCluster has an etcd on the two reflectors and the core gateway of a small cluster.
func etcdCluster() fabric.Cluster {
	c := core.SmallCluster(2)
	c.Registry.Etcd = &fabric.EtcdConfig{}
	for _, at := range []netip.Addr{c.Reflectors[0].Address, c.Reflectors[1].Address, c.Core[0].Address} {
		c.Registry.Etcd.Endpoints = append(c.Registry.Etcd.Endpoints, "https://"+netip.AddrPortFrom(at, 2379).String())
	}
	return c.WithDefaults()
}

func TestEtcdMembers(t *testing.T) {
	c := etcdCluster()
	text, err := render.Etcd(c, "rr2", render.EtcdEnvironment, 3)
	require.NoError(t, err)
	for _, line := range []string{
		"ETCD_NAME=rr2\n", "ETCD_LISTEN_CLIENT_URLS=https://10.10.0.12:2379\n", "ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.10.0.12:2380\n",
		"ETCD_INITIAL_CLUSTER_TOKEN=vmfabric-" + c.Name + "-4\n",
		"ETCD_INITIAL_CLUSTER=rr1=https://10.10.0.11:2380,rr2=https://10.10.0.12:2380,core1=https://10.10.0.1:2380\n",
	} {
		assert.Contains(t, text, line)
	}
	for line := range strings.Lines(text) {
		assert.Regexp(t, `^(# .*|ETCD_[A-Z_]+=\S+)\n$`, line, "etcd takes a comment behind a value for a part of it")
	}
	byAddress, err := render.Etcd(c, "10.10.0.12", render.EtcdEnvironment, 3)
	require.NoError(t, err)
	assert.Equal(t, text, byAddress)

	c.Registry.Etcd.Endpoints = []string{"https://etcd1.example.net:2400", "https://[fd00::2]:2379", "https://192.0.2.9:2379"}
	text, err = render.Etcd(c, "etcd1.example.net", render.EtcdEnvironment, 0)
	require.NoError(t, err)
	assert.Contains(t, text, "ETCD_LISTEN_PEER_URLS=https://0.0.0.0:2401\n")
	assert.Contains(t, text, "ETCD_INITIAL_CLUSTER=etcd1.example.net=https://etcd1.example.net:2401,fd00::2=https://[fd00::2]:2380,192.0.2.9=https://192.0.2.9:2380\n")
	text, err = render.Etcd(c, "fd00::2", render.EtcdCertificates, 0)
	require.NoError(t, err)
	for _, name := range []string{"DNS:etcd1.example.net", "IP:fd00::2", "IP:192.0.2.9"} {
		assert.Contains(t, text, "subjectAltName="+name+"'")
	}
}

func TestEtcdRefused(t *testing.T) {
	for says, change := range map[string]func(c *fabric.Cluster){
		"names no etcd":                          func(c *fabric.Cluster) { c.Registry.Etcd = nil },
		"without TLS anybody who can reach it":   func(c *fabric.Cluster) { c.Registry.Etcd.Endpoints = []string{"http://10.10.0.11:2379"} },
		"two members of etcd are worse than one": func(c *fabric.Cluster) { c.Registry.Etcd.Endpoints = c.Registry.Etcd.Endpoints[:2] },
		`"rr1" is no member of etcd`:             func(c *fabric.Cluster) { c.Registry.Etcd.Endpoints = []string{"https://192.0.2.1:2379"} },
	} {
		c := etcdCluster()
		change(&c)
		_, err := render.Etcd(c, "rr1", render.EtcdEnvironment, 0)
		require.ErrorContains(t, err, says)
	}
	c := etcdCluster()
	_, err := render.Etcd(c, "rr1", "other", 0)
	require.ErrorContains(t, err, `part "other" is not one of environment, unit,`)
	c.Registry.Etcd.Endpoints = c.Registry.Etcd.Endpoints[:1]
	_, err = render.Etcd(c, "rr1", render.EtcdReplace, 0)
	require.ErrorContains(t, err, "is the only member of etcd")
}

// TestEtcdDocumentation: what the page shows is what is rendered.
func TestEtcdDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../docs/registry.md")
	require.NoError(t, err)
	c := etcdCluster()
	c.Name = "msk1"
	text, err := render.Etcd(c, "rr1", render.EtcdEnvironment, 0)
	require.NoError(t, err)
	assert.Contains(t, string(page), "```\n"+text+"```\n")
	for _, part := range render.EtcdParts {
		assert.Contains(t, string(page), "`"+string(part)+"`")
	}
}

// member is a machine with a member of etcd, whose files are below a folder.
type member struct {
	t    *testing.T
	c    fabric.Cluster
	name string
	root string
	cmd  *exec.Cmd
}

func (m *member) text(part render.EtcdPart) string {
	m.t.Helper()
	text, err := render.Etcd(m.c, m.name, part, 0)
	require.NoError(m.t, err)
	return text
}

// here has a text name the files in the machine's folder.
func (m *member) here(text string) string {
	return strings.NewReplacer("/etc/", m.root+"/etc/", "/var/", m.root+"/var/").Replace(text)
}

func (m *member) write(path, text string) {
	path = filepath.Join(m.root, path)
	require.NoError(m.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(m.t, os.WriteFile(path, []byte(text), 0o600))
}

// script runs a part that is a script. What it says to systemd does nothing.
func (m *member) script(part render.EtcdPart, args ...string) (said string) {
	m.t.Helper()
	m.write("bin/systemctl", "#!/bin/sh\n")
	require.NoError(m.t, os.Chmod(filepath.Join(m.root, "bin/systemctl"), 0o755))
	m.write("script", strings.Replace(m.here(m.text(part)), "chown -R etcd:", "chown -R "+fmt.Sprint(os.Getuid()), 1))
	cmd := exec.CommandContext(labtest.Soon(m.t), "sh", append([]string{filepath.Join(m.root, "script")}, args...)...)
	cmd.Dir, cmd.Env = m.root, []string{"PATH=" + filepath.Join(m.root, "bin") + ":" + os.Getenv("PATH")}
	said, err := core.Output(cmd, (*exec.Cmd).Start)
	require.NoError(m.t, err, part)
	return strings.TrimSpace(said)
}

// start starts the member with its file of environment variables, and nothing else.
func (m *member) start() {
	program, err := daemons.Find(m.t.Context(), "etcd")
	require.NoError(m.t, err)
	env, err := os.ReadFile(filepath.Join(m.root, render.EtcdEnvironmentFile))
	require.NoError(m.t, err)
	m.cmd = exec.Command("nsenter", "--net="+os.Getenv(machineVariable+m.name), program)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for line := range strings.Lines(m.here(string(env))) {
		if !strings.HasPrefix(line, "#") {
			m.cmd.Env = append(m.cmd.Env, strings.TrimSpace(line))
		}
	}
	log, err := os.OpenFile(filepath.Join(m.root, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(m.t, err)
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	require.NoError(m.t, m.cmd.Start())
	m.t.Cleanup(func() {
		m.kill()
		if log, err := os.ReadFile(filepath.Join(m.root, "log")); err == nil && m.t.Failed() {
			m.t.Logf("end of the log of %s:\n%s", m.name, log[max(0, len(log)-3000):])
		}
	})
}

func (m *member) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// checks waits until the check says something; empty: that all is well.
func (m *member) checks(says string) {
	m.t.Helper()
	require.EventuallyWithT(m.t, func(t *assert.CollectT) {
		err := render.CheckEtcd(m.t.Context(), m.c, m.name, m.root)
		if says == "" {
			assert.NoError(t, err)
			return
		}
		assert.ErrorContains(t, err, says)
	}, time.Minute, 100*time.Millisecond)
}

// TestRenderedEtcd: three members are configured by what is rendered, and nothing else, and
// nodes share a registry in it. A member that lost its disk is replaced, and all are restored
// from a backup.
func TestRenderedEtcd(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "root")
	for _, program := range []string{"etcd", "etcdctl", "openssl", "nsenter"} {
		if _, err := daemons.Find(t.Context(), program); err != nil {
			labtest.Missing(t, err)
		}
	}
	if os.Getenv(machineVariable+"rr1") == "" {
		onNode(t)
		return
	}
	var members []*member
	for _, name := range []string{"rr1", "rr2", "core1"} {
		members = append(members, &member{t: t, c: etcdCluster(), name: name, root: t.TempDir()})
	}
	installs(members)
	for _, m := range members {
		m.start()
	}
	members[0].checks("etcd's authentication is off")
	members[0].script(render.EtcdUsers)
	members[0].checks("")
	members[0].script(render.EtcdUsers)
	members[2].checks("")

	one, two := nodeOf(t, members[0], "node1"), nodeOf(t, members[0], "node2")
	gives(t, one, "web")
	saved := members[1].script(render.EtcdBackup)
	gives(t, two, "db")
	stranger := nodeOf(t, members[0], members[0].name)
	_, err := stranger.Allocate(labtest.Soon(t), asksPools("web"))
	require.ErrorContains(t, err, "etcd does not let this node's user read and write /vmfabric/lab/")

	lost := members[1]
	lost.kill()
	members[0].checks("https://10.10.0.12:2379: nothing listens there")
	require.NoError(t, os.RemoveAll(filepath.Join(lost.root, "var/lib/etcd/vmfabric")))
	lost.script(render.EtcdReplace)
	lost.start()
	lost.checks("")
	members[0].kill() // the new one is of the majority
	gives(t, one, "other")
	members[0].start()

	for _, m := range members {
		m.kill()
	}
	for _, m := range members {
		m.script(render.EtcdRestore, saved)
		m.start()
	}
	for _, m := range members {
		m.checks("")
	}
	var found fabric.Adoption
	require.Eventually(t, func() bool {
		found, err = one.Adopt(t.Context(), false)
		return err == nil && found.Doubt != ""
	}, time.Minute, 100*time.Millisecond)
	assert.Contains(t, found.Doubt, "is another one than before")
	assert.Len(t, found.Allocations, 2, "those of web")
	_, err = one.Adopt(labtest.Soon(t), true)
	require.NoError(t, err)
	for _, node := range []*etcd.Registry{one, two} {
		require.Eventually(t, func() bool { return len(node.Diagnose(t.Context())) == 0 }, time.Minute, 50*time.Millisecond)
		gives(t, node, "web")
	}
}

// TestEtcdCheckNames what is wrong with a machine's files.
func TestEtcdCheckNames(t *testing.T) {
	year := time.Now().Add(365 * 24 * time.Hour)
	for says, spoil := range map[string]func(m *member, by *labtest.Authority){
		`ETCD_PRE_VOTE is "false"; it should be "true"`: func(m *member, _ *labtest.Authority) {
			m.write(render.EtcdEnvironmentFile, strings.Replace(m.text(render.EtcdEnvironment), "PRE_VOTE=true", "PRE_VOTE=false", 1))
		},
		"ETCD_QUOTA_BACKEND_BYTES is missing; add ETCD_QUOTA_BACKEND_BYTES=2147483648": func(m *member, _ *labtest.Authority) {
			m.write(render.EtcdEnvironmentFile, strings.Replace(m.text(render.EtcdEnvironment), "ETCD_QUOTA", "# ETCD_QUOTA", 1))
		},
		`ETCD_INITIAL_CLUSTER_TOKEN is "other"`: func(m *member, _ *labtest.Authority) {
			m.write(render.EtcdEnvironmentFile, strings.Replace(m.text(render.EtcdEnvironment), "vmfabric-lab-1", "other", 1))
		},
		"has nothing of it; write what vmfabric render etcd --for 127.0.0.1 prints there": func(m *member, _ *labtest.Authority) {
			m.write(render.EtcdEnvironmentFile, "# as it was installed\n")
		},
		"no certificate to look at without ETCD_CERT_FILE": func(m *member, _ *labtest.Authority) {
			m.write(render.EtcdEnvironmentFile, strings.Replace(m.text(render.EtcdEnvironment), "ETCD_CERT_FILE", "# ETCD_CERT_FILE", 1))
		},
		"is not what --part unit prints": func(m *member, _ *labtest.Authority) { m.write(render.EtcdUnitFile, "[Service]\n") },
		"ETCD_TRUSTED_CA_FILE: open ":    func(m *member, _ *labtest.Authority) { m.removes("etc/etcd/ca.crt") },
		"everybody can read it (mode 0644)": func(m *member, _ *labtest.Authority) {
			require.NoError(m.t, os.Chmod(filepath.Join(m.root, "etc/etcd/member.key"), 0o644))
		},
		"ends at ":                func(m *member, by *labtest.Authority) { m.certifies(by, time.Now().Add(24*time.Hour)) },
		"certificate has expired": func(m *member, by *labtest.Authority) { m.certifies(by, time.Now().Add(-time.Hour)) },
		"signed by unknown authority": func(m *member, _ *labtest.Authority) {
			m.certifies(labtest.NewAuthority(m.t), year)
		},
	} {
		t.Run(says, func(t *testing.T) {
			m, by := &member{t: t, c: etcdCluster(), name: "rr1", root: t.TempDir()}, labtest.NewAuthority(t)
			m.c.Registry.Etcd.Endpoints = []string{"https://127.0.0.1:1"}
			m.name = "127.0.0.1"
			m.write(render.EtcdEnvironmentFile, m.text(render.EtcdEnvironment))
			m.write(render.EtcdUnitFile, m.text(render.EtcdUnit))
			m.copies(by.File, "ca.crt")
			m.certifies(by, year)
			require.EqualError(t, render.CheckEtcd(t.Context(), m.c, m.name, m.root), "https://127.0.0.1:1: nothing listens there; start etcd, or correct the endpoint")
			spoil(m, by)
			require.ErrorContains(t, render.CheckEtcd(t.Context(), m.c, m.name, m.root), says)
		})
	}
}

func (m *member) removes(file string) { require.NoError(m.t, os.Remove(filepath.Join(m.root, file))) }

// copies has a file among those of etcd.
func (m *member) copies(from, to string) {
	content, err := os.ReadFile(from)
	require.NoError(m.t, err)
	m.write("etc/etcd/"+to, string(content))
}

// certifies gives the member a certificate.
func (m *member) certifies(by *labtest.Authority, until time.Time) {
	cert, key := by.Sign(m.name, until)
	m.copies(cert, "member.crt")
	m.copies(key, "member.key")
}

// machineVariable begins the variables that name the machines' network namespaces to a
// test that runs on one of them.
const machineVariable = "VMFABRIC_TEST_MACHINE_"

// onNode runs the test on a node of a lab.
func onNode(t *testing.T) {
	_, top := labtest.Build(t, etcdCluster())
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = os.Environ()
	for _, h := range []*core.Host{top.Core, top.Reflectors["rr1"], top.Reflectors["rr2"]} {
		cmd.Env = append(cmd.Env, machineVariable+h.Name()+"="+h.NamespacePath())
	}
	said, err := core.Output(cmd, top.Nodes["node1"].Start)
	require.NoError(t, err, said)
	t.Log(said)
}

// installs makes the certificates, and gives each member its files.
func installs(members []*member) {
	made := members[0].root
	members[0].script(render.EtcdCertificates)
	for _, m := range members {
		m.checks("what vmfabric render etcd --for " + m.name + " prints there")
		m.write(render.EtcdEnvironmentFile, m.text(render.EtcdEnvironment))
		m.checks(render.EtcdUnitFile + " is missing")
		m.write(render.EtcdUnitFile, m.text(render.EtcdUnit))
		for to, from := range map[string]string{"ca.crt": "ca.crt", "member.crt": "member-" + m.name + ".crt", "member.key": "member-" + m.name + ".key", "root.crt": "root.crt", "root.key": "root.key"} {
			m.copies(filepath.Join(made, from), to)
		}
		m.checks("nothing listens there")
	}
}

// nodeOf is the registry of a node that has a certificate which was made.
func nodeOf(t *testing.T, made *member, name string) *etcd.Registry {
	t.Helper()
	content := func(file string) string {
		b, err := os.ReadFile(filepath.Join(made.root, file))
		require.NoError(t, err)
		return string(b)
	}
	c, file := made.c, "node-"+name
	if name == made.name {
		file = "member-" + name
	}
	conf := *c.Registry.Etcd
	conf.CA, conf.Cert, conf.Key = content("ca.crt"), content(file+".crt"), content(file+".key")
	c.Registry.Etcd = &conf
	seen, err := disk.OpenValue(t.TempDir(), "etcd", "seen")
	require.NoError(t, err)
	r, err := etcd.New(&c, etcd.WithMemory(name, seen))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
		assert.NoError(t, seen.Close())
	})
	return r
}

func asksPools(vm string) fabric.AllocationRequest {
	return fabric.AllocationRequest{Guest: fabric.Identity("libvirt " + vm), VM: vm, Node: "node1", Wants: []fabric.Want{{Pool: "public4"}, {N: 1, Pool: "public6"}}}
}

// gives waits until a node gives a guest its addresses.
func gives(t *testing.T, r *etcd.Registry, vm string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := r.Allocate(t.Context(), asksPools(vm))
		assert.NoError(c, err)
	}, time.Minute, 50*time.Millisecond)
}
