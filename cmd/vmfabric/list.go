package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

func listCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the ports of this node",
		Example: "  vmfabric list\n  vmfabric list --json | jq -r '.[] | select(.state != \"live\") | .vm'",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.printPorts(cmd, "") },
	}
}

// printPorts prints all ports, or those of one guest.
func (t *tool) printPorts(cmd *cobra.Command, vm string) error {
	reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.List})
	if err != nil {
		return err
	}
	ports := reply.Ports
	if vm != "" {
		ports = slices.DeleteFunc(ports, func(p fabric.PortEntry) bool { return p.VM != vm })
	}
	if ports == nil {
		ports = []fabric.PortEntry{}
	}
	if done, err := t.print(cmd, ports); done {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tPORT\tKIND\tSTATE\tADDRESSES\tROUTES\tSINCE")
	for _, p := range ports {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.VM, p.Port, p.Kind, p.State,
			join(p.Addresses), cmp.Or(join(p.Routes), "-"), ago(p.Since))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range ports {
		if p.Trouble != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", p.VM, p.Trouble)
		}
	}
	return nil
}

func statusCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell the health of this node; exit 1 when it is degraded",
		Example: `  vmfabric status
  vmfabric status --json | jq -r '.problems[]'`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Status})
			if reply.Status == nil {
				return err
			}
			st := *reply.Status
			done, err := t.print(cmd, st)
			if !done {
				printStatus(cmd, st)
			}
			if err == nil && !st.Healthy {
				err = errDegraded
			}
			return err
		},
	}
}

func printStatus(cmd *cobra.Command, st fabric.Status) {
	out := cmd.OutOrStdout()
	health := "healthy"
	if !st.Healthy {
		health = "degraded"
	}
	if st.Role == "" {
		fmt.Fprintf(out, "%s of cluster %s is %s; agent up %s, %s, %d live\n", st.Node, st.Cluster, health, ago(st.Since), count(st.Ports, "port"), st.Live)
	} else {
		fmt.Fprintf(out, "%s %s of cluster %s is %s; up %s\n", st.Role, st.Node, st.Cluster, health, ago(st.Since))
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, s := range st.Sessions {
		fmt.Fprintf(w, "  %s %s\t%s\t%s\t%s\t%d advertised", cmp.Or(s.Role, "reflector"), s.Peer, s.Address, s.State, ago(s.Since), s.Advertised)
		if s.Role != "" {
			fmt.Fprintf(w, "\t%d received\t%d accepted", s.Received, s.Accepted)
		}
		if s.Notification != nil {
			fmt.Fprintf(w, "\t%s", lastNotification(*s.Notification))
		}
		fmt.Fprintln(w)
	}
	for _, s := range st.Sources {
		state := "waiting for it"
		if s.Connected {
			state = "connected"
		}
		last := "no event yet"
		if !s.LastEvent.IsZero() {
			last = "last event " + ago(s.LastEvent) + " ago"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", s.Name, state, count(s.Guests, "guest"), last)
	}
	w.Flush()
	for _, d := range st.Diversions {
		fmt.Fprintf(out, "  %s\n", diversionText(d))
	}
	for _, p := range st.Problems {
		fmt.Fprintf(out, "  ! %s\n", p)
	}
}

// diversionText says where a guest's packets go, or went.
func diversionText(d fabric.DiversionStatus) string {
	text := fmt.Sprintf("packets for %s (%s)", cmp.Or(d.VM, "a guest that left"), join(d.Prefixes))
	to := cmp.Or(d.Node, "another node")
	switch {
	case !d.Ended.IsZero():
		return fmt.Sprintf("%s went to %s for %v, until %s ago: %s", text, to, d.Ended.Sub(d.Since).Round(time.Millisecond), ago(d.Ended), d.Outcome)
	case !d.Confirmed && d.Node != "":
		return fmt.Sprintf("%s go to %s since %s, on its word alone, which ends by itself", text, to, ago(d.Since))
	}
	return fmt.Sprintf("%s go to %s since %s", text, to, ago(d.Since))
}

// whyCommand follows one address from its pool to the reflectors.
func whyCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:   "why ADDRESS",
		Short: "Follow one address step by step and name the first that is missing",
		Example: `  vmfabric why 203.0.113.10
  vmfabric why 2001:db8:100::10 --json`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			if err != nil {
				return usageError{fmt.Errorf("%q is not an address; write 203.0.113.10 or 2001:db8:100::10", args[0])}
			}
			list, err := t.call(cmd.Context(), hooks.Request{Op: hooks.List})
			if err != nil {
				return err
			}
			status, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Status})
			if status.Status == nil {
				return err
			}
			steps := elsewhere(a, explain(a, list.Ports, *status.Status))
			if steps[0].Step == "guest" && steps[0].Good {
				reply, ferr := t.call(cmd.Context(), hooks.Request{Op: hooks.Forwarding})
				withdrawn, faults := withdrawnFor(a, reply.Forwarding)
				p, ok := prefixOf(a, list.Ports)
				switch last := &steps[len(steps)-1]; {
				case !ok || !last.Good:
				case withdrawn != "": // no reflector has it, on purpose: the reason says everything
					*last = step{"announcement", false, withdrawn}
				default:
					sent, err := t.sent(cmd.Context(), p)
					if err != nil {
						return err
					}
					steps = append(steps, announcedTo(p, status.Status.Sessions, sent)...)
				}
				steps = append(steps, forwardingStep(a, faults, ferr))
			}
			bad := slices.ContainsFunc(steps, func(s step) bool { return !s.Good })
			done, err := t.print(cmd, steps)
			if !done {
				for _, s := range steps {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", map[bool]string{true: "ok     ", false: "MISSING"}[s.Good], s.Step, s.Text)
				}
			}
			if err == nil && bad {
				err = errDegraded
			}
			return err
		},
	}
}

