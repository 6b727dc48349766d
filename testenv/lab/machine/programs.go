package machine

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmfabric/vmfabric/testenv/lab/cache"
)

// programs are what labs start and a release may have another version of, and what else the
// tests call.
var programs = []string{
	"bird2", "busybox-static", "curl", "frr", "iproute2", "iptables", "iputils-ping", "kmod", "libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu",
	"make", "nftables", "openssl", "procps", "qemu-system-x86", "tcpdump", "util-linux",
}

// merged has the directories of programs and libraries below /usr also in the releases whose
// packages do not say so.
const merged = `--setup-hook=for d in bin lib lib32 lib64 libx32 sbin; do mkdir -p "$1/usr/$d"; ln -s usr/$d "$1/$d"; done`

// Programs returns a root file system with the hypervisor and the routing daemons of a
// release of Debian: its /usr serves in the place of this machine's. Programs takes it from
// the cache ([cache.Variable]), or makes it as [Bootstrap] does: 400 MB, and minutes.
func Programs(ctx context.Context, release string) (string, error) {
	if !slices.Contains(Releases, release) {
		return "", fmt.Errorf("no programs of %s; there are those of %s", release, strings.Join(Releases, ", "))
	}
	args := append([]string{"--quiet", "--variant=minbase", "--include=" + strings.Join(programs, ",")}, LeftOut...)
	if release == "bullseye" {
		args = append(args, merged)
	}
	name := "programs-" + release + "-" + cache.Fingerprint([]byte(strings.Join(args, " ")))
	dir, err := cache.Dir(name, func(dir string) error { return Bootstrap(ctx, release, filepath.Join(dir, "root"), args...) })
	if err != nil {
		return "", fmt.Errorf("programs of %s: %w", release, err)
	}
	return filepath.Join(dir, "root"), nil
}
