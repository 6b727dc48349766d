// Package bird is the fabric's [fabric.Speaker] for nodes where a BIRD 2 talks
// to the reflectors, see [routingd.Speaker].
//
// BIRD learns from the kernel (protocol kernel with learn) what the node
// announces, with the configuration that `vmfabric render bird` writes. BIRD is
// asked, over its control socket, for its sessions only.
package bird
