// Package metadata serves a guest what it asks at 169.254.169.254 and fe80::a9fe:a9fe:
// the forms of cloud-init's sources NoCloud and OpenStack, of which cloudbase-init knows
// the second.
//
// Documents are made of the guest and the cluster alone, so that all nodes give the same
// bytes. The guest is the one whose port the connection came in by, whatever it says. The
// service gives no secret of the cluster's; what a guest's user data holds is another
// matter, so a request that somebody forwarded, or that names another host, is refused.
//
// # What the network documents say
//
// A guest that the node answers by DHCP learns its first IPv4 address and all IPv6
// addresses in that way, and network_data.json says so; it adds what DHCP does not say,
// the other addresses. The default route of a family is that of the first NIC with
// addresses of it. The form has no word for policy routing, without which packets from the
// addresses of another NIC leave by the wrong one. network-config, version 2, has it, and
// says all of the network without DHCP; only netplan applies it all.
//
// A guest of which a NIC cannot be told by its MAC address or name gets no network
// document: it goes on with DHCP.
package metadata
