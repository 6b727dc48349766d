// Package hypervisors has the hypervisors of a laboratory, each in a host of it
// with everything of its own: libvirt with QEMU guests and their migrations
// ([StartLibvirt]), and LXD with containers ([StartLXD]).
//
// Guests boot the machine's busybox and its distribution's kernel ([GuestImage],
// [ContainerImage]); a cache keeps their images ([cache.Variable]).
package hypervisors
