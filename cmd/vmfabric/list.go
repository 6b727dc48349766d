package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/plural"
)

func listCommand(t *tool) *cobra.Command {
	var cluster, counters bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the ports of this node, or of the cluster",
		Long: `List lists the ports of this node, and when the guest of each last asked for its
configuration by DHCP or router solicitation, since the agent started. With --cluster the
agent asks those of all other nodes; a node that does not tell its ports is named, and the
exit code is 1. With --counters it lists the packets of each port that the node dropped, by
reason, and when the last one was.`,
		Example: "  vmfabric list\n  vmfabric list --counters\n  vmfabric list --json | jq -r '.[] | select(.state != \"live\") | .vm'\n  vmfabric list --cluster",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case cluster && counters:
				return usageError{errors.New("--counters are this node's own; leave --cluster out, and run it on the node of the guest")}
			case cluster:
				return t.printClusterPorts(cmd)
			case counters:
				return t.printDrops(cmd)
			}
			return t.printPorts(cmd, "")
		},
	}
	cmd.Flags().BoolVar(&cluster, "cluster", false, "those of all nodes")
	cmd.Flags().BoolVar(&counters, "counters", false, "the packets that this node dropped, by port and reason")
	return cmd
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
	return printPortTable(cmd, ports, false)
}

// portDrops is a port of list --counters --json.
type portDrops struct {
	VM    string         `json:"vm"`
	Port  string         `json:"port"`
	Drops []fabric.Drops `json:"drops"`
}

// printDrops prints what the node dropped, by port and reason.
func (t *tool) printDrops(cmd *cobra.Command) error {
	reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.List})
	if err != nil {
		return err
	}
	all := []portDrops{}
	for _, p := range reply.Ports {
		all = append(all, portDrops{p.VM, p.Port, append([]fabric.Drops{}, p.Drops...)})
	}
	if done, err := t.print(cmd, all); done {
		return err
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tPORT\tDROPPED BY\tPACKETS\tBYTES\tLAST")
	for _, p := range all {
		if len(p.Drops) == 0 {
			fmt.Fprintf(w, "%s\t%s\t-\t0\t0\t-\n", p.VM, p.Port)
		}
		for _, d := range p.Drops {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\n", p.VM, p.Port, d.Reason, d.Packets, d.Bytes, ago(d.Last))
		}
	}
	return w.Flush()
}

// printPortTable prints ports as a table, with their nodes if those are asked for, and on
// standard error why some are not as they are wanted.
func printPortTable(cmd *cobra.Command, ports []fabric.PortEntry, nodes bool) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	head := ""
	if nodes {
		head = "NODE\t"
	}
	fmt.Fprintln(w, head+"VM\tPORT\tKIND\tSTATE\tADDRESSES\tROUTES\tSINCE\tASKED\tCLIENT")
	for _, p := range ports {
		if nodes {
			fmt.Fprintf(w, "%s\t", p.Node)
		}
		asked, client := lastContact(p.Contacts)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.VM, p.Port, p.Kind, p.State,
			join(p.Addresses), cmp.Or(join(p.Routes), "-"), ago(p.Since), asked, client)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range ports {
		switch {
		case p.Trouble == "":
		case nodes:
			fmt.Fprintf(cmd.ErrOrStderr(), "%s on %s: %s\n", p.VM, p.Node, p.Trouble)
		default:
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", p.VM, p.Trouble)
		}
	}
	return nil
}

// lastContact says when, and by which protocol, a guest last asked for its configuration,
// whether all that it asked was refused, and who it said that it is: of its requests the last
// one that says so.
func lastContact(contacts []fabric.Contact) (asked, client string) {
	const most = 24
	newest := slices.SortedFunc(slices.Values(contacts), func(x, y fabric.Contact) int { return y.At.Compare(x.At) })
	for i, c := range newest {
		if i == 0 {
			short := map[fabric.ContactProtocol]string{fabric.RouterSolicitation: "RS"}[c.Protocol]
			asked = ago(c.At) + " " + cmp.Or(short, c.Protocol.String())
			if !slices.ContainsFunc(contacts, func(c fabric.Contact) bool { return c.Refused == "" }) {
				asked += ", refused"
			}
		}
		if host, agent := cutText(c.Hostname, most), cutText(c.Client, most); client == "" && host+agent != "" {
			client = cmp.Or(host, agent)
			if host != "" && agent != "" {
				client += " (" + agent + ")"
			}
		}
	}
	return cmp.Or(asked, "-"), cmp.Or(client, "-")
}

// cutText shortens a text to so many characters, for a table.
func cutText(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}

// askedAtOnce is how many nodes the tools have the agent ask at a time.
const askedAtOnce = 32

