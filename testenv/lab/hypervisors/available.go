package hypervisors

import (
	"context"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// programs are the programs that each hypervisor of a lab needs.
var programs = map[string][]string{
	"libvirt": {"libvirtd", "virsh"},
	"lxd":     {"lxd", "lxc", "busybox", "mount"},
	"qemu":    {"libvirtd", "virsh", "qemu-system-x86_64", "busybox", "apt-get", "apt-cache", "dpkg-deb"},
}

// Available returns an error if a lab of this process cannot have a hypervisor:
// "libvirt", "qemu" (guests of libvirt) or "lxd" with its containers.
func Available(ctx context.Context, hypervisor string) error {
	need, ok := programs[hypervisor]
	if !ok {
		need = []string{hypervisor}
	}
	return core.Available(ctx, hypervisor, need...)
}
