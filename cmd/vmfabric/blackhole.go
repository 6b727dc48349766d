package main

import (
	"errors"
	"fmt"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

func blackholeCommand(t *tool) *cobra.Command {
	var last time.Duration
	var lift bool
	cmd := &cobra.Command{
		Use:   "blackhole ADDRESS (--for TIME | --lift)",
		Short: "Discard packets to a guest's address for a time (RFC 7999)",
		Long: `When a guest is attacked, the packets to it may fill the lines of others.
Blackhole has the address announced with the community BLACKHOLE (65535:666,
RFC 7999), so that core gateways as "vmfabric render" makes them discard packets
to it, and the node itself forwards none to it either. What the guest sends goes
on. Ask the agent of the node that has the guest; only an address of a guest's own
can be discarded.

It ends by itself, after a restart of the agent too, and also while none runs on
the node. It is the node's: a guest that moves is reached where it goes. Until
then --for sets the time anew, and --lift ends it.`,
		Example: `  vmfabric blackhole 203.0.113.10 --for 10m
  vmfabric blackhole 2001:db8:100::10 --lift
  vmfabric blackhole list`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			switch {
			case err != nil:
				return usageError{fmt.Errorf("%q is not an address; write 203.0.113.10 or 2001:db8:100::10", args[0])}
			case lift == (last != 0):
				return usageError{errors.New("give --for with a time such as 10m, or --lift")}
			case lift:
				_, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Lift, Prefix: fabric.HostPrefix(a)})
				return err
			}
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Blackhole, Prefix: fabric.HostPrefix(a), For: last})
			if err != nil {
				return err
			}
			return t.printBlackholes(cmd, reply.Blackholes)
		},
	}
	cmd.Flags().DurationVar(&last, "for", 0, "how long, such as 10m; 168h at most")
	cmd.Flags().BoolVar(&lift, "lift", false, "end it now")
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "List the addresses of this node to which packets are discarded", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Blackholes})
			if err != nil {
				return err
			}
			return t.printBlackholes(cmd, reply.Blackholes)
		},
	})
	return cmd
}

func (t *tool) printBlackholes(cmd *cobra.Command, all []fabric.Blackhole) error {
	if all == nil {
		all = []fabric.Blackhole{}
	}
	if done, err := t.print(cmd, all); done {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tVM\tSINCE\tUNTIL")
	for _, b := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", b.Prefix.Addr(), b.VM, b.Since.Local().Format(time.DateTime), b.Until.Local().Format(time.DateTime))
	}
	return w.Flush()
}
