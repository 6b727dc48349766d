package testenv

import (
	"errors"
	"fmt"
	"os"
)

// programs are what each of the daemons that a lab can run needs.
var programs = map[string][]string{
	"bird":    {"bird"},
	"frr":     {"zebra", "bgpd", "staticd", "bfdd", "vtysh"},
	"libvirt": {"libvirtd", "virsh"},
	"qemu":    {"libvirtd", "virsh", "qemu-system-x86_64", "busybox", "apt-get", "apt-cache", "dpkg-deb"},
}

// Available reports what of "bird", "frr", "libvirt" or "qemu" is missing on
// this machine: nil when a lab can have it.
func Available(daemon string) error {
	need, ok := programs[daemon]
	if !ok {
		return fmt.Errorf("%q is none of bird, frr, libvirt, qemu", daemon)
	}
	for _, p := range need {
		if _, err := findProgram(p); err != nil {
			return fmt.Errorf("%s: %w", daemon, err)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: %w", daemon, errors.New("not root; run as root"))
	}
	return nil
}
