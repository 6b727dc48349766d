// Package libvirt is a [fabric.Source] that follows libvirt: which domains of
// ours run here, and what happens to them. It talks to libvirtd, or virtqemud,
// over the unix socket; no C library is needed.
//
// libvirt's hooks tell the agent of starts and stops before they happen. What
// they do not tell is here: the cutover of a migration, and everything that
// happened while nobody listened.
//
// An event only says that there is news. The source then reads the domain's
// state, and what it reads is what it tells. The cutover alone is told first
// and read afterwards.
package libvirt
