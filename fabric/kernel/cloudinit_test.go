package kernel_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	service "github.com/vmfabric/vmfabric/internal/metadata"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// serveMetadata serves the metadata of guests.
func serveMetadata(t *testing.T, d *kernel.Dataplane, guests fabric.Guests, vm fabric.VM) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	cluster := fabric.Cluster{Name: "lab", Gateway: gateway, Guests: guests}
	go func() {
		ended <- service.Serve(ctx, service.Config{
			Cluster: func() *fabric.Cluster { return &cluster }, Listeners: d.MetadataListeners(), PortOf: kernel.PortOf,
			Guest: func(name string) (fabric.VM, bool) { return vm, name == vm.Name },
			UserData: func(context.Context, fabric.VM) ([]byte, error) {
				return []byte("#cloud-config\nfqdn: by-user-data.example.net\n"), nil
			},
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// booted is what cloud-init does at a guest's first boot, in files of the guest's own.
// $1 is a directory, and $2 what the sources are.
const booted = `
mount --make-rprivate /
mount -t sysfs -o ro none /sys
mount -t tmpfs none /run
mkdir -p $1/etc $1/work $1/lib $1/log
mount -t overlay -o lowerdir=/etc,upperdir=$1/etc,workdir=$1/work overlay /etc
mkdir -p /var/lib/cloud && mount --bind $1/lib /var/lib/cloud
mount --bind $1/log /var/log
mkdir -p /run/network
echo > /etc/resolv.conf
rm -rf /etc/network/interfaces.d/* /etc/netplan /etc/cloud/cloud.cfg.d/* /etc/cloud/ds-identify.cfg
printf '%s\n' 'source-directory /etc/network/interfaces.d' > /etc/network/interfaces
cat > /etc/cloud/cloud.cfg <<END
$2
users: []
cloud_init_modules: []
system_info: {distro: debian, network: {renderers: [eni]}, paths: {cloud_dir: /var/lib/cloud}}
END
cloud-init init --local
ifup -a --no-scripts
cloud-init init
ifup -a --no-scripts
cat /etc/network/interfaces.d/50-cloud-init
cloud-init query --format 'id={{v1.instance_id}} name={{v1.local_hostname}} source={{v1.platform}}'
cat $1/log/cloud-init.log
`

// TestCloudInit has the real cloud-init set up a guest by each of its sources.
func TestCloudInit(t *testing.T) {
	labtest.Need(t, "root", "cloud-init", "ifquery", "dhclient")
	extra := netip.MustParseAddr("203.0.113.11")
	for name, sources := range map[string]string{
		"OpenStack": "datasource_list: [OpenStack]",
		"NoCloud":   "datasource_list: [NoCloud]\ndatasource: {NoCloud: {seedfrom: 'http://169.254.169.254/'}}",
	} {
		t.Run(name, func(t *testing.T) {
			lab := newMoveLab(t)
			guests := fabric.Guests{Metadata: true}
			d := openGuarded(t, guests)
			nic := fabric.NIC{Kind: fabric.Veth, MAC: guestMAC, Addresses: []netip.Addr{guestAddr[true], extra, guestAddr[false]}}
			vm := fabric.VM{Name: "web", UUID: "aaaaaaaa-0000-4000-8000-000000000001", Origin: "libvirt", NICs: []fabric.NIC{nic}}
			serveMetadata(t, d, guests, vm)
			require.NoError(t, d.Put(t.Context(), port("web", nic)))
			g := behindPort(t, "web")
			dir := t.TempDir()
			var said []byte
			require.NoError(t, within(g, func() (err error) {
				cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", booted, "sh", dir, sources)
				cmd.Env = append(os.Environ(), "product_name=OpenStack Nova") // as a container of OpenStack has it
				said, err = cmd.CombinedOutput()
				return err
			}))
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("%s", said)
				}
			})
			assert.Contains(t, string(said), "id=libvirt-aaaaaaaa-0000-4000-8000-000000000001 name=web source="+strings.ToLower(name))
			awaitPing(t, lab.core, guestAddr[true])
			if name == "OpenStack" { // NoCloud reads no network configuration from the service in cloud-init 22.4
				awaitPing(t, lab.core, extra)
				awaitPing(t, lab.core, guestAddr[false])
			}
		})
	}
}
