package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/render"
)

func guestConfigCommand(t *tool) *cobra.Command {
	var format string
	var interfaces []string
	cmd := &cobra.Command{
		Use:   "guest-config VM",
		Short: "Print what a guest configures inside if it does not ask by DHCP",
		Long: `Guest-config prints the network configuration for the inside of a guest: its
addresses, and the gateway as default route on the link. A guest that asks by DHCP needs
none of it, unless it has several IPv4 addresses, or several NICs of one family, of which
DHCP can tell neither. The agent asks the guest's hypervisor (libvirt, LXD) what it has;
the guest need not run. The comment at the top says where the text goes.

  netplan, ifupdown, networkd   files of the guest
  cloud-init                    network-config version 2, for LXD and NoCloud`,
		Example: `  vmfabric guest-config web
  vmfabric guest-config web --format networkd --interface ens3
  vmfabric guest-config web --format cloud-init | lxc config set web user.network-config -`,
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: t.completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := render.ParseFormat(format)
			if err != nil {
				return usageError{fmt.Errorf("--format: %w", err)}
			}
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Describe, VM: fabric.VM{Name: args[0]}})
			if err != nil {
				return err
			}
			text, err := render.Guest(reply.Guest.VM, reply.Guest.Network, f, interfaces)
			if err != nil {
				return err
			}
			if done, err := t.print(cmd, map[string]any{
				"vm": reply.Guest.VM, "gateway": reply.Guest.Gateway, "format": f, "text": text,
			}); done {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVar(&format, "format", string(render.Netplan), "netplan, ifupdown, networkd or cloud-init")
	cmd.Flags().StringSliceVar(&interfaces, "interface", nil, "the names of the guest's links, NIC by NIC, where they are not found by MAC address")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"netplan", "ifupdown", "networkd", "cloud-init"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
