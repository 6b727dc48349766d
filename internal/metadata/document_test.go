package metadata_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/metadata"
)

const uuid = "aaaaaaaa-0000-4000-8000-000000000001"

var cluster = fabric.Cluster{
	Name:    "lab",
	Gateway: fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.DefaultMAC},
	Guests:  fabric.Guests{Metadata: true, DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")}, MTU: 1400},
}

// nic makes a NIC of the last octet of its MAC and of words: addresses, and prefixes
// that are routed to it.
func nic(last byte, words string) fabric.NIC {
	n := fabric.NIC{MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, last}}
	for w := range strings.FieldsSeq(words) {
		if p, err := netip.ParsePrefix(w); err == nil {
			n.Routes = append(n.Routes, p)
		} else {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(w))
		}
	}
	return n
}

func guest(nics ...fabric.NIC) metadata.Guest {
	return metadata.Guest{VM: fabric.VM{Name: "web", UUID: uuid, Origin: "libvirt", NICs: nics}}
}

var dual = guest(nic(0x10, "203.0.113.10 2001:db8:100::10"))

func told(t *testing.T, path string, g metadata.Guest, c fabric.Cluster) string {
	t.Helper()
	body, media, ok := metadata.Document(path, g, &c)
	require.True(t, ok, path)
	assert.NotEmpty(t, media)
	return string(body)
}

func TestMetaData(t *testing.T) {
	assert.Equal(t, "instance-id: \"libvirt-"+uuid+"\"\nlocal-hostname: \"web\"\n", told(t, "/meta-data", dual, cluster))
	assert.JSONEq(t, `{"uuid":"libvirt-`+uuid+`","name":"web","hostname":"web"}`, told(t, "/openstack/latest/meta_data.json", dual, cluster))

	odd := dual
	odd.VM.Name, odd.VM.UUID, odd.VM.Origin = `a: "b" #ж`, "", ""
	assert.Equal(t, `instance-id: "attached-a: \"b\" #ж"`+"\n", told(t, "/meta-data", odd, cluster), "no host name")
	assert.JSONEq(t, `{"uuid":"attached-a: \"b\" #ж","name":"a: \"b\" #ж"}`, told(t, "/openstack/latest/meta_data.json", odd, cluster))
}

// TestInstance: a guest that was moved or renamed is the same, a copy is another one.
func TestInstance(t *testing.T) {
	of := func(change func(*fabric.VM)) string {
		g := dual
		change(&g.VM)
		return told(t, "/meta-data", g, cluster)[:60]
	}
	same := of(func(*fabric.VM) {})
	assert.Equal(t, same, of(func(vm *fabric.VM) { vm.Name = "renamed" }))
	assert.Equal(t, same, of(func(vm *fabric.VM) { vm.NICs = nil }))
	assert.NotEqual(t, same, of(func(vm *fabric.VM) { vm.Origin = "lxd" }))
	assert.NotEqual(t, same, of(func(vm *fabric.VM) { vm.UUID = strings.Replace(uuid, "1", "2", 1) }))
}

func TestUserData(t *testing.T) {
	g := dual
	assert.Empty(t, told(t, "/user-data", g, cluster), "it must be there")
	_, _, ok := metadata.Document("/openstack/latest/user_data", g, &cluster)
	assert.False(t, ok)
	g.UserData = []byte("#cloud-config\n\x00")
	assert.Equal(t, "#cloud-config\n\x00", told(t, "/user-data", g, cluster))
	assert.Equal(t, "#cloud-config\n\x00", told(t, "/openstack/latest/user_data", g, cluster))
}

