package render_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// busConfig lets everybody on a message bus do everything.
const busConfig = `<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/>
    <allow send_destination="*"/> <allow receive_sender="*"/> <allow eavesdrop="true"/>
  </policy>
</busconfig>
`

const managerConfig = `[main]
plugins=keyfile
dns=none
rc-manager=unmanaged
no-auto-default=*
auth-polkit=false
[keyfile]
path=/run/NetworkManager/profiles
[logging]
level=INFO
`

// networkManager runs NetworkManager in the guest with these profiles, on a
// message bus of its own. As with networkd, a /sys that cannot be written tells
// it that there is no udev to wait for.
func networkManager(t *testing.T, p plugged, profiles string) {
	t.Helper()
	const program = "/usr/sbin/NetworkManager"
	installed(t, program)
	installed(t, "dbus-daemon")
	labtest.Need(t, "unshare")
	dir := p.guest.Dir()
	bus, conf, socket := filepath.Join(dir, "bus.conf"), filepath.Join(dir, "NetworkManager.conf"), filepath.Join(dir, "bus")
	require.NoError(t, os.WriteFile(bus, fmt.Appendf(nil, busConfig, socket), 0o644))
	require.NoError(t, os.WriteFile(conf, []byte(managerConfig), 0o644))
	_, err := p.guest.StartDaemon("dbus-daemon", exec.Command("dbus-daemon", "--config-file", bus, "--nofork", "--nopidfile"))
	require.NoError(t, err)
	require.NoError(t, core.Until(soon(t), func() error { _, err := os.Stat(socket); return err }))
	cmd := exec.Command("unshare", "-m", "sh", "-ec", `
		for dir in /run /var/lib/NetworkManager /usr/lib/NetworkManager/conf.d; do mount -t tmpfs tmpfs $dir; done
		mkdir -p /run/NetworkManager/profiles /run/intern
		cp "$1"/*.nmconnection /run/NetworkManager/profiles
		chmod 600 /run/NetworkManager/profiles/*
		umount -l /sys
		mount -t sysfs -o ro sysfs /sys
		exec "$3" --debug --config "$2" --config-dir /run/intern`, "sh", profiles, conf, program)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+socket)
	_, err = p.guest.StartDaemon("NetworkManager", cmd)
	require.NoError(t, err)
}
