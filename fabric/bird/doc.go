// Package bird is the fabric's [fabric.Speaker] for nodes where a BIRD 2 talks
// to the reflectors.
//
// What a node announces is in its kernel, see [kernel.Announcer]; BIRD learns
// it from there (protocol kernel with learn) with the configuration that
// `vmfabric render bird` writes for the node. So a guest that comes or goes
// changes no file and reloads no daemon. BIRD is asked, over its control
// socket, for its sessions only.
package bird
