// Package frr is the fabric's [fabric.Speaker] for nodes where an FRR talks to
// the reflectors.
//
// What a node announces is in its kernel, see [kernel.Announcer]; FRR takes it
// from there (redistribute kernel) with the configuration that `vmfabric render
// frr` writes for the node. So a guest that comes or goes changes no
// configuration. FRR is asked, by vtysh, for its sessions only.
package frr
