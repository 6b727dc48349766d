package agent_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// office is a cluster of one node.
func office() fabric.Cluster {
	return fabric.Cluster{
		Name: "office", ASN: 64512, Communities: []fabric.Community{{A: 64512, B: 100}},
		Gateway: fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1")},
		Pools: []fabric.Pool{
			{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24")},
			{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48")},
		},
		Reflectors: []fabric.RR{{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}},
		Nodes:      []fabric.Node{{Name: "node1", Address: netip.MustParseAddr("10.10.0.21"), Address6: netip.MustParseAddr("fd00:10:10::21")}},
	}
}

// An agent gives a guest its addresses. A program brings the backends: those here
// are in memory; fabric/kernel, fabric/gobgp and fabric/disk have the real ones.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	a, err := agent.New(agent.Config{
		Cluster: office(), Node: "node1",
		Dataplane: fake.NewDataplane(nil), Speaker: fake.NewSpeaker(nil), Store: fake.NewStore(nil),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := a.Adopt(ctx); err != nil { // what an earlier run left is taken over
		fmt.Println(err)
		return
	}
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }() // it repairs what breaks, until ctx ends

	web := fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: []netip.Addr{
		netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10"),
	}}}}
	fmt.Println(a.Apply(ctx, web, fabric.Live))
	ports, _ := a.List(ctx)
	for _, p := range ports {
		fmt.Println(p.VM, p.Port, p.State, p.Addresses)
	}

	thief := fabric.VM{Name: "thief", NICs: []fabric.NIC{{Addresses: web.NICs[0].Addresses[:1]}}}
	fmt.Println(a.Apply(ctx, thief, fabric.Live))

	stop()
	fmt.Println(<-ended)
	// Output:
	// <nil>
	// web web_net0 live [203.0.113.10 2001:db8:100::10]
	// guest thief refused: NIC 0: 203.0.113.10: held by VM "web" on this node; detach that first, or choose another
	// <nil>
}

// A source tells the agent which guests a hypervisor runs.
func ExampleWithSources() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	source := fake.NewSource("libvirt") // fabric/libvirt and fabric/lxd have the real ones
	db := fabric.VM{Name: "db", Origin: "libvirt", NICs: []fabric.NIC{{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.20")}}}}
	source.Set(db, fabric.Live)

	events := make(observer, 16)
	a, err := agent.New(agent.Config{
		Cluster: office(), Node: "node1",
		Dataplane: fake.NewDataplane(nil), Speaker: fake.NewSpeaker(nil), Store: fake.NewStore(nil),
	}, agent.WithSources(source), agent.WithObservers(events))
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := a.Adopt(ctx); err != nil {
		fmt.Println(err)
		return
	}
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	for e := range events {
		fmt.Println(e.Kind, e.VM)
		if e.Kind == fabric.Announced {
			break
		}
	}
	stop()
	fmt.Println(<-ended)
	// Output:
	// attach db
	// announce db
	// <nil>
}

// observer hands on what happens.
type observer chan fabric.Event

func (o observer) Observe(_ context.Context, e fabric.Event) error {
	o <- e
	return nil
}
