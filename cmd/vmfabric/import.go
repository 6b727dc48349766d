package main

import (
	"cmp"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/plural"
)

func importCommand(t *tool) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "import [--yes]",
		Short: "Record the addresses of all guests of the cluster in the registry",
		Long: `Import asks every node which guests it has, and compares their addresses with the
registry. It prints what is to be recorded, and what is in conflict: two guests with one
address, or an address that is in no pool, reserved, at rest, or another guest's. It writes
nothing without --yes. No guest is touched, and none restarts. It may be repeated.

Exit 1 when something is in conflict, or a node did not tell its guests.`,
		Example: "  vmfabric import              # what would be recorded, and what is in conflict\n  vmfabric import --yes\n  vmfabric import --json | jq -r '.entries[] | select(.outcome == \"conflict\") | .text'",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Import, Write: yes})
			if err != nil {
				return err
			}
			is := *reply.Import
			done, err := t.print(cmd, is)
			if !done {
				err = printImport(cmd, is, yes)
			}
			conflict := slices.ContainsFunc(is.Entries, func(e fabric.ImportEntry) bool { return e.Outcome == fabric.Conflict })
			if err == nil && (conflict || len(is.Silent) > 0) {
				err = errDegraded
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "record it; without that, only say what would be")
	return cmd
}

func printImport(cmd *cobra.Command, is fabric.Import, written bool) error {
	out := cmd.OutOrStdout()
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	outcomes := map[fabric.ImportOutcome]int{}
	if len(is.Entries) > 0 {
		fmt.Fprintln(w, "NODE\tVM\tNIC\tADDRESS\tOUTCOME\tWHY")
	}
	for _, e := range is.Entries {
		outcomes[e.Outcome]++
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", e.Node, e.VM, e.NIC, addressText(e.Prefix), e.Outcome, cmp.Or(e.Text, "-"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range is.Silent {
		fmt.Fprintf(cmd.ErrOrStderr(), "vmfabric: %s\n", s)
	}
	what := fmt.Sprintf("%d to record", outcomes[fabric.ToRecord])
	if written {
		what = fmt.Sprintf("%d recorded now", outcomes[fabric.Recorded])
	}
	fmt.Fprintf(out, "%s: %s known, %s, %d in conflict, %d held back\n",
		plural.Of(is.Guests, "guest", "guests"), plural.Of(is.Known, "address", "addresses"), what, outcomes[fabric.Conflict], outcomes[fabric.HeldBack])
	if !written && outcomes[fabric.ToRecord] > 0 {
		fmt.Fprintln(out, "nothing was written; vmfabric import --yes records it")
	}
	return nil
}
