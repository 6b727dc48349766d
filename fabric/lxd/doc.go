// Package lxd is a [fabric.Source] that follows LXD: which instances of ours
// run here, and what happens to them. It talks to the daemon's REST API over
// the unix socket, and asks for nothing that LXD 4.0 does not have; no module of
// LXD's is needed.
//
// An instance is ours when its configuration, or that of its profiles, says
// what its NICs receive:
//
//	user.vmfabric.net0.addresses = 203.0.113.10,2001:db8:100::10
//	user.vmfabric.net0.routes    = 198.51.100.0/29
//
// and one of its NIC devices is plugged into the port: nictype=p2p with
// host_name=<vm>_net0, where LXD makes the link and the fabric takes it over,
// or nictype=physical with parent=<vm>_peer0, where the fabric makes both ends
// before the start ([fabric.PortName], [fabric.PeerName]).
//
// An event only says that there is news. LXD tells it up to seconds late, and
// some of it is spurious: an instance that is stopped is told to be paused
// first. So the source then reads the instance, and what it reads is what it
// tells.
package lxd