// printClusterPorts prints the ports of all nodes, and names the nodes that do not tell
// theirs. The agent passes on one part of a node's list at a time, so that it does not
// hold them all.
func (t *tool) printClusterPorts(cmd *cobra.Command) error {
	reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Nodes})
	if err != nil {
		return err
	}
	lists, errs := make([][]fabric.PortEntry, len(reply.Nodes)), make([]error, len(reply.Nodes))
	var asking errgroup.Group
	asking.SetLimit(askedAtOnce)
	for i, node := range reply.Nodes {
		asking.Go(func() error {
			lists[i], errs[i] = t.portsOf(cmd.Context(), node)
			return nil
		})
	}
	_ = asking.Wait()
	all := slices.Concat(append([][]fabric.PortEntry{{}}, lists...)...)
	done, err := t.print(cmd, all)
	if !done {
		err = printPortTable(cmd, all, true)
	}
	for _, e := range errs {
		if e != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "vmfabric: %s\n", e)
		}
	}
	if err == nil && errors.Join(errs...) != nil {
		err = errDegraded
	}
	return err
}

// portsOf lists the ports of a node. After an error it gives those that are known.
func (t *tool) portsOf(ctx context.Context, node string) (all []fabric.PortEntry, err error) {
	const mostParts = 1000 // a node has far fewer
	after := ""
	for range mostParts {
		reply, err := t.call(ctx, hooks.Request{Op: hooks.List, Node: node, After: after})
		if err != nil {
			return all, err
		}
		if all = append(all, reply.Ports...); reply.Next == "" {
			return all, nil
		}
		after = reply.Next
	}
	return all, fmt.Errorf("node %s: its list has no end; see what runs there", node)
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
		fmt.Fprintf(out, "%s of cluster %s is %s; agent up %s, %s, %d live\n", st.Node, st.Cluster, health, ago(st.Since), plural.Of(st.Ports, "port", "ports"), st.Live)
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
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", s.Name, state, plural.Of(s.Guests, "guest", "guests"), last)
	}
	if r := st.Registry; r != nil {
		fmt.Fprintf(w, "  registry\t%s\t%s\t%s\n", r.Kind,
			map[bool]string{true: "shared by all nodes", false: "this node's own"}[r.Shared],
			map[bool]string{true: "well", false: plural.Of(len(r.Problems), "problem", "problems")}[r.Healthy])
	}
	w.Flush()
	for _, d := range st.Diversions {
		fmt.Fprintf(out, "  %s\n", diversionText(d))
	}
	for _, p := range st.Pending {
		fmt.Fprintf(out, "  ~ %s\n", p)
	}
	for _, p := range st.Notes {
		fmt.Fprintf(out, "  - %s\n", p)
	}
	for _, p := range st.Problems {
		fmt.Fprintf(out, "  ! %s\n", p)
	}
}

// lastNotification describes the last NOTIFICATION of a session in a few words.
func lastNotification(n fabric.Notification) string {
	way := "received"
	if n.Sent {
		way = "sent"
	}
	when := ""
	if !n.At.IsZero() {
		when = " " + ago(n.At) + " ago"
	}
	return fmt.Sprintf("last NOTIFICATION %s%s: %s", way, when, n)
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
		Short: "Follow one address step by step, wherever its guest is; exit 1 when a step is missing",
		Long: `Why follows an address from its pool to the reflectors, on whatever node its guest is,
and names what disagrees about it: the registry, the nodes, their kernels, the reflectors.`,
		Example: `  vmfabric why 203.0.113.10
  vmfabric why 2001:db8:100::10 --json`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			if err != nil || a.Zone() != "" || a.Is4In6() {
				return usageError{fmt.Errorf("%q is not an address; write 203.0.113.10 or 2001:db8:100::10", args[0])}
			}
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.Explain, Prefix: fabric.HostPrefix(a)})
			if err != nil {
				return err
			}
			steps := append(reply.Steps, elsewhere(a, reply.Steps)...)
			bad := slices.ContainsFunc(steps, func(s fabric.Step) bool { return !s.Good })
			done, err := t.print(cmd, steps)
			if !done {
				for _, s := range steps {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", mark(s), s.Step, s.Text)
				}
			}
			if err == nil && bad {
				err = errDegraded
			}
			return err
		},
	}
}

// mark says in the margin whether a step is there.
func mark(s fabric.Step) string {
	switch {
	case strings.HasPrefix(s.Step, "node "): // what that node knows is not known, or not all of it
		return "UNKNOWN"
	case s.Good:
		return "ok     "
	case s.Step == fabric.Disagreement:
		return "WRONG  "
	}
	return "MISSING"
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
	d := max(0, time.Since(t)) // another node's clock may be ahead
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
