// Package libvirt is a [fabric.Source] that follows libvirt: which of the fabric's
// domains run here, and their changes. It talks to libvirtd, or virtqemud, over the
// unix socket; it needs no C library.
//
// libvirt's hooks tell the agent of starts and stops before they happen. The source
// tells it of the rest: the cutover of a migration, and all changes that happened
// while no agent ran.
//
// An event says only that there is news. The source then reads the domain's state,
// and reports what it read. It reports only the cutover before it reads the domain.
package libvirt
