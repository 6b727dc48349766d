// Package routingd is the fabric's [fabric.Speaker] for nodes where a routing
// daemon talks to the reflectors.
//
// What a node announces is in its kernel, see [kernel.Announcer]; the daemon
// takes it from there with the configuration that `vmfabric render` writes for
// the node. So a guest that comes or goes changes no file and reloads no daemon.
// The daemon is asked for its sessions only, by a [Client]. Packages
// fabric/bird and fabric/frr have one each.
package routingd
