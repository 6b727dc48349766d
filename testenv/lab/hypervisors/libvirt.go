package hypervisors

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vmfabric/vmfabric/internal/executable"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

const libvirtLogDir = "/var/log/libvirt"

// LibvirtOptions describe a libvirtd of the lab. The zero value is one without a
// hook.
type LibvirtOptions struct {
	// Hook is a program to install as the hook qemu.d/vmfabric before libvirtd
	// starts.
	Hook string
	// Root is a root file system whose libvirt and QEMU are used; empty: the machine's.
	Root string
}

// Libvirt is a libvirtd that runs in a host. All of libvirt's directories on a
// machine are its own: /etc/libvirt, state, sockets, logs and cache. It also has
// its own /run/vmfabric, so that a hook finds the socket of its node's agent. QEMU
// guests run in the host.
type Libvirt struct {
	host    *core.Host
	dir     string
	box     *sandbox
	root    string // see LibvirtOptions
	program string // a path below the root

	mu     sync.Mutex
	daemon *core.Daemon
}

// StartLibvirt starts a libvirtd in the host and returns when it answers. A
// host can have one. It takes migrations at the host's IPv4 address, without
// authentication.
func StartLibvirt(ctx context.Context, h *core.Host, o LibvirtOptions) (*Libvirt, error) {
	lv, err := startLibvirt(ctx, h, o)
	if err != nil {
		return nil, fmt.Errorf("start libvirt on %s: %w", h.Name(), err)
	}
	return lv, nil
}

func startLibvirt(ctx context.Context, h *core.Host, o LibvirtOptions) (*Libvirt, error) {
	lv := &Libvirt{host: h, dir: filepath.Join(h.Dir(), "libvirt"), root: o.Root}
	var err error
	if lv.program, err = lv.find(ctx, "libvirtd"); err != nil {
		return nil, err
	}
	binds, err := lv.makeFiles()
	if err != nil {
		return nil, err
	}
	if o.Hook != "" {
		if err := lv.copyHook("qemu.d/vmfabric", o.Hook); err != nil {
			return nil, err
		}
	}
	known := lv.recallQEMU(ctx)
	if lv.box, err = newSandbox(h, append(binds, programsOf(lv.root)...)); err != nil {
		return nil, err
	}
	if err := lv.Start(ctx); err != nil {
		return nil, err
	}
	if !known {
		return lv, lv.rememberQEMU(ctx)
	}
	return lv, nil
}

