package machine

import (
	"context"
	"os/exec"

	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Emulate starts QEMU in a host, with a NIC on a tap of the host's; further arguments are
// QEMU's. The processor is emulated: nothing but QEMU is needed, and everything takes
// seconds. The log has what comes out of the serial port.
func Emulate(ctx context.Context, h *core.Host, tap string, args ...string) (*core.Daemon, error) {
	qemu, err := daemons.Find(ctx, "qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	args = append([]string{
		"-accel", "tcg", "-display", "none", "-serial", "stdio", "-monitor", "none",
		"-netdev", "tap,id=n,ifname=" + tap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n,mac=" + core.GuestMAC(tap, 0).String() + ",romfile=",
	}, args...)
	return h.StartDaemon("qemu-"+tap, exec.Command(qemu, args...))
}
