package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

func attachCommand(t *tool) *cobra.Command {
	var addresses, routes, pools []string
	var kind, mac string
	var wired, dhcp, ra, metadata bool
	var rules firewallFlags
	cmd := &cobra.Command{
		Use:   "attach VM --address A[,A] | --pool P[,P]",
		Short: "Give a guest its port and announce its addresses",
		Long: `Attach does by hand what the hypervisor's hook does at a guest's start: it
makes the port VM_net0, routes the addresses to it and announces them. It may be
repeated, also to change a guest's addresses. With --pool the registry gives the guest an
address of each pool, which it keeps until it is detached. The node answers the guest's
DHCP and router solicitations with its addresses, unless --dhcp=false and --ra=false.
--ingress and --egress have the rules of the guest's firewall, --isolate keeps other guests
from it and it from them (docs/firewall.md).

  tap    a tap that a hypervisor such as QEMU opens (the default)
  veth   a veth pair; its other end, VM_peer0, is for a container or a namespace
  adopt  a link of that name that somebody else made and removes`,
		Example: `  vmfabric attach web --address 203.0.113.10,2001:db8:100::10
  vmfabric attach web --pool auto
  vmfabric attach pfsense --address 203.0.113.12 --dhcp=false --ra=false
  vmfabric attach db --address 203.0.113.13 --isolate --ingress "accept tcp 22 from 198.51.100.0/24; accept icmp; drop"
  vmfabric attach box --kind veth --address 203.0.113.11 --route 198.51.100.0/29`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			nic, err := parseNIC(addresses, routes, pools, kind, mac)
			if err == nil && len(addresses)+len(pools) == 0 {
				err = errors.New("a guest without an address; give it one with --address, or let a pool do so with --pool")
			}
			if err != nil {
				return usageError{err}
			}
			// A shell can pass names that a line of JSON cannot.
			if err := fabric.ValidateName(args[0]); err != nil {
				return fmt.Errorf("guest %s refused: %w", strings.ToValidUTF8(args[0], "\ufffd"), err)
			}
			vm := fabric.VM{Name: args[0], NICs: []fabric.NIC{nic}, NoDHCP: !dhcp, NoRA: !ra, NoMetadata: !metadata, Isolated: rules.isolate}
			if vm.Firewall, err = rules.firewall(); err != nil {
				return usageError{err}
			}
			req := hooks.Request{Op: hooks.Live, VM: vm}
			if wired {
				req.Op = hooks.Wire
			}
			if _, err := t.call(cmd.Context(), req); err != nil {
				return err
			}
			return t.printPorts(cmd, vm.Name)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&addresses, "address", nil, "the guest's addresses, IPv4 and IPv6, from the pools")
	f.StringSliceVar(&pools, "pool", nil, "pools to take an address from, or auto for the first of each family")
	f.StringSliceVar(&routes, "route", nil, "prefixes behind the guest, routed through its address")
	f.StringVar(&kind, "kind", string(fabric.Tap), "tap, veth or adopt")
	f.StringVar(&mac, "mac", "", "the guest's own MAC address, where it is known")
	f.BoolVar(&dhcp, "dhcp", true, "answer the guest's DHCP; --dhcp=false: do not")
	f.BoolVar(&ra, "ra", true, "answer its router solicitations; --ra=false: do not")
	f.BoolVar(&metadata, "metadata", true, "serve the guest metadata, if the cluster file says so; --metadata=false: do not")
	rules.add(cmd)
	f.BoolVar(&wired, "wired", false, "make the port, announce nothing")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"tap", "veth", "adopt"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// firewallFlags are the flags about what the guest sends and gets.
type firewallFlags struct {
	ingress, egress   string
	stateful, isolate bool
}

func (w *firewallFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.ingress, "ingress", "", `rules for packets to the guest, such as "accept tcp 22,443 from 198.51.100.0/24; accept icmp; drop"`)
	f.StringVar(&w.egress, "egress", "", `rules for packets from the guest, such as "drop tcp 25"`)
	f.BoolVar(&w.stateful, "stateful", false, "let answers by UDP and to pings pass the rules")
	f.BoolVar(&w.isolate, "isolate", false, "no packets between the guest and other guests")
}

// firewall gives the firewall of the flags; nil: none.
func (w *firewallFlags) firewall() (*fabric.Firewall, error) {
	if w.ingress == "" && w.egress == "" && !w.stateful {
		return nil, nil
	}
	in, err := fabric.ParseFilter(w.ingress, fabric.Ingress)
	if err != nil {
		return nil, fmt.Errorf("--ingress: %w", err)
	}
	out, err := fabric.ParseFilter(w.egress, fabric.Egress)
	if err != nil {
		return nil, fmt.Errorf("--egress: %w", err)
	}
	is := &fabric.Firewall{Ingress: in, Egress: out, Stateful: w.stateful}
	return is, is.Validate()
}

func parseNIC(addresses, routes, pools []string, kind, mac string) (fabric.NIC, error) {
	k, err := fabric.ParseKind(kind)
	if err != nil {
		return fabric.NIC{}, fmt.Errorf("--kind: %w", err)
	}
	nic := fabric.NIC{Kind: k, Pools: pools}
	if mac != "" {
		if nic.MAC, err = fabric.ParseMAC(mac); err != nil {
			return fabric.NIC{}, fmt.Errorf("--mac: %w", err)
		}
		if nic.MAC.IsZero() || nic.MAC.Multicast() {
			return fabric.NIC{}, fmt.Errorf("--mac: %q is not a unicast address; leave it out where the guest's own is not known", mac)
		}
	}
	for _, s := range addresses {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil {
			return fabric.NIC{}, fmt.Errorf("--address: %q is not an address; write 203.0.113.10 or 2001:db8:100::10, without a length", s)
		}
		nic.Addresses = append(nic.Addresses, a)
	}
	for _, s := range routes {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return fabric.NIC{}, fmt.Errorf("--route: %q is not a prefix; write 198.51.100.0/29", s)
		}
		nic.Routes = append(nic.Routes, p)
	}
	return nic, nil
}

func detachCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:   "detach VM",
		Short: "Withdraw a guest's addresses, then remove its port",
		Long: `Detach withdraws the guest's addresses, then removes its ports. A guest that is
not attached is no error; detach says that there was none. A guest that a hypervisor still runs is cut off, and
wanted again when the agent next looks at that hypervisor: stop it there instead.`,
		Example:           "  vmfabric detach web",
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: t.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := t.call(cmd.Context(), hooks.Request{Op: hooks.List})
			if err != nil {
				return err
			}
			found := slices.ContainsFunc(before.Ports, func(p fabric.PortEntry) bool { return p.VM == args[0] })
			if _, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Remove, VM: fabric.VM{Name: args[0]}}); err != nil {
				return err
			}
			if done, err := t.print(cmd, map[string]any{"vm": args[0], "state": fabric.Absent.String(), "found": found}); done {
				return err
			}
			if found {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: absent\n", args[0])
			} else {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: absent; there was no guest of that name on this node\n", args[0])
			}
			return nil
		},
	}
}

// completeVM lists the agent's guests for a shell's completion.
func (t *tool) completeVM(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.List})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range reply.Ports {
		names = append(names, p.VM)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
