// Package kernel is the fabric's [fabric.Dataplane] on Linux: ports, gateway
// addresses, host routes, per-port sysctls and source checks, by rtnetlink(7).
//
// What it makes it marks in the kernel itself: a link by its alias
// (vmfabric:<cluster>:<vm>:<n>) and interface group, a route by its protocol
// number, its packet filter by a table of its own. So a restarted program
// finds what is its own, and never touches what is not.
//
// A guest that moves has its routes in tables of our own for a while: those to a
// port that is incoming, and those to the node where it went ([fabric.Mover]).
//
// A [FIB] is beside it: routes to the guests of other nodes, as they are learned;
// and an [Announcer], for a routing daemon that reads the kernel. All follow the
// kernel by a [Netlink], which they can share.
//
// It acts in the network namespace in which [New] is called; the whole
// process must be in it, since sysctls and taps follow the thread. It needs
// CAP_NET_ADMIN there, and CAP_NET_RAW for guests that move. Linux 4.18
// suffices; what newer kernels add is used where it works.
package kernel
