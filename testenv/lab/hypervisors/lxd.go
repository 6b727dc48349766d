package hypervisors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// LXDOptions describe an LXD of the lab. The zero value is one that is in no
// cluster, with its storage in a directory and no network of its own.
type LXDOptions struct {
	// Preseed is the YAML for `lxd init --preseed`, in place of the lab's, for
	// example for another member of a cluster ([LXD.Invite]).
	Preseed string
	// LXC has lines of LXC's configuration for all containers: a file below
	// /usr/share/lxc/config/common.conf.d.
	LXC string
}

// LXD is an LXD, or an Incus in its place, that runs in a host. All of LXD's directories on a machine are its
// own: /var/lib/lxd, /run, logs and cache. So is its part of the control groups.
// Its containers run in the host. Its name is the host's.
type LXD struct {
	product
	host  *core.Host
	dir   string
	box   *sandbox
	group string // the directory of its control group

	mu       sync.Mutex
	daemon   *core.Daemon
	imported map[string]bool // images that projects have, as "project/alias"
}

// StartLXD starts an LXD in the host and returns when it answers. A host can
// have one.
func StartLXD(ctx context.Context, h *core.Host, o LXDOptions) (*LXD, error) {
	lx, err := startLXD(ctx, h, o)
	if err != nil {
		return nil, fmt.Errorf("start lxd on %s: %w", h.Name(), err)
	}
	return lx, nil
}

const lxdPreseed = `storage_pools:
- name: default
  driver: dir
profiles:
- name: default
  devices:
    root: {type: disk, pool: default, path: /}
`

func startLXD(ctx context.Context, h *core.Host, o LXDOptions) (*LXD, error) {
	lx := &LXD{host: h, dir: filepath.Join(h.Dir(), "lxd"), imported: map[string]bool{}}
	var err error
	if lx.product, err = productOf(ctx); err != nil {
		return nil, err
	}
	binds, err := lx.makeFiles(o.LXC)
	if err != nil {
		return nil, err
	}
	group, err := lx.makeControlGroup()
	if err != nil {
		return nil, err
	}
	if lx.box, err = newSandbox(h, binds); err != nil {
		return nil, err
	}
	if err := lx.mountControlGroup(ctx, group); err != nil {
		return nil, err
	}
	h.Lab().OnClose(lx.close)
	if err := lx.Start(ctx); err != nil {
		return nil, err
	}
	if o.Preseed == "" {
		o.Preseed = lxdPreseed
	}
	for range 3 { // its database gives up after ten seconds, too early on a busy machine
		if _, err = lx.run(ctx, o.Preseed, lx.init[0], lx.init[1:]...); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			break
		}
	}
	return lx, err
}

// makeFiles makes the files of one LXD, and returns the places of the machine's
// files that they replace.
func (lx *LXD) makeFiles(lxc string) ([]bind, error) {
	binds := append(programsOf(lx.root),
		bind{lx.path("lib"), "/var/lib/" + lx.name}, bind{lx.path("log"), "/var/log/" + lx.name},
		bind{lx.path("cache"), "/var/cache/" + lx.name}, bind{lx.path("run"), "/run"})
	if lxc != "" {
		binds = append(binds, bind{lx.path("common"), "/usr/share/lxc/config/common.conf.d"})
	}
	for _, dir := range []string{"lib", "log", "cache", "run", "run/lock", "run/vmfabric", "client", "common"} {
		if err := os.MkdirAll(lx.path(dir), 0o755); err != nil {
			return nil, err
		}
	}
	// The users of the machine to which those of containers map. LXD runs no
	// container without them, and not every machine has them.
	const ids = "root:1000000:65536\n"
	for name, text := range map[string]string{"resolv.conf": "", "subuid": ids, "subgid": ids, "common/90-lab.conf": lxc} {
		if err := os.WriteFile(lx.path(name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	hosts, err := hostsFile(lx.host.Lab())
	if err != nil {
		return nil, err
	}
	return append(binds,
		bind{lx.path("subuid"), "/etc/subuid"}, bind{lx.path("subgid"), "/etc/subgid"},
		bind{hosts, "/etc/hosts"}, bind{lx.path("resolv.conf"), "/etc/resolv.conf"},
	), nil
}

// makeControlGroup makes the control group below which this LXD makes those of its
// containers. It goes with the lab, and they with it.
func (lx *LXD) makeControlGroup() (name string, err error) {
	root, own, err := controlGroups()
	if err != nil {
		return "", err
	}
	name = filepath.Join(own, lx.host.Namespace())
	lx.group = filepath.Join(root, name)
	if err := lx.host.Lab().OwnTree(lx.group); err != nil {
		return "", err
	}
	return name, os.Mkdir(lx.group, 0o755)
}

// controlGroups returns the directory where cgroup2 is mounted, and the path of
// this process's group below it.
func controlGroups() (root, own string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", err
	}
	// ID, parent, device, root, mount point, ... - type, source, ...
	// (proc_pid_mountinfo(5)).
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			root = fields[4]
		}
	}
	for line := range strings.Lines(string(groups)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			own = strings.TrimSpace(path)
		}
	}
	if root == "" || own == "" {
		return "", "", errors.New("no place for the control groups of containers; mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return root, own, nil
}

// mountControlGroup mounts the group as the sandbox's /sys/fs/cgroup, which its new
// sysfs lacks.
func (lx *LXD) mountControlGroup(ctx context.Context, name string) error {
	const script = `mount -t cgroup2 none /sys/fs/cgroup && mount --bind "/sys/fs/cgroup/$0" /sys/fs/cgroup`
	_, err := core.Output(exec.CommandContext(ctx, "/bin/sh", "-c", script, name), lx.box.start)
	return err
}

// close ends LXD and its containers, and waits until their control group is empty,
// or for killBound. Containers have network namespaces of their own, where the lab
// does not look for processes, and end a moment after their monitors.
func (lx *LXD) close() {
	if d := lx.Daemon(); d != nil {
		_ = d.Kill()
	}
	for deadline := time.Now().Add(killBound); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		left := processesBelow(lx.group)
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// killBound is how long the kernel may take to end killed processes.
const killBound = 10 * time.Second

// processesBelow lists the processes in a control group and those below it.
func processesBelow(group string) []int {
	var found []int
	_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil // a group that goes meanwhile is welcome
		}
		pids, _ := os.ReadFile(path)
		for line := range strings.Lines(string(pids)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				found = append(found, pid)
			}
		}
		return nil
	})
	return found
}

