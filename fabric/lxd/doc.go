// Package lxd is a [fabric.Source] that follows LXD: which of the fabric's
// instances run here, and their changes. It talks to the daemon's REST API over the
// unix socket, and needs nothing that LXD 4.0 does not have, and no module of
// LXD's. Incus has the same API, and what differs is a value: [Incus]. What is said here of
// LXD holds for it, too.
//
// An instance is of the fabric if its configuration, or that of its profiles, has
// the addresses of its NICs:
//
//	user.vmfabric.net0.addresses = 203.0.113.10,2001:db8:100::10
//	user.vmfabric.net0.routes    = 198.51.100.0/29
//
// In place of an address, pool:public4 asks for one of that pool, and auto for one of
// each family ([fabric.NIC]).
//
// Each of those NICs has a device that is plugged into its port: nictype=p2p with
// host_name=<vm>_net0, where LXD makes the link and the fabric adopts it, or
// nictype=physical with parent=<vm>_peer0, where the fabric makes both ends before
// the start ([fabric.PortName], [fabric.PeerName]).
//
// An event says only that there is news. LXD sends it up to seconds late, and some
// are spurious: LXD reports that an instance is paused before it stops it. So the
// source then reads the instance, and reports what it read.
//
// An instance that was deleted is gone for good, unless it moved: LXD deletes it at the
// source of a move, too. The source knows a move within LXD because LXD has the UUID
// elsewhere, and one to another server by the operation that sends the instance there.
// Incus deletes nothing when an instance moves within a cluster.
package lxd
