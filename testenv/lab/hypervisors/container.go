package hypervisors

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

//go:embed container-init.sh
var containerInit []byte

//go:embed container-lease.sh
var containerLease []byte

// ContainerImage returns the path of the image of the lab's containers, for `lxc
// image import`: the machine's busybox and a script. It takes the image from the
// cache ([cache.Variable]), or makes it.
func ContainerImage(ctx context.Context) (path string, err error) {
	busybox, err := daemons.Find(ctx, "busybox")
	if err != nil {
		return "", fmt.Errorf("container image: %w (busybox-static)", err)
	}
	tool, err := os.ReadFile(busybox)
	if err != nil {
		return "", fmt.Errorf("container image: %w", err)
	}
	dir, err := cache.Dir("container-"+cache.Fingerprint(tool, containerInit, containerLease), func(dir string) error {
		return makeContainerImage(filepath.Join(dir, "image.tar.gz"), tool)
	})
	if err != nil {
		return "", fmt.Errorf("container image: %w", err)
	}
	return filepath.Join(dir, "image.tar.gz"), nil
}

// architectures maps Go's names of architectures to the kernel's, which LXD uses.
var architectures = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// imageMetadata is the file metadata.yaml of an image.
func imageMetadata() []byte {
	return []byte(fmt.Sprintf("architecture: %s\ncreation_date: 1\n", cmp.Or(architectures[runtime.GOARCH], runtime.GOARCH)))
}