// find finds a program of libvirt or QEMU, as the sandbox sees it.
func (lv *Libvirt) find(ctx context.Context, name string) (string, error) {
	if lv.root == "" {
		return daemons.Find(ctx, name)
	}
	for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
		path := filepath.Join(dir, name)
		if _, err := exec.LookPath(filepath.Join(lv.root, path)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("program %s: %w in %s; install it there", name, exec.ErrNotFound, lv.root)
}

// makeFiles makes the files of one libvirtd, and returns the places of the
// machine's files that they replace.
func (lv *Libvirt) makeFiles() ([]bind, error) {
	binds := []bind{
		{lv.path("etc"), "/etc/libvirt"},
		{lv.path("run"), "/run/libvirt"},
		{lv.path("lib"), "/var/lib/libvirt"},
		{lv.path("log"), libvirtLogDir},
		{lv.path("cache"), "/var/cache/libvirt"},
		{lv.RunDir(), "/run/vmfabric"},
	}
	for _, b := range binds {
		if err := os.MkdirAll(b.source, 0o755); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{"etc/hooks/qemu.d", "log/qemu"} {
		if err := os.MkdirAll(lv.path(dir), 0o755); err != nil {
			return nil, err
		}
	}
	files := map[string]string{
		"etc/libvirtd.conf": lv.daemonConf(), "etc/qemu.conf": qemuConf, "resolv.conf": "",
		"passwd": withAccounts("/etc/passwd", "libvirt-qemu:x:64055:64055:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin"),
		"group":  withAccounts("/etc/group", "libvirt-qemu:x:64055:", "kvm:x:64056:"),
	}
	for name, text := range files {
		if err := os.WriteFile(lv.path(name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	hosts, err := hostsFile(lv.host.Lab())
	if err != nil {
		return nil, err
	}
	return append(binds,
		bind{lv.path("passwd"), "/etc/passwd"}, bind{lv.path("group"), "/etc/group"},
		bind{hosts, "/etc/hosts"}, bind{lv.path("resolv.conf"), "/etc/resolv.conf"},
	), nil
}

func (lv *Libvirt) path(name string) string { return filepath.Join(lv.dir, name) }

// RunDir returns the directory that libvirtd and its hooks see as /run/vmfabric:
// the place for the socket of the node's agent.
func (lv *Libvirt) RunDir() string { return lv.path("vmfabric") }

// Socket returns the path of libvirtd's socket.
func (lv *Libvirt) Socket() string { return lv.path("run/libvirt-sock") }

// HooksDir returns the directory that libvirtd sees as /etc/libvirt/hooks.
func (lv *Libvirt) HooksDir() string { return lv.path("etc/hooks") }

// Host returns the host that libvirtd runs in.
func (lv *Libvirt) Host() *core.Host { return lv.host }

// Daemon returns the libvirtd process of the last start.
func (lv *Libvirt) Daemon() *core.Daemon {
	lv.mu.Lock()
	defer lv.mu.Unlock()
	return lv.daemon
}

// Guests run as root, without confinement: a distribution without libvirt's system
// package has neither its users nor its confinement.
const qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
`

func (lv *Libvirt) daemonConf() string {
	conf := fmt.Sprintf(`log_level = 3
log_outputs = "3:stderr"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
host_uuid = "%s"
`, uuidOf("host "+lv.host.Lab().ID()+" "+lv.host.Name()))
	if lv.host.Addr4().IsValid() {
		conf += fmt.Sprintf("listen_addr = %q\n", lv.host.Addr4())
	}
	return conf
}

// withAccounts returns the machine's passwd or group file, and adds these entries
// if their names are missing: libvirtd looks for a user of QEMU even when told to
// use root.
func withAccounts(path string, entries ...string) string {
	b, _ := os.ReadFile(path)
	text := string(b)
	for _, entry := range entries {
		name, _, _ := strings.Cut(entry, ":")
		if !strings.HasPrefix(text, name+":") && !strings.Contains(text, "\n"+name+":") {
			text += entry + "\n"
		}
	}
	return text
}

// hostsFile writes the lab's /etc/hosts, one for all. libvirtd looks the other
// end of a migration up by name, several times, each a wait of ten seconds for
// a name that nobody knows.
func hostsFile(l *core.Lab) (string, error) {
	text := "127.0.0.1 localhost\n::1 localhost\n"
	for _, h := range l.Hosts() {
		if h.Addr4().IsValid() {
			text += fmt.Sprintf("%s %s\n", h.Addr4(), h.Name())
		}
	}
	path := filepath.Join(l.Dir(), "hosts")
	if now, err := os.ReadFile(path); err == nil && string(now) == text {
		return path, nil
	}
	// In place: running daemons have this very file mounted.
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// Start starts libvirtd again after Stop or Kill, and returns when it answers. It
// finds running guests again.
func (lv *Libvirt) Start(ctx context.Context) error {
	// A killed libvirtd leaves its socket.
	if err := os.Remove(lv.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	args := []string{"-p", lv.path("libvirtd.pid")}
	if lv.host.Addr4().IsValid() {
		args = append(args, "--listen")
	}
	d, err := lv.host.StartDaemonBy("libvirtd", exec.Command(lv.program, args...), lv.box.start)
	if err != nil {
		return err
	}
	lv.mu.Lock()
	lv.daemon = d
	lv.mu.Unlock()
	return d.Until(ctx, func() error {
		conn, err := net.Dial("unix", lv.Socket())
		if err != nil {
			return err
		}
		conn.Close()
		_, err = lv.Virsh(ctx, "uri")
		return err
	})
}

// Stop asks libvirtd to end and waits until it has. Guests go on.
func (lv *Libvirt) Stop() error { return lv.Daemon().Stop() }

// Kill ends libvirtd without warning. Guests go on.
func (lv *Libvirt) Kill() error { return lv.Daemon().Kill() }

// Restart stops and starts libvirtd. Guests go on.
func (lv *Libvirt) Restart(ctx context.Context) error {
	if err := lv.Stop(); err != nil {
		return err
	}
	return lv.Start(ctx)
}

// Virsh runs virsh against this libvirtd, on its node, and returns its standard
// output.
func (lv *Libvirt) Virsh(ctx context.Context, args ...string) (string, error) {
	virsh, err := lv.find(ctx, "virsh")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, virsh, append([]string{"-q", "-c", "qemu:///system"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return core.Output(cmd, lv.box.start)
}

// InstallHook installs a program as a hook, under a name such as "qemu" or
// "qemu.d/vmfabric", and makes libvirtd reload: one that was started without any
// hook calls none before that.
func (lv *Libvirt) InstallHook(name, path string) error {
	if err := lv.copyHook(name, path); err != nil {
		return err
	}
	return lv.Daemon().Signal(syscall.SIGHUP)
}

func (lv *Libvirt) copyHook(name, source string) error {
	from, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("hook %s: %w", name, err)
	}
	defer from.Close()
	path := filepath.Join(lv.HooksDir(), name)
	// Write beside qemu.d: in it, libvirtd could call a half-written hook.
	whole := filepath.Join(lv.dir, "hook.new")
	if err := executable.Copy(whole, from); err != nil {
		return fmt.Errorf("hook %s: %w", name, err)
	}
	return os.Rename(whole, path)
}

// qemuKnowledge is the directory, below libvirt's cache, with its findings about
// QEMU. To find them out takes seconds. libvirt checks by itself that they still
// hold.
const qemuKnowledge = "qemu/capabilities"

// recallQEMU copies the findings of an earlier libvirtd with the same programs from
// the lab's cache.
func (lv *Libvirt) recallQEMU(ctx context.Context) bool {
	from, ok := cache.Find(lv.knowledge(ctx))
	return ok && copyDir(from, filepath.Join(lv.path("cache"), qemuKnowledge)) == nil
}

func (lv *Libvirt) rememberQEMU(ctx context.Context) error {
	if _, err := lv.Virsh(ctx, "capabilities"); err != nil {
		return err
	}
	_, err := cache.Dir(lv.knowledge(ctx), func(dir string) error {
		return copyDir(filepath.Join(lv.path("cache"), qemuKnowledge), dir)
	})
	return err
}

// knowledge returns the name of the findings in the lab's cache; it depends on the
// programs.
func (lv *Libvirt) knowledge(ctx context.Context) string {
	qemu, _ := lv.find(ctx, "qemu-system-x86_64")
	about := ""
	for _, program := range []string{lv.program, qemu} {
		if info, err := os.Stat(filepath.Join("/", lv.root, program)); err == nil {
			about += fmt.Sprintln(program, info.Size(), info.ModTime())
		}
	}
	return "libvirt-" + cache.Fingerprint([]byte(about))
}

// copyDir copies the files of a directory that has no directories.
func copyDir(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), 0o600); err != nil {
			return err
		}
	}
	return nil
}
