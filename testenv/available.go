package testenv

import (
	"fmt"
	"os"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// programs are what each of the things that a lab can run needs.
var programs = map[string][]string{
	"root":    nil,
	"frr":     {"zebra", "bgpd", "staticd", "bfdd", "vtysh"},
	"libvirt": {"libvirtd", "virsh"},
	"lxd":     {"lxd", "lxc", "busybox", "mount"},
	"qemu":    {"libvirtd", "virsh", "qemu-system-x86_64", "busybox", "apt-get", "apt-cache", "dpkg-deb"},
}

// Available reports whether a lab of this process can have something, nil when
// it can: "frr", "libvirt", "qemu" (guests of libvirt), "lxd" with its
// containers, any program by its name ("bird"), or nothing but "root", which all
// of them need.
func Available(thing string) error {
	need, ok := programs[thing]
	if !ok {
		need = []string{thing}
	}
	for _, p := range need {
		if _, err := daemons.Find(p); err != nil {
			return fmt.Errorf("no %s here: %w", thing, err)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("no %s here: not root; run as root", thing)
	}
	return nil
}
