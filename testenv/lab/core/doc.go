// Package core is a laboratory of network namespaces: the nodes, reflectors, core
// gateway, client and guests of a fabric, all on one machine, with the kernel's
// real links and routes between them.
//
// It needs a Linux kernel, and programs that every system has: a shell, rm and
// umount. It makes namespaces, links, addresses and routes by netlink. It works as
// root and inside a user namespace ([UserNamespace]). Packages testenv/lab/routers
// and testenv/lab/hypervisors put real daemons into it.
//
//	lab, err := core.New(ctx, core.Options{})
//	defer lab.Close()
//	top, err := lab.Build(core.SmallCluster(2))
//	rtt, err := top.Client.Ping(ctx, core.Underlay4(21))
//
// Labs never collide: every name that is visible outside of a lab carries its run
// id, and any number of labs can live side by side. Nothing outlives its owner:
// each lab has a keeper, a shell that waits for the owner's end and then removes
// the lab, and [New] removes labs whose keeper was killed, too. Importing the
// package does nothing.
//
// Helpers for tests are in testenv/labtest.
package core
