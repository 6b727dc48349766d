package clients

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/machine"
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
	return machine.Emulate(ctx, h, tap, "-m", "512", "-kernel", firmwareKernel, "-initrd", path)
}