func TestPaths(t *testing.T) {
	for _, path := range []string{"", "/", "/openstack", "/openstack/", "/openstack/latest/", "/vendor-data", "/openstack/latest/vendor_data.json"} {
		_, _, ok := metadata.Document(path, dual, &cluster)
		assert.True(t, ok, path)
	}
	for _, path := range []string{"//", "/meta-data//", "/latest/meta-data/instance-id", "/openstack/latest/../latest", "/META-DATA", "meta-data", "/openstack/2018-08-27/meta_data.json"} {
		_, _, ok := metadata.Document(path, dual, &cluster)
		assert.False(t, ok, path)
	}
	for _, name := range strings.Fields(told(t, "/", dual, cluster)) {
		told(t, "/"+name, dual, cluster)
	}
	assert.Equal(t, "latest\n", told(t, "/openstack", dual, cluster))
}

// Parts of network_data.json.
const (
	link0    = `{"id":"net0","type":"phy","ethernet_mac_address":"52:54:00:00:00:10","mtu":1400}`
	link1    = `{"id":"net1","type":"phy","ethernet_mac_address":"52:54:00:00:00:11","mtu":1400}`
	dns4     = `{"type":"dns","address":"9.9.9.9"}`
	dns6     = `{"type":"dns","address":"2620:fe::fe"}`
	dhcp4    = `{"id":"network0","link":"net0","type":"ipv4_dhcp"}`
	dhcp6    = `{"id":"network1","link":"net0","type":"ipv6_dhcpv6-stateful"}`
	all      = `"255.255.255.255"`
	all6     = `"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"`
	default4 = `{"network":"0.0.0.0","netmask":"0.0.0.0","gateway":"169.254.1.1"}`
	onLink4  = `{"network":"169.254.1.1","netmask":"255.255.255.255","gateway":"0.0.0.0"}`
	default6 = `{"network":"::","netmask":"::","gateway":"fe80::1"}`
)

