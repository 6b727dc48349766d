// Package e2e tries the whole system: the real program and hook, real BIRD,
// FRR, libvirt and QEMU guests, in laboratories of testenv/lab. It has tests only.
package e2e
