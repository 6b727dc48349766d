package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Releases lists the releases of Debian that [Debian] makes images of.
var Releases = []string{"bullseye", "bookworm", "trixie"}

// Image is a Debian that boots. Machines only read it.
type Image struct {
	Release              string
	Kernel, Initrd, Disk string
}

// packages are in the images of all releases: a machine that boots, and a hypervisor.
var packages = []string{
	"dbus", "iproute2", "iputils-ping", "kmod", "libvirt-clients", "libvirt-daemon-system", "linux-image-cloud-amd64",
	"nftables", "procps", "qemu-guest-agent", "qemu-system-x86", "systemd-sysv", "udev",
}

// LeftOut are the options of mmdebstrap that leave out of a root what nobody reads.
var LeftOut = []string{
	"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
}

// customize is shell that is run in a new root: networkd manages the links, nothing is started
// by the clock, and the initial file system has the few drivers that the machine needs.
const customize = `systemctl enable systemd-networkd >/dev/null 2>&1
systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer >/dev/null 2>&1
printf 'virtio_pci\nvirtio_blk\next4\n' >>/etc/initramfs-tools/modules
echo MODULES=list >/etc/initramfs-tools/conf.d/machine
update-initramfs -u >/dev/null
cd /boot
ln -sf vmlinuz-* vmlinuz
ln -sf initrd.img-* initrd`

// diskSize is the size of a machine's disk, of which a third is used.
const diskSize = "3G"

// Debian returns the image of a release of Debian. It takes it from the cache
// ([cache.Variable]), or makes it by mmdebstrap from the package mirror of the machine: a
// gigabyte, and minutes.
func Debian(ctx context.Context, release string) (Image, error) {
	if !slices.Contains(Releases, release) {
		return Image{}, fmt.Errorf("no machine with %s; there are %s", release, strings.Join(Releases, ", "))
	}
	args := append([]string{"--quiet", "--variant=minbase", "--include=" + strings.Join(packages, ",")}, LeftOut...)
	name := "machine-" + release + "-" + cache.Fingerprint([]byte(strings.Join(args, " ")+customize+diskSize))
	dir, err := cache.Dir(name, func(dir string) error { return makeImage(ctx, release, dir, args) })
	if err != nil {
		return Image{}, fmt.Errorf("machine with %s: %w", release, err)
	}
	return Image{release, filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd"), filepath.Join(dir, "disk")}, nil
}

// makeImage puts a kernel, an initial file system and a disk into dir.
func makeImage(ctx context.Context, release, dir string, args []string) error {
	root := filepath.Join(dir, "root")
	args = append(args, "--customize-hook=chroot \"$1\" sh -e -c '"+strings.ReplaceAll(customize, "'", `'\''`)+"'")
	if err := Bootstrap(ctx, release, root, args...); err != nil {
		return err
	}
	for _, file := range []string{"vmlinuz", "initrd"} {
		if _, err := do(ctx, "cp", filepath.Join(root, "boot", file), dir); err != nil {
			return err
		}
	}
	return errors.Join(makeDisk(ctx, filepath.Join(dir, "disk"), root, diskSize), os.RemoveAll(root))
}

// makeDisk makes a disk with the files of a directory.
func makeDisk(ctx context.Context, path, dir, size string) error {
	_, err := do(ctx, "mke2fs", "-q", "-t", "ext4", "-d", dir, path, size)
	return err
}

// Bootstrap makes a root file system of a release of Debian by mmdebstrap, from the package
// mirror of the machine. The args are options of mmdebstrap. The archive of security fixes
// is left out: that of an old release loses packages which its index still names.
func Bootstrap(ctx context.Context, release, target string, args ...string) error {
	mirrors, err := do(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian")
	if err != nil {
		return err
	}
	mirror, _, _ := strings.Cut(mirrors, "\n")
	if mirror == "" {
		return errors.New("apt knows no mirror of Debian; add one to its sources, and apt-get update")
	}
	_, err = do(ctx, "mmdebstrap", append(args, release, target, "deb "+mirror+" "+release+" main")...)
	return err
}

func do(ctx context.Context, program string, args ...string) (string, error) {
	out, err := core.Output(exec.CommandContext(ctx, program, args...), (*exec.Cmd).Start)
	if errors.Is(err, exec.ErrNotFound) {
		err = fmt.Errorf("%w; install %s", err, program)
	}
	return out, err
}
