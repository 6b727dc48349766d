package clients

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/machine"
)

// Initramfs is an initial file system of Debian 13 that configures the network itself,
// in a machine of QEMU.
type Initramfs struct {
	Name     string   // of the package that makes it
	packages []string // beside the kernel
	make     string   // shell that makes it, in the root, as /boot/initrd; empty: the package has made it
	// Parameters are those of the kernel with which it sets up the network, and then
	// waits for a root file system that is not there.
	Parameters string
	IPv6       bool // it asks for IPv6 addresses
}

// Initramfses lists those that can be tried.
var Initramfses = []Initramfs{
	{
		Name: "initramfs-tools", packages: []string{"initramfs-tools"}, make: "mv /boot/initrd.img-* /boot/initrd",
		Parameters: "ip=dhcp boot=nfs root=/dev/nfs nfsroot=" + core.ClientAddr4.String() + ":/none",
	},
	{
		Name: "dracut", packages: []string{"dracut", "dracut-network", "iproute2", "systemd"},
		make:       "dracut --force --no-hostonly --add systemd-networkd /boot/initrd $(ls /lib/modules)",
		Parameters: "ip=any rd.neednet=1 rd.timeout=0 root=/dev/vda1", IPv6: true,
	},
}

// Files returns the paths of a kernel and of the initial file system. It takes them from
// the cache ([cache.Variable]), or makes them by mmdebstrap, which takes minutes.
func (i Initramfs) Files(ctx context.Context) (kernel, initrd string, err error) {
	args := []string{"--quiet", "--variant=minbase", "--include=linux-image-cloud-amd64," + strings.Join(i.packages, ",")}
	dir, err := cache.Dir("initramfs-"+i.Name+"-"+cache.Fingerprint([]byte(strings.Join(args, " ")+i.make)), func(dir string) error {
		args := append(args,
			"--customize-hook=chroot \"$1\" sh -e -c '"+i.make+"'",
			"--customize-hook=cp \"$1\"/boot/initrd \"$1\"/boot/vmlinuz-* "+dir)
		return machine.Bootstrap(ctx, "trixie", "/dev/null", args...)
	})
	if err != nil {
		return "", "", fmt.Errorf("initial file system of %s: %w", i.Name, err)
	}
	kernels, err := filepath.Glob(filepath.Join(dir, "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return "", "", fmt.Errorf("%s has %d kernels", dir, len(kernels))
	}
	return kernels[0], filepath.Join(dir, "initrd"), nil
}

// Boot starts a machine of QEMU on a tap of a host.
func (i Initramfs) Boot(ctx context.Context, h *core.Host, tap string) (*core.Daemon, error) {
	kernel, initrd, err := i.Files(ctx)
	if err != nil {
		return nil, err
	}
	return machine.Emulate(ctx, h, tap, "-m", "512", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 "+i.Parameters)
}