// step is a step on the way of an address from its guest to the reflectors.
type step struct {
	Step string `json:"step"`
	Good bool   `json:"good"`
	Text string `json:"text"`
}

// explain lists the steps up to the first one that is missing, or to the
// announcement of a live guest.
func explain(a netip.Addr, ports []fabric.PortEntry, st fabric.Status) []step {
	i := slices.IndexFunc(ports, func(p fabric.PortEntry) bool {
		return slices.Contains(p.Addresses, a) || slices.ContainsFunc(p.Routes, func(r netip.Prefix) bool { return r.Contains(a) })
	})
	if i < 0 {
		return []step{{"guest", false, fmt.Sprintf("no guest on %s has %s; start it here, or ask the node where it runs", st.Node, a)}}
	}
	p := ports[i]
	steps := []step{{"guest", true, fmt.Sprintf("%s on %s", p.VM, st.Node)}}
	if p.Trouble != "" {
		return append(steps, step{"port", false, p.Trouble})
	}
	text := fmt.Sprintf("%s (%s), up and routed", p.Port, p.Kind)
	if p.Kind == fabric.Adopt && p.State != fabric.Live {
		text = fmt.Sprintf("%s, taken over when its owner has made it", p.Port)
	}
	steps = append(steps, step{"port", true, text})
	if p.State != fabric.Live {
		return append(steps, step{"announcement", false, "not announced: the guest does not run yet, or nobody holds the other end of its port"})
	}
	text = "live since " + p.Since.Format(time.DateTime)
	if st.Draining {
		text += fmt.Sprintf("; this node is draining since %s, and another one that announces it too comes first", st.DrainingSince.Format(time.DateTime))
	}
	return append(steps, step{"announcement", true, text})
}

// count words a number of things: 1 port, 2 ports.
func count[N int | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func join[T fmt.Stringer](vs []T) string {
	ss := make([]string, len(vs))
	for i, v := range vs {
		ss[i] = v.String()
	}
	return strings.Join(ss, ",")
}

// ago words the time since t.
func ago(t time.Time) string {
	d := time.Since(t)
	switch {
	case t.IsZero():
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
