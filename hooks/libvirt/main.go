// Command libvirt is the hook that libvirt's QEMU driver runs at each step of a
// domain's life: /etc/libvirt/hooks/qemu.d/vmfabric, or /etc/libvirt/hooks/qemu for
// a libvirt before 6.5. It tells the agent of this node, and its exit status tells
// libvirt whether to go on.
//
// libvirt runs it as "vmfabric DOMAIN OPERATION SUB-OPERATION -" with the domain's
// XML on its standard input (https://libvirt.org/hooks.html). It never prints to
// its standard output, which would replace the XML of a migrating domain, and never
// calls libvirt, which waits for it.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
	"github.com/vmfabric/vmfabric/hooks"
	versions "github.com/vmfabric/vmfabric/internal/version"
)

var version = "devel" // set by the linker

// operation is the fabric's part in an operation of libvirt's.
type operation struct {
	op   hooks.Op
	up   bool // the agent needs the NICs and their interfaces; the other way it needs only the name
	veto bool // if it fails, libvirt must abort the operation
	patience
}

// patience is how long the hook keeps libvirt waiting.
type patience struct {
	absent time.Duration // for an agent that restarts
	silent time.Duration // for its answer
}

var (
	starting = patience{4 * time.Second, 20 * time.Second}
	running  = patience{time.Second, 5 * time.Second}
)

// operations lists the operations in which the fabric has a part. There is no veto
// once the guest runs: at started and reconnect libvirt kills it over a status
// other than 0. At stopped and release libvirt ignores the status.
var operations = map[string]operation{
	"prepare":   {op: hooks.Wire, up: true, veto: true, patience: starting},
	"start":     {op: hooks.Wire, up: true, veto: true, patience: starting},
	"started":   {op: hooks.Started, up: true, patience: running},
	"reconnect": {op: hooks.Started, up: true, patience: running}, // the guest may still be arriving
	"stopped":   {op: hooks.Withdraw, patience: running},
	"release":   {op: hooks.Remove, patience: running},
	"migrate":   {op: hooks.Expect, patience: running},
}

func main() {
	// A write to a standard error that nobody reads would end the hook by SIGPIPE,
	// which is as bad as a status other than 0.
	signal.Ignore(syscall.SIGPIPE)
	if versions.Asked(os.Args) {
		fmt.Println(versions.Line("vmfabric-hook-libvirt", version))
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintf(os.Stderr, "vmfabric's hook for libvirt, version %s\nusage: %s DOMAIN OPERATION SUB-OPERATION - < domain.xml\n",
			version, os.Args[0])
		os.Exit(2)
	}
	o := operations[os.Args[2]]
	err := o.do(context.Background(), os.Args[1], os.Getenv("VMFABRIC_SOCKET"), os.Stdin)
	// libvirt writes all of the XML, so read all of it.
	io.Copy(io.Discard, os.Stdin)
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmfabric: %v\n", err)
		if o.veto {
			os.Exit(1)
		}
	}
}

// do tells the agent, if the domain is of the fabric. A panic is an error like any
// other: only the operation decides whether it costs the guest its start.
func (o operation) do(ctx context.Context, domain, socket string, stdin io.Reader) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("domain %s: fault in the hook: %q; please report it", domain, fmt.Sprint(fault))
		}
	}()
	if o.op == "" {
		return nil
	}
	xml, err := io.ReadAll(io.LimitReader(stdin, domxml.MaxBytes+1))
	if err != nil {
		return fmt.Errorf("domain %s: read its XML: %w", domain, err)
	}
	ours := domxml.MayBeOurs(xml)
	if !ours && len(xml) > domxml.MaxBytes {
		// The fabric's element may come after the part that was read.
		if ours, err = domxml.Mentioned(xml, stdin); err != nil {
			return fmt.Errorf("domain %s: read its XML: %w", domain, err)
		}
	}
	if !ours {
		return nil
	}
	d, err := domxml.Parse(bytes.NewReader(xml))
	if err == nil && !d.Ours {
		return nil
	}
	vm := fabric.VM{Name: domain, UUID: d.UUID, Origin: domxml.Origin}
	if o.up {
		if err == nil {
			err = d.Plugged()
		}
		if err == nil && o.veto {
			err = d.Renamed()
		}
		if err != nil {
			return err
		}
		vm = d.VM()
	}
	ctx, cancel := context.WithTimeout(ctx, o.silent)
	defer cancel()
	_, err = hooks.Client{Socket: socket, Wait: o.absent}.Call(ctx, hooks.Request{Op: o.op, VM: vm})
	return err
}
