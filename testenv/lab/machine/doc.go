// Package machine boots whole machines into a lab of testenv/lab/core: a [Machine] is a
// Debian with systemd and libvirt, made from the distribution's packages ([Debian]), that
// QEMU emulates on the underlay of the lab. Nothing but QEMU is needed, and everything
// takes ten times as long as on hardware. Commands are run in it by the guest agent of
// QEMU, not over the network that is tried.
package machine