func (lx *LXD) path(name string) string { return filepath.Join(lx.dir, name) }

// Invite returns the options with which an LXD in another host joins the cluster of
// this one.
func (lx *LXD) Invite(ctx context.Context, member *core.Host) (LXDOptions, error) {
	out, err := lx.Lxc(ctx, "cluster", "add", member.Name(), "-q")
	if err != nil {
		return LXDOptions{}, err
	}
	words := strings.Fields(out)
	if len(words) == 0 {
		return LXDOptions{}, errors.New("lxc cluster add: no token")
	}
	return LXDOptions{Preseed: fmt.Sprintf(`cluster:
  enabled: true
  server_address: %s
  cluster_token: %s
  member_config: [{entity: storage-pool, name: default, key: source, value: ""}]
`, netip.AddrPortFrom(member.Addr4(), 8443), words[len(words)-1])}, nil
}

// Trust makes another LXD, of no common cluster, a remote of this one's client,
// named like its host. Then containers can move there. For the way back, the other
// must trust this one, too.
func (lx *LXD) Trust(ctx context.Context, other *LXD) error {
	for _, one := range []*LXD{lx, other} {
		// The other LXD fetches the instance from this one.
		if _, err := one.Lxc(ctx, "config", "set", "core.https_address", netip.AddrPortFrom(one.host.Addr4(), 8443).String()); err != nil {
			return err
		}
	}
	out, err := other.Lxc(ctx, append(slices.Clone(other.trust), lx.host.Name(), "-q")...)
	if err != nil {
		return err
	}
	words := strings.Fields(out)
	if len(words) == 0 {
		return errors.New("lxc config trust add: no token")
	}
	_, err = lx.Lxc(ctx, "remote", "add", other.host.Name(), words[len(words)-1], "--accept-certificate", "-q")
	return err
}

// RunDir returns the directory that LXD and its hooks see as /run/vmfabric: the
// place for the socket of the node's agent.
func (lx *LXD) RunDir() string { return lx.path("run/vmfabric") }

// Socket returns the path of LXD's socket.
func (lx *LXD) Socket() string { return lx.path("lib/unix.socket") }

// Name returns the name by which an agent knows it: lxd, or incus.
func (lx *LXD) Name() string { return lx.name }

// Client returns the name of the client's program: lxc, or incus.
func (lx *LXD) Client() string { return filepath.Base(lx.client) }

// Host returns the host that LXD runs in.
func (lx *LXD) Host() *core.Host { return lx.host }

// Daemon returns the LXD process of the last start.
func (lx *LXD) Daemon() *core.Daemon {
	lx.mu.Lock()
	defer lx.mu.Unlock()
	return lx.daemon
}

// Start starts LXD again after Stop or Kill, and returns when it is ready. It finds
// running containers again.
func (lx *LXD) Start(ctx context.Context) error {
	d, err := lx.host.StartDaemonBy(lx.name, lx.command(exec.Command(lx.program, lx.serve...)), lx.box.start)
	if err != nil {
		return err
	}
	lx.mu.Lock()
	lx.daemon = d
	lx.mu.Unlock()
	return d.Until(ctx, func() error {
		_, err := lx.run(ctx, "", lx.program, "waitready", "--timeout=10")
		return err
	})
}

// Stop asks LXD to end and waits until it has. Containers go on.
func (lx *LXD) Stop() error { return lx.Daemon().Stop() }

// Kill ends LXD without warning. Containers go on.
func (lx *LXD) Kill() error { return lx.Daemon().Kill() }

// Restart stops and starts LXD. Containers go on.
func (lx *LXD) Restart(ctx context.Context) error {
	if err := lx.Stop(); err != nil {
		return err
	}
	return lx.Start(ctx)
}

// Lxc runs lxc against this LXD, on its node, and returns its standard output. It
// has no time limit of its own but ctx: `lxc stop` of a guest that does not listen
// waits for ever.
func (lx *LXD) Lxc(ctx context.Context, args ...string) (string, error) {
	return lx.run(ctx, "", lx.client, args...)
}

// Snapshot makes a snapshot of an instance, and removes it again.
func (lx *LXD) Snapshot(ctx context.Context, instance string) error {
	do, undo := []string{"snapshot", instance, "a"}, []string{"delete", instance + "/a"}
	if lx.name == "incus" {
		do, undo = []string{"snapshot", "create", instance, "a"}, []string{"snapshot", "delete", instance, "a"}
	}
	_, err := lx.Lxc(ctx, do...)
	if err == nil {
		_, err = lx.Lxc(ctx, undo...)
	}
	return err
}

func (lx *LXD) run(ctx context.Context, stdin, program string, args ...string) (string, error) {
	cmd := lx.command(exec.CommandContext(ctx, program, args...))
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	return core.Output(cmd, lx.box.start)
}

// command sets the environment by which a program of LXD's finds this one's files.
func (lx *LXD) command(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(append(os.Environ(), lx.env...), "LC_ALL=C", lx.conf+"="+lx.path("client"))
	return cmd
}
