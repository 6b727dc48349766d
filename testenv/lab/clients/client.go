package clients

import "slices"

// Extent is how far a guest gets in a family.
type Extent int

// The extents.
const (
	Nothing Extent = iota
	RouteOnly
	Online
)

// Client is what a guest configures itself with.
type Client struct {
	Name       string
	Package    string // of Debian, whose version counts
	Start      string // shell that sets the NIC up and returns, or stays
	Renew      string // shell that has the client ask again, in the way that it has
	Resolvers  string // shell that prints the resolvers that the client has set up
	IPv4, IPv6 Extent
	// Without lists the roots that do not have it.
	Without []string
}

// Parts of scripts.
const (
	up     = "ip link set " + NIC + " up; "
	bus    = "mkdir -p /run/dbus; dbus-daemon --system --fork; "
	resolv = "cat /etc/resolv.conf"
	// Older ones find out only so that no udev is there to wait for.
	networkd = "mkdir -p /run/systemd/network; echo lxc >/run/systemd/container; (while :; do /lib/systemd/systemd-networkd; sleep .2; done) & "
	// To renew is DHCPv4's alone; by DHCPv6 it asks again for a link that it configures
	// anew.
	renewNetworkd = "networkctl renew " + NIC + "; sleep 1; networkctl reconfigure " + NIC
	ofNetworkd    = "cat /run/systemd/netif/links/*"
	// dhclient has no command to renew: killed and started again, it asks for the
	// lease that it has.
	dhclient4 = "dhclient -4 -nw -pf /run/dhclient4.pid -lf /var/lib/dhcp/4.leases " + NIC + "; "
	dhclient6 = "until ip -6 addr show dev " + NIC + " scope link -tentative | grep -q inet6; do sleep .1; done; dhclient -6 -nw -pf /run/dhclient6.pid -lf /var/lib/dhcp/6.leases " + NIC + "; "
)

