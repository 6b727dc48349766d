package clients

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/testenv/lab/cache"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/machine"
)

// Root is a root file system with clients. Guests only read it.
type Root struct {
	Name string // "host", or a release of Debian
	path string
}

// Host is the root of the machine itself.
func Host() Root { return Root{"host", "/"} }

// Releases lists the releases of Debian that [Debian] makes roots of.
var Releases = []string{"bullseye", "bookworm", "trixie"}

// packages are in the roots of all releases, beside the release's dhcpcd.
var packages = []string{
	"busybox", "cloud-init", "connman", "dbus", "dracut-network", "ifupdown", "iproute2", "iputils-ping", "isc-dhcp-client",
	"klibc-utils", "netplan.io", "network-manager", "procps", "systemd", "udev", "udhcpc", "wide-dhcpv6-client",
}

// Debian returns the root of a release of Debian. It takes it from the cache
// ([cache.Variable]), or makes it by mmdebstrap from the package mirror of the machine:
// half a gigabyte, and minutes.
func Debian(ctx context.Context, release string) (Root, error) {
	if !slices.Contains(Releases, release) {
		return Root{}, fmt.Errorf("no root of %s; there are %s", release, strings.Join(Releases, ", "))
	}
	dhcpcd := "dhcpcd-base"
	if release == "bullseye" {
		dhcpcd = "dhcpcd5"
	}
	args := []string{"--quiet", "--variant=minbase", "--include=" + strings.Join(append([]string{dhcpcd}, packages...), ",")}
	args = append(args, machine.LeftOut...)
	name := "root-" + release + "-" + cache.Fingerprint([]byte(strings.Join(args, " ")))
	path, err := cache.Dir(name, func(dir string) error {
		return machine.Bootstrap(ctx, release, filepath.Join(dir, "root"), args...)
	})
	if err != nil {
		return Root{}, fmt.Errorf("root of %s: %w", release, err)
	}
	return Root{release, filepath.Join(path, "root")}, nil
}

// Version returns the version of an installed package.
func (r Root) Version(ctx context.Context, pkg string) (string, error) {
	return core.Output(exec.CommandContext(ctx, "dpkg-query", "--admindir="+filepath.Join(r.path, "var/lib/dpkg"), "-W", "-f", "${Version}", pkg), (*exec.Cmd).Start)
}
