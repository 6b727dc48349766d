// Package core is a laboratory of network namespaces: the nodes, reflectors, core
// gateway, client and guests of a fabric, all on one machine, with the kernel's real
// links and routes between them.
//
// It needs a Linux kernel, and of programs what every system has: a shell, rm and
// umount. Namespaces, links, addresses and routes are made by netlink. It works as
// root and inside a user namespace ([UserNamespace]). Real daemons are put into it by
// testenv/lab/routers and testenv/lab/hypervisors.
//
//	lab, err := core.New(ctx, core.Options{})
//	defer lab.Close()
//	top, err := lab.Build(core.SmallCluster(2))
//	rtt, err := top.Client.Ping(ctx, core.Underlay4(21))
//
// Labs never collide: every name that can be seen outside of a lab carries its
// run id, and any number of labs can live side by side. Nothing outlives its
// owner: each lab has a keeper, a shell that waits for the owner's end and then
// removes what is left, and [New] removes what even the keeper could not. Importing
// the package does nothing.
//
// Helpers for tests are in testenv/labtest.
package core