func makeContainerImage(path string, busybox []byte) error {
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	a := tar.NewWriter(packed)
	var errs []error
	add := func(name string, mode int64, kind byte, content []byte, target string) {
		errs = append(errs, a.WriteHeader(&tar.Header{Name: name, Typeflag: kind, Mode: mode, Size: int64(len(content)), Linkname: target}))
		_, err := a.Write(content)
		errs = append(errs, err)
	}
	add("metadata.yaml", 0o644, tar.TypeReg, imageMetadata(), "")
	for _, dir := range []string{"", "bin", "sbin", "dev", "proc", "sys", "run", "tmp", "etc", "root"} {
		add("rootfs/"+dir, 0o755, tar.TypeDir, nil, "")
	}
	add("rootfs/bin/busybox", 0o755, tar.TypeReg, busybox, "")
	add("rootfs/bin/sh", 0o777, tar.TypeSymlink, nil, "busybox")
	add("rootfs/bin/obey", 0o755, tar.TypeReg, obey, "")
	add("rootfs/bin/lease", 0o755, tar.TypeReg, containerLease, "")
	add("rootfs/sbin/init", 0o755, tar.TypeReg, containerInit, "")
	errs = append(errs, a.Close(), packed.Close())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// debianNetwork is the file of systemd-networkd by which eth0 asks for its addresses.
const debianNetwork = "[Match]\\nName=eth0\\n[Network]\\nDHCP=yes\\n"

// DebianImage returns the two files of an image for `lxc image import`: a Debian 13 with
// systemd, which sets its network up by DHCP and router advertisements. It takes them from
// the cache ([cache.Variable]), or makes them by mmdebstrap, which takes minutes.
func DebianImage(ctx context.Context) (files []string, err error) {
	args := []string{
		"--quiet", "--variant=minbase", "--include=systemd-sysv,udev,dbus,iproute2,iputils-ping",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook=printf '" + debianNetwork + "' >\"$1\"/etc/systemd/network/10.network",
		"--customize-hook=chroot \"$1\" systemctl enable systemd-networkd",
	}
	dir, err := cache.Dir("container-debian-"+cache.Fingerprint([]byte(strings.Join(args, " "))), func(dir string) error {
		var about bytes.Buffer
		packed := gzip.NewWriter(&about)
		a := tar.NewWriter(packed)
		text := imageMetadata()
		err := a.WriteHeader(&tar.Header{Name: "metadata.yaml", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
		_, werr := a.Write(text)
		err = errors.Join(err, werr,
			a.Close(), packed.Close(),
			os.WriteFile(filepath.Join(dir, "metadata.tar.gz"), about.Bytes(), 0o644),
		)
		if err != nil {
			return err
		}
		_, err = core.Output(exec.CommandContext(ctx, "mmdebstrap", append(args, "trixie", filepath.Join(dir, "rootfs.tar"))...), (*exec.Cmd).Start)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("Debian's image: %w", err)
	}
	return []string{filepath.Join(dir, "metadata.tar.gz"), filepath.Join(dir, "rootfs.tar")}, nil
}

// obey is the command server: it reads a line of shell, runs it, and writes its
// output and exit code.
var obey = []byte("#!/bin/sh\nread -r line\nsh -c \"$line\" 2>&1\necho \"exit $?\"\n")

// ContainerOptions describe a container of the lab.
type ContainerOptions struct {
	Name    string
	Project string // "default" when empty
	Target  string // the member of a cluster that gets the container; LXD chooses when empty
	// NICs are the container's eth0, eth1, ... One of kind fabric.Veth is
	// physical: the peer end of its port must be there when the container
	// starts. LXD makes the link of any other (p2p).
	NICs    []fabric.NIC
	Gateway fabric.Gateway
	Debian  bool // a whole Debian ([DebianImage]), which asks for its addresses, in place of busybox
	// Config has further keys of the instance, or other values for the fabric's. An
	// empty value leaves the key out.
	Config map[string]string
}

// Container is a guest of an [LXD].
type Container struct {
	options ContainerOptions

	mu sync.Mutex
	lx *LXD
}

// Init makes a container. It does not run yet.
func (lx *LXD) Init(ctx context.Context, o ContainerOptions) (*Container, error) {
	o.Project = cmp.Or(o.Project, "default")
	image := containerAlias
	if o.Debian {
		image = debianAlias
	}
	if err := lx.importImage(ctx, o.Project, image); err != nil {
		return nil, err
	}
	// lxc reads YAML, which JSON is.
	about, err := json.Marshal(map[string]any{"config": o.config(), "devices": o.devices()})
	if err != nil {
		return nil, err
	}
	args := []string{"init", image, o.Name, "-q", "--project", o.Project}
	if o.Target != "" {
		args = append(args, "--target", o.Target)
	}
	c := &Container{lx: lx, options: o}
	_, err = lx.run(ctx, string(about), lx.client, args...)
	return c, err
}

// Launch makes a container and starts it. It returns when LXD has started it;
// [Container.WaitReady] waits for the guest itself.
func (lx *LXD) Launch(ctx context.Context, o ContainerOptions) (*Container, error) {
	c, err := lx.Init(ctx, o)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// The names of the images in LXD.
const containerAlias, debianAlias = "lab", "debian"

// importImage imports an image into a project of LXD, if it is not there yet.
func (lx *LXD) importImage(ctx context.Context, project, alias string) error {
	lx.mu.Lock()
	defer lx.mu.Unlock()
	if lx.imported[project+"/"+alias] {
		return nil
	}
	files := make([]string, 1)
	var err error
	if alias == debianAlias {
		files, err = DebianImage(ctx)
	} else {
		files[0], err = ContainerImage(ctx)
	}
	if err != nil {
		return err
	}
	// The image is there already if the projects, or the members of a cluster,
	// share it.
	_, err = lx.Lxc(ctx, append(append([]string{"image", "import"}, files...), "--alias", alias, "--project", project)...)
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		return err
	}
	lx.imported[project+"/"+alias] = true
	return nil
}

func (o ContainerOptions) config() map[string]string {
	config := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			config[key] = value
		}
	}
	if o.Gateway.IPv4.IsValid() {
		set("environment.gw4", o.Gateway.IPv4.String())
	}
	if o.Gateway.IPv6.IsValid() {
		set("environment.gw6", o.Gateway.IPv6.String())
	}
	for n, nic := range o.NICs {
		addresses, routes := strings.TrimPrefix(joined(nic.Addresses), ","), strings.TrimPrefix(joined(nic.Routes), ",")
		set(fmt.Sprintf("environment.nic%d", n), addresses)
		for _, pool := range nic.Pools {
			addresses = strings.TrimPrefix(addresses+",pool:"+pool, ",")
		}
		set(fmt.Sprintf("environment.route%d", n), routes)
		set(fmt.Sprintf("user.vmfabric.net%d.addresses", n), addresses)
		set(fmt.Sprintf("user.vmfabric.net%d.routes", n), routes)
	}
	maps.Copy(config, o.Config)
	maps.DeleteFunc(config, func(_, value string) bool { return value == "" })
	return config
}

func (o ContainerOptions) devices() map[string]map[string]string {
	devices := map[string]map[string]string{}
	for n, nic := range o.NICs {
		eth := fmt.Sprintf("eth%d", n)
		dev := map[string]string{"type": "nic", "name": eth, "nictype": "p2p", "host_name": fabric.PortName(o.Name, n)}
		if nic.Kind == fabric.Veth {
			dev = map[string]string{"type": "nic", "name": eth, "nictype": "physical", "parent": fabric.PeerName(o.Name, n)}
		}
		if !nic.MAC.IsZero() {
			dev["hwaddr"] = nic.MAC.String()
		}
		if nic.MTU != 0 {
			dev["mtu"] = strconv.Itoa(nic.MTU)
		}
		devices[eth] = dev
	}
	return devices
}

// Name returns the container's name.
func (c *Container) Name() string { return c.options.Name }

// LXD returns the LXD that has the container; after a move that is another one.
func (c *Container) LXD() *LXD {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lx
}

// Move moves the container to an LXD that is a remote of its present one
// ([LXD.Trust]), and returns when it is there. args go to `lxc move`; a container
// that runs needs --stateless, which starts it anew there. Until then, methods of
// the container act on the former LXD.
func (c *Container) Move(ctx context.Context, to *LXD, args ...string) error {
	remote := to.host.Name() + ":" + c.Name()
	if _, err := c.lxc(ctx, []string{"move", "-q"}, append([]string{remote}, args...)...); err != nil {
		return err
	}
	c.mu.Lock()
	c.lx = to
	c.mu.Unlock()
	return c.noteProcess(ctx)
}

// lxc runs an lxc command on the container: the words, its name, its project, and
// more.
func (c *Container) lxc(ctx context.Context, words []string, more ...string) (string, error) {
	args := append(words, c.options.Name, "--project", c.options.Project)
	return c.LXD().Lxc(ctx, append(args, more...)...)
}

// Start starts the container.
func (c *Container) Start(ctx context.Context) error {
	if _, err := c.lxc(ctx, []string{"start"}); err != nil {
		return err
	}
	return c.noteProcess(ctx)
}

// noteProcess records the container's first process for the lab's keeper, which
// cannot find it by its network namespace.
func (c *Container) noteProcess(ctx context.Context) error {
	pid, err := c.Pid(ctx)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.LXD().host.Lab().OwnProcess(pid)
}

// Shutdown asks the container's first process to end, and waits until it is
// stopped.
func (c *Container) Shutdown(ctx context.Context) error {
	_, err := c.lxc(ctx, []string{"stop"}, "--timeout", "10")
	return err
}

// Destroy stops the container without asking it.
func (c *Container) Destroy(ctx context.Context) error {
	_, err := c.lxc(ctx, []string{"stop"}, "--force")
	return err
}

// Delete stops the container, if it runs, and removes it.
func (c *Container) Delete(ctx context.Context) error {
	_, err := c.lxc(ctx, []string{"delete"}, "--force")
	return err
}

// Exec runs a program in the container and returns its standard output.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	return c.lxc(ctx, []string{"exec"}, append([]string{"-T", "--"}, args...)...)
}

// State returns LXD's word for the container's state: "Running", "Stopped",
// "Frozen".
func (c *Container) State(ctx context.Context) (string, error) {
	var state struct{ Status string }
	err := c.state(ctx, &state)
	return state.Status, err
}

// Pid returns the number of the container's first process on its node. Killing it
// is a crash of the guest.
func (c *Container) Pid(ctx context.Context) (int, error) {
	var state struct{ Pid int }
	if err := c.state(ctx, &state); err != nil {
		return 0, err
	}
	if state.Pid <= 0 {
		return 0, fmt.Errorf("container %s: %w", c.Name(), os.ErrProcessDone)
	}
	return state.Pid, nil
}

func (c *Container) state(ctx context.Context, v any) error {
	out, err := c.LXD().Lxc(ctx, "query", fmt.Sprintf("/1.0/instances/%s/state?project=%s", c.Name(), c.options.Project))
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), v)
}

// WaitReady waits until a container that was started has set up its NICs and
// serves its ports.
func (c *Container) WaitReady(ctx context.Context) error {
	return core.Until(ctx, func() error {
		_, err := c.Exec(ctx, "cat", "/dev/ready")
		return err
	})
}