// Clients lists those that can be tried in a guest of any root.
var Clients = []Client{
	{
		Name: "dhclient", Package: "isc-dhcp-client", IPv4: Online, IPv6: Online,
		Start:     up + dhclient4 + dhclient6,
		Renew:     "kill -9 $(cat /run/dhclient4.pid) $(cat /run/dhclient6.pid); " + dhclient4 + dhclient6,
		Resolvers: resolv,
	},
	{
		Name: "dhcpcd", Package: "dhcpcd*", IPv4: Online, IPv6: Online, Without: []string{"host"},
		Start:     "dhcpcd " + NIC,
		Renew:     "kill -USR1 $(cat /run/dhcpcd*/" + NIC + ".pid /run/dhcpcd-" + NIC + ".pid 2>/dev/null)",
		Resolvers: resolv,
	},
	{
		Name: "udhcpc", Package: "udhcpc", IPv4: Online, IPv6: RouteOnly,
		Start:     "udhcpc -i " + NIC + " -p /run/udhcpc.pid -b &",
		Renew:     "kill -USR1 $(cat /run/udhcpc.pid)",
		Resolvers: resolv,
	},
	{
		Name: "systemd-networkd", Package: "systemd", IPv4: Online, IPv6: Online,
		Start:     bus + "printf '[Match]\\nName=" + NIC + "\\n[Network]\\nDHCP=yes\\n' >/etc/systemd/network/10.network; " + networkd,
		Renew:     renewNetworkd,
		Resolvers: ofNetworkd,
	},
	{
		Name: "netplan, networkd", Package: "netplan.io", IPv4: Online, IPv6: Online,
		Start: bus + "mkdir -p /etc/netplan; echo '{network: {version: 2, ethernets: {" + NIC + ": {dhcp4: true, dhcp6: true}}}}' >/etc/netplan/10.yaml; " +
			"chmod 600 /etc/netplan/10.yaml; netplan generate; " + networkd,
		Renew:     renewNetworkd,
		Resolvers: ofNetworkd,
	},
	{
		Name: "NetworkManager", Package: "network-manager", IPv4: Online, IPv6: Online,
		Start: bus + "printf '[connection]\\nid=nic\\ntype=ethernet\\ninterface-name=" + NIC + "\\n[ipv4]\\nmethod=auto\\n[ipv6]\\nmethod=auto\\n' " +
			">/etc/NetworkManager/system-connections/nic.nmconnection; chmod 600 /etc/NetworkManager/system-connections/*; NetworkManager",
		Renew:     "nmcli connection up nic",
		Resolvers: "nmcli -g IP4.DNS,IP6.DNS device show " + NIC + " | sed 's/\\\\//g'",
	},
	{
		Name: "ifupdown, inet6 dhcp", Package: "ifupdown", IPv4: Online, IPv6: Online,
		Start:     "printf 'iface " + NIC + " inet dhcp\\niface " + NIC + " inet6 dhcp\\n' >/etc/network/interfaces; ifup " + NIC,
		Renew:     "kill -9 $(cat /run/dhclient*." + NIC + ".pid); ifup --force " + NIC,
		Resolvers: resolv,
	},
	{
		Name: "ifupdown, inet6 auto", Package: "ifupdown", IPv4: Online, IPv6: RouteOnly,
		Start:     "printf 'iface " + NIC + " inet dhcp\\niface " + NIC + " inet6 auto\\n' >/etc/network/interfaces; ifup " + NIC,
		Renew:     "kill -9 $(cat /run/dhclient." + NIC + ".pid); ifup --force " + NIC,
		Resolvers: resolv,
	},
	{
		Name: "connman", Package: "connman", IPv4: Online, IPv6: Online, Without: []string{"host"},
		Start:     bus + "connmand --nodnsproxy",
		Renew:     "s=$(connmanctl services | sed 's/.* //' | head -n 1); connmanctl config $s --ipv4 dhcp; connmanctl config $s --ipv6 auto; sleep 5",
		Resolvers: "connmanctl services $(connmanctl services | sed 's/.* //' | head -n 1) | grep ^..Nameservers",
	},
	{
		Name: "wide-dhcpv6-client", Package: "wide-dhcpv6-client", IPv4: Nothing, IPv6: Online, Without: []string{"host"},
		Start: up + "mkdir -p /etc/wide-dhcpv6; echo 'interface " + NIC + " { send ia-na 0; request domain-name-servers; script \"/etc/wide-dhcpv6/dhcp6c-script\"; }; id-assoc na 0 { };' " +
			">/etc/wide-dhcpv6/dhcp6c.conf; dhcp6c -c /etc/wide-dhcpv6/dhcp6c.conf -p /run/dhcp6c.pid " + NIC,
		Renew:     "kill -HUP $(cat /run/dhcp6c.pid)",
		Resolvers: resolv,
	},
	{
		Name: "initramfs-tools, ip=dhcp (klibc ipconfig)", Package: "klibc-utils", IPv4: Online, IPv6: RouteOnly, Without: []string{"host"},
		Start:     up + "sleep 2; /usr/lib/klibc/bin/ipconfig -t 60 -c dhcp -d " + NIC,
		Renew:     "/usr/lib/klibc/bin/ipconfig -t 60 -c dhcp -d " + NIC,
		Resolvers: "cat /run/net-" + NIC + ".conf",
	},
	{
		Name: "cloud-init, NoCloud", Package: "cloud-init", IPv4: Online, IPv6: Online,
		Start: bus + "mkdir -p /var/lib/cloud/seed/nocloud; cd /var/lib/cloud/seed/nocloud; echo 'instance-id: one' >meta-data; echo '#cloud-config' >user-data; " +
			"echo '{version: 2, ethernets: {" + NIC + ": {dhcp4: true, dhcp6: true}}}' >network-config; cd /; cloud-init init --local; " +
			"if [ -d /etc/network/interfaces.d ] && grep -qs " + NIC + " /etc/network/interfaces.d/*; then echo 'source /etc/network/interfaces.d/*' >/etc/network/interfaces; ifup " + NIC + "; " +
			"else netplan generate; " + networkd + "fi; cloud-init init",
		Renew:     "if [ -e /run/systemd/netif/state ]; then " + renewNetworkd + "; else kill -9 $(cat /run/dhclient*." + NIC + ".pid); ifup --force " + NIC + "; fi",
		Resolvers: "cat /etc/resolv.conf /run/systemd/netif/links/* 2>/dev/null",
	},
}

// In lists the clients that a root has.
func In(r Root) (in []Client) {
	for _, c := range Clients {
		if !slices.Contains(c.Without, r.Name) {
			in = append(in, c)
		}
	}
	return in
}
