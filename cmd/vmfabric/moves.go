package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/plural"
)

func movesCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:   "moves [VM]",
		Short: "Tell how guests moved from and to this node, step by step",
		Long: `Moves prints a report of each move that this node took part in, the newest
first: when the guest stopped at its source, when its packets were sent on and
which were sent again, when it ran at its destination and was announced there,
and when everybody had let go. The destination's report has the source's part
too, once the move is over; the clocks are those of the nodes.

To see what a move does to the guest's users, run vmfabric probe beside it.`,
		Example: `  vmfabric moves
  vmfabric moves web --json | jq '.[0]'`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := hooks.Request{Op: hooks.Moves}
			if len(args) > 0 {
				req.VM.Name = args[0]
			}
			reply, err := t.call(cmd.Context(), req)
			if err != nil {
				return err
			}
			moves := reply.Moves
			if moves == nil {
				moves = []fabric.Move{}
			}
			if done, err := t.print(cmd, moves); done {
				return err
			}
			if len(moves) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no move from or to this node is known")
			}
			for _, m := range moves {
				if err := printMove(cmd.OutOrStdout(), m); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// moment is a line of a move's report.
type moment struct {
	at   time.Time
	text string
}

func printMove(out io.Writer, m fabric.Move) error {
	moments := momentsOf(m)
	began := "-"
	if len(moments) > 0 {
		began = moments[0].at.Format(time.DateTime)
	}
	fmt.Fprintf(out, "%s  %s -> %s  %s  %s\n", m.VM, cmp.Or(m.From, "?"), cmp.Or(m.To, "?"), began, m.Outcome)
	zero := cmp.Or(m.Stopped, m.Running)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, e := range moments {
		offset := e.at.Format("15:04:05.000")
		if !zero.IsZero() {
			offset = fmt.Sprintf("%+.1f ms", float64(e.at.Sub(zero).Microseconds())/1000)
		}
		fmt.Fprintf(w, "  %s\t  %s\n", offset, e.text)
	}
	return w.Flush()
}

// momentsOf lists the events of a move, in order.
func momentsOf(m fabric.Move) []moment {
	all := []moment{
		{m.Expected, "the destination's hook announced it"},
		{m.PortReady, "port ready at the destination"},
		{m.Learned, "the source knows the destination"},
		{m.Stopped, "guest stopped at the source"},
		{m.Diverted, "packets go from the source to the destination"},
		{m.ResentAt, plural.Of(m.Resent, "frame", "frames") + " sent again"},
		{m.Running, fmt.Sprintf("guest runs at the destination (told by %s)", cmp.Or(m.RunningBy, "?"))},
		{m.Announced, "announced by the destination"},
		{m.Withdrawn, "withdrawn by the source"},
		{m.Normal, "everybody has let go, preference normal"},
	}
	for reflector, at := range m.Seen {
		all = append(all, moment{at, "seen back from reflector " + reflector})
	}
	all = slices.DeleteFunc(all, func(e moment) bool { return e.at.IsZero() })
	slices.SortStableFunc(all, func(a, b moment) int { return a.at.Compare(b.at) })
	return all
}
