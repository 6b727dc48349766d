// Package vmfabric is the root of a module that gives every virtual machine
// of a KVM (libvirt) or LXD cluster a public address of its own, as a /32 or
// /128 host route on top of a plain private network between the nodes.
//
// Three floors, and no import runs upward:
//
//   - [github.com/vmfabric/vmfabric/fabric] is what the system is; fabric/kernel,
//     fabric/gobgp, fabric/disk, fabric/libvirt and fabric/clusterfile fit it to
//     the kernel, to BGP, to a directory, to libvirt and to its YAML file;
//   - hooks is how others call it, testenv how it is tried out;
//   - cmd/vmfabric is the program, examples are small ones.
package vmfabric
