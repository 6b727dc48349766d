// Package testenv is a laboratory of network namespaces: the nodes,
// reflectors, core gateway, client and guests of a fabric, all on one machine,
// with the kernel's real links and routes between them.
//
// The lab itself needs a Linux kernel and nothing else: namespaces, links,
// addresses and routes are made by netlink. It works as root and inside a user
// namespace ([UserNamespace]). Real daemons are put into it where they are
// installed: BIRD ([Host.StartBird]), FRR ([Host.StartFRR]), libvirt with QEMU
// guests ([Host.StartLibvirt]).
//
//	lab, err := testenv.New(ctx, testenv.Options{})
//	defer lab.Close()
//	top, err := lab.Build(testenv.SmallCluster(2))
//	rtt, err := top.Client.Ping(ctx, testenv.Underlay4(21))
//
// Labs never collide: every name that can be seen outside of a lab carries its
// run id, and any number of labs can live side by side. Nothing outlives its
// owner: each lab has a keeper, a shell that waits for the owner's end and then
// removes what is left, and [New] removes what even the keeper could not.
//
// Helpers for tests are in testenv/labtest.
package testenv
