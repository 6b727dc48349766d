package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

// group makes a command that has others below it, and alone prints its help.
func group(use, short, example string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(below...)
	return cmd
}

func poolCommand(t *tool) *cobra.Command {
	return group("pool", "Tell how much of the pools is used", "  vmfabric pool list", &cobra.Command{
		Use:     "list",
		Short:   "List the pools, and how much of each is used",
		Example: "  vmfabric pool list\n  vmfabric pool list --json | jq -r '.[] | select(.free < 10) | .pool'",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			known, err := t.addresses(cmd)
			if known == nil {
				return err
			}
			if done, printed := t.print(cmd, known.Pools); done {
				return errors.Join(err, printed)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "POOL\tPREFIX\tNODES\tSIZE\tALLOCATED\tRESERVED\tQUARANTINED\tFREE\tUSED")
			for _, p := range known.Pools {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\n", p.Pool, extent(p), cmp.Or(strings.Join(p.Nodes, ","), "all"),
					large(p.Size), p.Allocated, large(p.Reserved), p.Quarantined, large(p.Free), bar(p))
			}
			return errors.Join(err, w.Flush())
		},
	})
}

// extent words the addresses of a pool, and what a guest gets of them.
func extent(p fabric.PoolUsage) string {
	if p.PerGuest == 0 {
		return p.Extent
	}
	if p.NoAddress {
		return fmt.Sprintf("%s (a /%d each, without an address)", p.Extent, p.PerGuest)
	}
	return fmt.Sprintf("%s (a /%d each)", p.Extent, p.PerGuest)
}

// large words a number of addresses: one that nobody can read as a power of two.
func large(digits json.Number) string {
	n, good := new(big.Int).SetString(digits.String(), 10)
	switch {
	case !good:
		return "-"
	case n.BitLen() <= 24:
		return n.String()
	case n.TrailingZeroBits() == uint(n.BitLen()-1):
		return fmt.Sprintf("2^%d", n.BitLen()-1)
	}
	return fmt.Sprintf("<2^%d", n.BitLen())
}

// bar draws which part of a pool cannot be given now, rounded up: one address shows.
func bar(p fabric.PoolUsage) string {
	const width = 10
	size, good := new(big.Int).SetString(p.Size.String(), 10)
	free, known := new(big.Int).SetString(p.Free.String(), 10)
	if !good || !known || size.Sign() <= 0 {
		return ""
	}
	part := new(big.Int).Sub(size, free)
	part.Mul(part, big.NewInt(width)).Add(part, size).Sub(part, big.NewInt(1)).Div(part, size)
	n := int(min(max(part.Int64(), 0), width))
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "]"
}

func addressCommand(t *tool) *cobra.Command {
	return group("address", "Show, give, reserve and release addresses of the pools", "  vmfabric address list",
		addressListCommand(t), addressShowCommand(t), addressAllocateCommand(t), addressReserveCommand(t), addressReleaseCommand(t), addressMoveCommand(t))
}

func addressListCommand(t *tool) *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List who has which address, and those that are reserved or kept for a while",
		Example: "  vmfabric address list --pool public4\n  vmfabric address list --json | jq -r '.[] | select(.state == \"allocated\") | .vm'",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			known, err := t.addresses(cmd)
			if known == nil {
				return err
			}
			if pool != "" && !slices.ContainsFunc(known.Pools, func(p fabric.PoolUsage) bool { return p.Pool == pool }) {
				return fmt.Errorf("pool %q is not in the cluster; vmfabric pool list shows those that are", pool)
			}
			all := slices.DeleteFunc(known.Allocations, func(a fabric.Allocation) bool { return pool != "" && a.Pool != pool })
			return errors.Join(err, t.printAllocations(cmd, all))
		},
	}
	cmd.Flags().StringVar(&pool, "pool", "", "only those of this pool")
	return cmd
}

func addressShowCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:     "show ADDRESS|VM",
		Short:   "Show who has an address, or what a guest has and gave back",
		Example: "  vmfabric address show 203.0.113.10\n  vmfabric address show web",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			known, err := t.addresses(cmd)
			if known == nil {
				return err
			}
			found := matching(known.Allocations, args[0])
			if len(found) == 0 {
				return errors.Join(err, fmt.Errorf("%s: the registry has no such address and no such guest; vmfabric address list shows all", args[0]))
			}
			return errors.Join(err, t.printAllocations(cmd, found))
		},
	}
}

// matching gives the allocations of an address, or of a guest by its name, with what that
// one gave back.
func matching(all []fabric.Allocation, what string) []fabric.Allocation {
	p, err := parsePrefix(what)
	return slices.DeleteFunc(slices.Clone(all), func(a fabric.Allocation) bool {
		if err == nil {
			return !a.Prefix.Overlaps(p)
		}
		return a.VM != what
	})
}

// parsePrefix reads an address, or a prefix.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return fabric.HostPrefix(a), nil
	}
	return netip.ParsePrefix(s)
}

func addressAllocateCommand(t *tool) *cobra.Command {
	var pools, addresses []string
	cmd := &cobra.Command{
		Use:   "allocate VM [--pool P[,P]] [--address A[,A]]",
		Short: "Give a guest its addresses before it starts",
		Long: `Allocate gives a guest the addresses that it gets when it starts, so that they can
be written down before: the guest of a hypervisor of this node by what its description
asks for, or a guest that is attached by hand by --pool and --address. It may be repeated.`,
		Example: "  vmfabric address allocate sea_gold\n  vmfabric address allocate web --pool public4,public6",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm := fabric.VM{Name: args[0]}
			if len(pools)+len(addresses) > 0 {
				nic, err := parseNIC(addresses, nil, pools, string(fabric.Tap), "")
				if err != nil {
					return usageError{err}
				}
				vm.NICs = []fabric.NIC{nic}
			}
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Allocate, VM: vm})
			if err != nil {
				return err
			}
			return t.printAllocations(cmd, reply.Allocations)
		},
	}
	cmd.Flags().StringSliceVar(&pools, "pool", nil, "the pools to take an address from, or auto for the first of each family")
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "addresses that the guest is to have")
	return cmd
}

func addressReserveCommand(t *tool) *cobra.Command {
	var note string
	cmd := &cobra.Command{
		Use:     "reserve ADDRESS|PREFIX [--note TEXT]",
		Short:   "Keep an address for something else than a guest that asks a pool",
		Long:    "Reserve keeps an address, or a prefix of a pool: no guest that asks the pool gets it.\nA guest whose description names it may have it.",
		Example: "  vmfabric address reserve 203.0.113.9 --note 'load balancer'",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePrefix(args[0])
			if err != nil {
				return usageError{fmt.Errorf("%q is no address and no prefix; write 203.0.113.9 or 2001:db8:100:5::/64", args[0])}
			}
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Reserve, Prefix: p, Note: note})
			if err != nil {
				return err
			}
			return t.printAllocations(cmd, reply.Allocations)
		},
	}
	cmd.Flags().StringVar(&note, "note", "", "what it is for")
	return cmd
}

func addressReleaseCommand(t *tool) *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "release ADDRESS|VM [--now]",
		Short: "End an allocation, a reservation, or all that a guest has",
		Long: `Release ends what the registry knows of an address, or all that a guest has. It
refuses what a guest has that runs, and names the nodes that did not say so. An address that a guest had is given to no other one
that asks a pool before the pool's quarantine is over, unless with --now.`,
		Example: "  vmfabric address release 203.0.113.9\n  vmfabric address release web",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := hooks.Request{Op: hooks.Release, Now: now}
			if p, err := parsePrefix(args[0]); err == nil {
				req.Prefix = p
			} else if req.Guest, err = t.identity(cmd, args[0]); err != nil {
				return err
			}
			reply, err := t.call(cmd.Context(), req)
			if err != nil {
				return err
			}
			if len(reply.Nodes) > 0 && len(reply.Allocations) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "vmfabric: no answer from %s; see that guest %s does not run there\n", strings.Join(reply.Nodes, ", "), reply.Allocations[0].VM)
			}
			if done, err := t.print(cmd, orEmpty(reply.Allocations)); done {
				return err
			}
			for _, a := range reply.Allocations {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: released\n", addressText(a.Prefix))
			}
			if len(reply.Allocations) == 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing to release\n", args[0])
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "without a quarantine: another guest may get it at once")
	return cmd
}

