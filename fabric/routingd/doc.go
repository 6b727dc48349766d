// Package routingd implements [fabric.Speaker] for nodes whose routing daemon talks
// to the reflectors.
//
// The routes that a node announces are in its kernel, see [kernel.Announcer]. The
// daemon takes them from there, with the configuration that `vmfabric render`
// writes for the node. So a new or leaving guest changes no file and reloads no
// daemon. The speaker asks the daemon only for its sessions, through a [Client].
// Packages fabric/bird and fabric/frr have one each.
package routingd
