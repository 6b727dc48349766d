// Command baseline serves a live migration by hooks alone. The benchmark compares
// vmfabric with it. It is a hook for libvirt,
//
//	baseline DOMAIN OPERATION SUB-OPERATION - < domain.xml
//
// and an agent, vmfabric's own, that follows no hypervisor, does not see when a
// guest's process ends, and does not talk to other nodes:
//
//	baseline --serve CLUSTERFILE NODE STATE SOCKET
//
// The hook has the agent wire a guest at prepare, announce it at started, withdraw
// it at stopped, and remove it at release. If the guest's name begins with "late",
// the hook does only the first; the benchmark asks for the rest when the migration
// is over.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
	"github.com/vmfabric/vmfabric/hooks"
)

var operations = map[string]hooks.Op{
	"prepare": hooks.Wire, "started": hooks.Live, "stopped": hooks.Withdraw, "release": hooks.Remove,
}

func main() {
	var err error
	switch {
	case len(os.Args) == 6 && os.Args[1] == "--serve":
		err = serve(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	case len(os.Args) > 2:
		err = run(os.Args[1], os.Args[2])
	default:
		err = errors.New("to be run by libvirt, or with --serve CLUSTERFILE NODE STATE SOCKET")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "baseline: %v\n", err)
		os.Exit(1)
	}
}

func run(domain, operation string) error {
	op, ok := operations[operation]
	if !ok || op != hooks.Wire && strings.HasPrefix(domain, "late") {
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	d, err := domxml.Parse(os.Stdin)
	if err != nil {
		return err
	}
	vm := d.VM()
	vm.Origin, vm.UUID = "", ""
	if op == hooks.Withdraw || op == hooks.Remove {
		vm = fabric.VM{Name: domain}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err = hooks.Client{Wait: 4 * time.Second}.Call(ctx, hooks.Request{Op: op, VM: vm})
	return err
}
