// Package fabric is the heart of vmfabric: it gives every guest of a cluster
// its own public address, as a /32 or /128 host route, over a plain private
// network between the nodes.
//
// The package holds the words of the field as plain values ([Cluster], [Pool],
// [RR], [Node], [VM], [NIC], [Port], [Route]), the [Agent] that keeps one
// node as it should be, and the four interfaces that the agent consumes:
// [Dataplane] (ports and host routes of the kernel), [Speaker] (BGP), [Store]
// (the wanted state, over restarts) and [Source] (a hypervisor). For guests that
// move there are two more, [Mover] and [Nodes]. Packages
// below this one fit those interfaces to real things: fabric/kernel,
// fabric/gobgp, fabric/disk, fabric/libvirt.
//
// It imports the standard library only, so that a program which brings its own
// speaker or dataplane compiles nothing else.
package fabric