func addressMoveCommand(t *tool) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "move ADDRESS --to GUEST",
		Short: "Give an address that one guest has to another guest",
		Long: `Move gives an address that one guest has to another one, in one change, without a
quarantine. Neither of the two may run: the other guest gets the address when it starts, by
name or from the pool that it asks, where it takes the place of one that it had from there.
It may be repeated.`,
		Example: "  vmfabric address move 203.0.113.10 --to web2\n  vmfabric address move 2001:db8:100::10 --to web2",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePrefix(args[0])
			if err != nil {
				return usageError{fmt.Errorf("%q is no address and no prefix; write 203.0.113.10 or 2001:db8:100::10", args[0])}
			}
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Reassign, Prefix: p, VM: fabric.VM{Name: to}})
			if err != nil {
				return err
			}
			return t.printAllocations(cmd, reply.Allocations)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the name of the guest that is to get it")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// identity gives the guest of a name that has addresses.
func (t *tool) identity(cmd *cobra.Command, vm string) (fabric.Identity, error) {
	known, err := t.addresses(cmd)
	if err != nil {
		return "", err
	}
	var guests []fabric.Identity
	for _, a := range matching(known.Allocations, vm) {
		if a.State == fabric.Allocated && !slices.Contains(guests, a.Guest) {
			guests = append(guests, a.Guest)
		}
	}
	switch len(guests) {
	case 0:
		return "", fmt.Errorf("%s: no address, and no guest that has one; vmfabric address list shows all", vm)
	case 1:
		return guests[0], nil
	}
	return "", fmt.Errorf("%s: %d guests of that name have addresses (%s, %s, ...); release them by address", vm, len(guests), guests[0], guests[1])
}

// addresses asks the agent what its registry knows. After an error it gives the part
// that is known; nil: nothing.
func (t *tool) addresses(cmd *cobra.Command) (*fabric.Addresses, error) {
	reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Addresses})
	if err != nil && (reply.Addresses == nil || len(reply.Addresses.Pools) == 0) {
		return nil, err
	}
	return reply.Addresses, err
}

// printAllocations prints allocations as a table, or as JSON.
func (t *tool) printAllocations(cmd *cobra.Command, all []fabric.Allocation) error {
	if done, err := t.print(cmd, orEmpty(all)); done {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tPOOL\tSTATE\tVM\tNIC\tNODE\tSINCE\tNOTE")
	for _, a := range all {
		nic, state := "-", string(a.State)
		if a.State == fabric.Allocated {
			nic = fmt.Sprint(a.NIC)
		}
		if a.State == fabric.Quarantined {
			state = fmt.Sprintf("quarantined for %v more", max(0, time.Until(a.Until)).Round(time.Second))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", addressText(a.Prefix), cmp.Or(a.Pool, "-"), state,
			cmp.Or(a.VM, "-"), nic, cmp.Or(a.Node, "-"), ago(a.Since), cmp.Or(a.Note, a.Flaw, "-"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, a := range all {
		if a.Waits != "" {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: guest %s is gone for good, and this is not given back yet: %s; or vmfabric address release %[1]s\n", addressText(a.Prefix), a.VM, a.Waits)
		}
	}
	return nil
}

// addressText writes the prefix of one address without its length.
func addressText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func orEmpty(all []fabric.Allocation) []fabric.Allocation {
	if all == nil {
		return []fabric.Allocation{}
	}
	return all
}
