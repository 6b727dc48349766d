// Package hypervisors has the hypervisors of a laboratory, each in a host of it with
// everything of its own: libvirt with QEMU guests and their migrations
// ([StartLibvirt]), and LXD with containers ([StartLXD]).
//
// What guests boot is made of the machine's busybox and its distribution's kernel
// ([GuestImage], [ContainerImage]), and kept in a cache ([CacheVariable]).
package hypervisors
