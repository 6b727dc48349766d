// Package autoconf decides what a node answers when a guest asks for its addresses and
// routes: by DHCPv4 (RFC 2131, 2132, 3396, 3397, 3442, 6842), by DHCPv6 (RFC 8415,
// 3646, 4075, 4704, 5908) and by router solicitations (RFC 4861, 4191, 8106).
//
// An answer depends on the [Offer] and on the request, and on nothing else: there is no
// pool, no lease table and no clock. All nodes give the same bytes, so that a guest
// never notices a move or a restarted agent. The caller reads the packets of a port,
// limits how many it reads, and sends the frames.
//
// # Addresses of a point-to-point link
//
// A guest's address is a /32 or /128, and its gateway lies outside of it. The DHCPv4
// answer says so in three forms that agree: the mask 255.255.255.255, the router option
// (3), and classless routes (121) that make the gateway on-link before they make it the
// default. Some clients read only the router option, others only the routes, and some
// install the routes in the order given. Firmware (vendor class PXEClient) gets the mask
// 255.255.255.252 instead: many PXE ROMs take a router behind a /32 for a broadcast.
//
// The identity of a guest is its port. The client identifier is echoed, and means
// nothing. A guest that asks with a hardware address other than that of its frame, or
// of its NIC where that is known, gets no answer.
//
// # What there is no answer for
//
// A guest without an IPv4 address gets no answer by DHCPv4. A guest without an IPv6
// address gets no router advertisement, which would give it a default route that leads
// nowhere, and learns by DHCPv6 that there are no addresses for it. A gateway that is
// not link-local sends no advertisements, since hosts ignore them (RFC 4861, 6.1.2).
// DHCPv4's rapid commit (RFC 4039) is not answered: on a link with one server it saves
// the round trip to the node, and few clients were ever tried with it.
//
// A DHCPv4 answer gives one address: the first of the NIC. A guest that has another one
// of the NIC's IPv4 addresses keeps it. An IA_NA of DHCPv6 has up to 16 of the NIC's
// IPv6 addresses, the first of the NIC last, since some clients keep the last alone.
//
// # Lifetimes
//
// Leases last a week and are renewed every hour, by those clients that honor T1: a
// change reaches the guest within an hour, and a day without an agent costs nothing. T2 is
// two hours: some clients ask once at T1 and not again before T2, and a guest that has an
// address no more is not told the gateway's MAC, so only its broadcasts are heard. The
// lifetime of a default router ends after 65,535 s at most. The advertisement therefore
// also has a route to ::/0 without an end (RFC 4191), which Linux and others accept.
//
// # Advertisements are multicast
//
// A solicitation is answered to ff02::1, also when it came from an address. The link
// has one host, so a unicast answer would spare nobody; a solicitation from :: needs
// the multicast anyway; and all clients that were tried took the multicast.
package autoconf
