// Package frr is the fabric's [fabric.Speaker] for nodes where an FRR talks to
// the reflectors, see [routingd.Speaker].
//
// FRR takes from the kernel (redistribute kernel) what the node announces, with
// the configuration that `vmfabric render frr` writes. FRR is asked, by vtysh,
// for its sessions only.
package frr
