// Package kernel is the fabric's [fabric.Dataplane] on Linux: ports, gateway
// addresses, host routes, per-port sysctls and source checks, by rtnetlink(7).
//
// The dataplane marks its objects in the kernel itself: a link by its alias
// (vmfabric:<cluster>:<vm>:<n>) and interface group, a route by its protocol
// number, the packet filter by a table of its own. So a restarted agent finds its
// own objects, and never touches those of others.
//
// While a guest moves, its routes are in two tables of the fabric's own: one has
// the routes to incoming ports, the other those to the node where the guest went
// ([fabric.Dataplane.Divert]).
//
// Beside the dataplane, a [FIB] keeps the learned routes to the guests of other
// nodes, and an [Announcer] announces by a routing daemon that reads the kernel.
// All three follow the kernel by a [Netlink], which they can share. Each has a Run that
// does what goes on by itself: to make one starts nothing.
//
// The dataplane acts in the network namespace in which [New] is called. The whole
// process must be in it, since sysctls and taps follow the thread. It needs
// CAP_NET_ADMIN there, and CAP_NET_RAW for guests that move. Linux 4.18 suffices;
// the package uses features of newer kernels where they work.
package kernel