func TestNetworkData(t *testing.T) {
	static := func(c *fabric.Cluster) { c.Guests.NoDHCP = true }
	for name, tc := range map[string]struct {
		guest                     metadata.Guest
		change                    func(*fabric.Cluster)
		links, networks, services string
	}{
		"both families": {guest: dual, links: link0, networks: dhcp4 + "," + dhcp6, services: dns4 + "," + dns6},
		"IPv4":          {guest: guest(nic(0x10, "203.0.113.10")), links: link0, networks: dhcp4, services: dns4},
		"IPv6": {
			guest: guest(nic(0x10, "2001:db8:100::10 2001:db8:100::11")), links: link0,
			networks: strings.Replace(dhcp6, "network1", "network0", 1), services: dns6,
		},
		"two IPv4 addresses": {
			guest: guest(nic(0x10, "203.0.113.10 203.0.113.11 198.51.100.0/29")), links: link0, services: dns4,
			networks: dhcp4 + `,{"id":"network1","link":"net0","type":"ipv4","ip_address":"203.0.113.11","netmask":` + all + `}`,
		},
		"two NICs": {
			guest: guest(nic(0x10, "203.0.113.10"), nic(0x11, "203.0.113.11 2001:db8:100::11")), links: link0 + "," + link1, services: dns4 + "," + dns6,
			networks: dhcp4 + `,{"id":"network1","link":"net1","type":"ipv4","ip_address":"203.0.113.11","netmask":` + all + `}` +
				`,{"id":"network2","link":"net1","type":"ipv6_dhcpv6-stateful"}`,
		},
		"two NICs of both families": {
			guest: guest(nic(0x10, "203.0.113.10 2001:db8:100::10"), nic(0x11, "2001:db8:100::11")), links: link0 + "," + link1, services: dns4 + "," + dns6,
			networks: dhcp4 + "," + dhcp6 + `,{"id":"network2","link":"net1","type":"ipv6","ip_address":"2001:db8:100::11","netmask":` + all6 + `}`,
		},
		"without DHCP": {
			guest: guest(nic(0x10, "203.0.113.10 203.0.113.11 2001:db8:100::10")), change: static, links: link0, services: dns4 + "," + dns6,
			networks: `{"id":"network0","link":"net0","type":"ipv4","ip_address":"203.0.113.10","netmask":` + all + `,"routes":[` + onLink4 + "," + default4 + `]}` +
				`,{"id":"network1","link":"net0","type":"ipv4","ip_address":"203.0.113.11","netmask":` + all + `}` +
				`,{"id":"network2","link":"net0","type":"ipv6","ip_address":"2001:db8:100::10","netmask":` + all6 + `,"routes":[` + default6 + `]}`,
		},
		"without RA": {
			guest: dual, change: func(c *fabric.Cluster) { c.Guests.NoRA = true }, links: link0, services: dns4 + "," + dns6,
			networks: dhcp4 + `,{"id":"network1","link":"net0","type":"ipv6","ip_address":"2001:db8:100::10","netmask":` + all6 + `,"routes":[` + default6 + `]}`,
		},
		"by name": {
			guest: guest(fabric.NIC{Link: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10")}}), links: `{"id":"net0","type":"phy","name":"eth0","mtu":1400}`,
			networks: dhcp4, services: dns4,
		},
		"nothing said": {
			guest: guest(nic(0x10, "203.0.113.10")), change: func(c *fabric.Cluster) { c.Guests = fabric.Guests{} },
			links: strings.Replace(link0, `,"mtu":1400`, "", 1), networks: dhcp4,
		},
	} {
		c := cluster
		if tc.change != nil {
			tc.change(&c)
		}
		assert.JSONEq(t, `{"links":[`+tc.links+`],"networks":[`+tc.networks+`],"services":[`+tc.services+`]}`,
			told(t, "/openstack/latest/network_data.json", tc.guest, c), name)
	}
}

// TestUnknownLinks: nothing is said of a network whose links the guest could not find.
func TestUnknownLinks(t *testing.T) {
	unknown := nic(0, "203.0.113.11")
	unknown.MAC = fabric.MAC{}
	veth := nic(0x10, "203.0.113.10")
	veth.Kind = fabric.Veth
	container := dual
	container.VM.Container = true
	for name, tc := range map[string]struct {
		guest        metadata.Guest
		data, config bool
	}{
		"known": {dual, true, true}, "one unknown": {guest(nic(0x10, "203.0.113.10"), unknown), false, false},
		"one MAC twice": {guest(nic(0x10, "203.0.113.10"), nic(0x10, "203.0.113.11")), false, false},
		"veth":          {guest(veth), true, false}, "container": {container, true, false}, // its MAC is none that netplan finds it by
	} {
		for path, want := range map[string]bool{"/openstack/latest/network_data.json": tc.data, "/network-config": tc.config} {
			_, _, ok := metadata.Document(path, tc.guest, &cluster)
			assert.Equal(t, want, ok, "%s %s", name, path)
		}
	}
}

func TestNetworkConfig(t *testing.T) {
	text := told(t, "/network-config", guest(nic(0x10, "203.0.113.10 203.0.113.11 2001:db8:100::10"), nic(0x11, "203.0.113.12")), cluster)
	for _, want := range []string{"version: 2\n", `macaddress: "52:54:00:00:00:10"`, "203.0.113.11/32", "2001:db8:100::10/128", "routing-policy:", `- from: "203.0.113.12/32"`} {
		assert.Contains(t, text, want)
	}
}

// TestNodesAgree: the bytes depend on the guest and the cluster alone.
func TestNodesAgree(t *testing.T) {
	for _, path := range []string{"/meta-data", "/network-config", "/openstack/latest/meta_data.json", "/openstack/latest/network_data.json"} {
		first := told(t, path, dual, cluster)
		b, err := json.Marshal(dual.VM)
		require.NoError(t, err)
		var moved fabric.VM // as another node gets it
		require.NoError(t, json.Unmarshal(b, &moved))
		assert.Equal(t, first, told(t, path, metadata.Guest{VM: moved}, cluster), path)
	}
}
