package hooks_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// A program that embeds an agent serves the hooks' socket, and a hook asks it.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	a, err := agent.New(agent.Config{
		Cluster: fabric.Cluster{
			Name: "office", ASN: 64512, Communities: []fabric.Community{{A: 64512, B: 100}},
			Gateway:    fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1")},
			Pools:      []fabric.Pool{{Name: "public4", Prefix: netip.MustParsePrefix("203.0.113.0/24")}},
			Reflectors: []fabric.RR{{Name: "rr1", Address: netip.MustParseAddr("10.10.0.11")}},
			Nodes:      []fabric.Node{{Name: "node1", Address: netip.MustParseAddr("10.10.0.21")}},
		},
		Node: "node1", Dataplane: fake.NewDataplane(nil), Speaker: fake.NewSpeaker(nil), Store: fake.NewStore(nil),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := a.Adopt(ctx); err != nil {
		fmt.Println(err)
		return
	}
	dir, err := os.MkdirTemp("", "vmfabric-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "agent.sock")
	l, err := hooks.Listen(context.Background(), socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	ended := make(chan error)
	go func() { ended <- hooks.Serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()

	web := fabric.VM{Name: "web", NICs: []fabric.NIC{{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10")}}}}
	reply, err := hooks.Call(ctx, socket, hooks.Request{Op: hooks.Live, VM: web})
	fmt.Println(reply.OK, err)

	stranger := fabric.VM{Name: "stranger", NICs: []fabric.NIC{{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}}
	_, err = hooks.Call(ctx, socket, hooks.Request{Op: hooks.Live, VM: stranger})
	fmt.Println(errors.Is(err, fabric.ErrRefused), err)

	stop()
	fmt.Println(<-ended)
	// Output:
	// true <nil>
	// true guest stranger refused: NIC 0: address 192.0.2.1: outside the pools of cluster office; choose one from public4 (203.0.113.0/24), or add a pool
	// <nil>
}
