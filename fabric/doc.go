// Package fabric has the words of vmfabric, which gives every guest of a cluster
// its own public address, as a /32 or /128 host route, over a plain private
// network between the nodes.
//
// The words are plain values ([Cluster], [Pool], [RR], [Node], [VM], [NIC],
// [Port], [Route]) and the contracts between the agent of a node, which package
// [github.com/vmfabric/vmfabric/fabric/agent] makes, and what it works with:
// [Dataplane] (ports and host routes of the kernel), [Speaker] (BGP), [Store]
// (the wanted state, over restarts) and [Source] (a hypervisor). For guests that
// move there are two more, [Mover] and [Nodes]. Packages below this one fit these
// interfaces to real things: fabric/kernel, fabric/gobgp, fabric/disk,
// fabric/libvirt.
//
// It imports the standard library only, so that a program which brings its own
// speaker or dataplane compiles nothing else.
package fabric
