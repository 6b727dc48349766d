// Command embed shows how little a program needs to give a guest an address
// through the fabric: it attaches one, waits for a signal, and detaches it.
// Run it as root on a node of the cluster, in the place of the agent.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net/netip"
	"os/signal"
	"syscall"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/kernel"
)

func main() {
	config := flag.String("config", "/etc/vmfabric/cluster.yaml", "the cluster file")
	name := flag.String("node", "node1", "which of its nodes this is")
	state := flag.String("state", "/var/lib/vmfabric", "where the wanted state is kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	cluster := must(clusterfile.Load(*config))
	node := must(cluster.Node(*name))
	ports := must(kernel.New(ctx, kernel.Config{Cluster: cluster.Name, Private: cluster.Private(), Guests: cluster.Guests, Pools: cluster.GuestPrefixes()}))
	defer ports.Close()
	speaker := must(gobgp.New(gobgp.Config{Cluster: cluster, Node: node}))
	store := must(disk.Open(*state))
	defer store.Close()
	a := must(agent.New(agent.Config{Cluster: cluster, Node: *name, Dataplane: ports, Speaker: speaker, Store: store}))

	// These outlive ctx, or they could do nothing more for web at the end.
	serving, endServing := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 2)
	go func() { ended <- ports.Run(serving) }()
	must(0, a.Adopt(ctx))                         // what an earlier run left is taken over
	go func() { ended <- speaker.Run(serving) }() // only now: the reflectors hear the whole truth at once

	web := fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: []netip.Addr{
		netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10"),
	}}}}
	must(0, a.Apply(ctx, web, fabric.Live))
	log.Println("web is live on web_net0")
	must(0, a.Run(ctx)) // repairs what breaks, until a signal comes

	must(0, a.Apply(serving, web, fabric.Absent))
	log.Println("web is gone")
	endServing()
	must(0, errors.Join(<-ended, <-ended))
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
