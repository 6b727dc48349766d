package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// FirmwarePackage is the package of Debian that [BootFirmware] needs, beside QEMU.
const FirmwarePackage = "ipxe"

// firmwareKernel is iPXE in the form of a kernel, which takes a script in the place of
// an initial file system.
const firmwareKernel = "/boot/ipxe.lkrn"

// BootFirmware starts a machine of QEMU on a tap of a host that runs a script of iPXE.
func BootFirmware(ctx context.Context, h *core.Host, tap, script string) (*core.Daemon, error) {
	if _, err := os.Stat(firmwareKernel); err != nil {
		return nil, fmt.Errorf("%w; install %s", err, FirmwarePackage)
	}
	path := filepath.Join(h.Dir(), tap+".ipxe")
	if err := os.WriteFile(path, []byte("#!ipxe\n"+script), 0o644); err != nil {
		return nil, err
	}
	return bootMachine(ctx, h, tap, "-kernel", firmwareKernel, "-initrd", path)
}

// bootMachine starts a machine of QEMU on a tap of a host. It is emulated: nothing but
// QEMU is needed, and everything takes seconds.
func bootMachine(ctx context.Context, h *core.Host, tap string, args ...string) (*core.Daemon, error) {
	qemu, err := daemons.Find(ctx, "qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	args = append([]string{
		"-accel", "tcg", "-m", "512", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-netdev", "tap,id=n,ifname=" + tap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n,mac=" + core.GuestMAC(tap, 0).String() + ",romfile=",
	}, args...)
	return h.StartDaemon("qemu-"+tap, exec.Command(qemu, args...))
}
