// Package fabric defines the values and interfaces of vmfabric. vmfabric gives
// every guest of a cluster its own public address, as a /32 or /128 host route,
// over a plain private network between the nodes.
//
// The values are [Cluster], [Pool], [RR], [Node], [VM], [NIC], [Port] and
// [Route]. The interfaces are the contracts between the agent of a node (package
// [github.com/vmfabric/vmfabric/fabric/agent]) and its backends: [Dataplane]
// (ports and host routes of the kernel), [Speaker] (BGP), [Store] (the wanted
// state, over restarts), [Source] (a hypervisor), [Nodes] (the agents of the other
// nodes) and [Registry] (addresses from the pools). A [Resolver] and an
// [Observer] are optional. Packages below this one implement the interfaces:
// fabric/kernel; fabric/gobgp, fabric/bird and fabric/frr; fabric/disk and fabric/etcd;
// fabric/libvirt and fabric/lxd; fabric/nodes.
//
// The package imports nothing but the standard library and this module, so that a
// program with its own speaker or dataplane compiles no other module.
package fabric
