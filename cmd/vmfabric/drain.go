package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/plural"
)

// drained is a node out of service, and the guests that are still on it.
type drained struct {
	Node    string         `json:"node"`
	Since   time.Time      `json:"since"`
	Already bool           `json:"already"` // it was drained before this request
	Guests  []drainedGuest `json:"guests"`
}

type drainedGuest struct {
	VM        string         `json:"vm"`
	Addresses []netip.Addr   `json:"addresses"`
	Routes    []netip.Prefix `json:"routes"`
	Origin    string         `json:"origin"` // its hypervisor; empty: attached by hand
}

func drainCommand(t *tool) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Take this node out of service, and list the guests that are still on it",
		Long: `Drain has the guests that run here come after another node where one runs
(LOCAL_PREF 50, and the community GRACEFUL_SHUTDOWN of RFC 8326), and
refuses new guests, migrations to this node too. The guests that are here stay
reachable: move them away, or stop them. It holds until vmfabric undrain, over
restarts of the agent and of the machine. It may be repeated.

With --wait it returns when no guest is left, or with exit code 1 when some are
after that time.`,
		Example: `  vmfabric drain
  vmfabric drain --wait 10m && systemctl poweroff
  vmfabric drain --json | jq -r '.guests[].vm'`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait < 0 {
				return usageError{fmt.Errorf("--wait: %s is in the past; write 10m", wait)}
			}
			d, err := t.drain(cmd.Context())
			if err != nil {
				return err
			}
			if !t.json {
				d.print(cmd.OutOrStdout())
			}
			if wait > 0 {
				var watch io.Writer
				if !t.json {
					watch = cmd.OutOrStdout()
				}
				if d.Guests, err = t.awaitEmpty(cmd.Context(), d.Guests, wait, watch); err != nil {
					return err
				}
			}
			if done, err := t.print(cmd, d); done && err != nil {
				return err
			}
			if wait > 0 && len(d.Guests) > 0 {
				return fmt.Errorf("%s after %s: %s; move them away, or stop them", guestsLeft(len(d.Guests), d.Node), wait, someNames(d.Guests))
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait until no guest is left, such as 10m")
	return cmd
}

func undrainCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:     "undrain",
		Short:   "Put this node back into service",
		Long:    `Undrain ends a drain: this node announces its guests as before, and takes new ones.`,
		Example: "  vmfabric undrain",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			was, err := t.status(cmd.Context())
			if err == nil {
				_, err = t.call(cmd.Context(), hooks.Request{Op: hooks.Undrain})
			}
			if err != nil {
				return err
			}
			if done, err := t.print(cmd, map[string]any{"node": was.Node, "was_draining": was.Draining}); done {
				return err
			}
			text := "%s is in service again: announced as usual, and new guests are taken\n"
			if !was.Draining {
				text = "%s was not draining; it is in service\n"
			}
			fmt.Fprintf(cmd.OutOrStdout(), text, was.Node)
			return nil
		},
	}
}

// status asks the agent for the status of its node.
func (t *tool) status(ctx context.Context) (fabric.Status, error) {
	reply, err := t.call(ctx, hooks.Request{Op: hooks.Status})
	if reply.Status == nil {
		return fabric.Status{}, err
	}
	return *reply.Status, nil // its problems say what a backend did not answer
}

// drain begins the drain.
func (t *tool) drain(ctx context.Context) (drained, error) {
	was, err := t.status(ctx)
	if err == nil {
		_, err = t.call(ctx, hooks.Request{Op: hooks.Drain})
	}
	if err != nil {
		return drained{}, err
	}
	now, err := t.status(ctx)
	if err != nil {
		return drained{}, err
	}
	guests, err := t.guestsHere(ctx, 0)
	return drained{Node: now.Node, Since: now.DrainingSince, Already: was.Draining, Guests: guests}, err
}

// guestsHere lists the guests that have ports on this node, by name. It waits for
// an agent that restarts.
func (t *tool) guestsHere(ctx context.Context, wait time.Duration) ([]drainedGuest, error) {
	reply, err := hooks.Client{Socket: t.socket, Wait: wait}.Call(ctx, hooks.Request{Op: hooks.List})
	if err != nil {
		return nil, err
	}
	guests := []drainedGuest{}
	for _, p := range reply.Ports {
		i := slices.IndexFunc(guests, func(g drainedGuest) bool { return g.VM == p.VM })
		if i < 0 {
			i = len(guests)
			guests = append(guests, drainedGuest{VM: p.VM, Origin: p.Origin, Addresses: []netip.Addr{}, Routes: []netip.Prefix{}})
		}
		guests[i].Addresses = append(guests[i].Addresses, p.Addresses...)
		guests[i].Routes = append(guests[i].Routes, p.Routes...)
	}
	return guests, nil
}

const drainPoll = 250 * time.Millisecond

// awaitEmpty waits until no guest is left, and prints each that goes. It returns
// those that are left after the time.
func (t *tool) awaitEmpty(ctx context.Context, guests []drainedGuest, most time.Duration, watch io.Writer) ([]drainedGuest, error) {
	deadline := time.Now().Add(most)
	for len(guests) > 0 {
		pause := min(drainPoll, time.Until(deadline))
		if pause <= 0 {
			return guests, nil
		}
		if !backoff.Sleep(ctx, pause) {
			return nil, fmt.Errorf("interrupted with %s left; the drain goes on, vmfabric undrain ends it", plural.Of(len(guests), "guest", "guests"))
		}
		now, err := t.guestsHere(ctx, time.Until(deadline))
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, g := range guests {
			if watch != nil && !slices.ContainsFunc(now, func(n drainedGuest) bool { return n.VM == g.VM }) {
				fmt.Fprintf(watch, "%s is gone, %d left\n", g.VM, len(now))
			}
		}
		guests = now
	}
	return guests, nil
}

// print writes the node and its guests for people.
func (d drained) print(out io.Writer) {
	state := "is draining now"
	if d.Already {
		state = "is draining already, since " + d.Since.Format(time.DateTime)
	}
	fmt.Fprintf(out, "%s %s: new guests are refused, and %s\n", d.Node, state, guestsLeft(len(d.Guests), "it"))
	if len(d.Guests) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tADDRESSES\tROUTES\tORIGIN")
	for _, g := range d.Guests {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", g.VM, cmp.Or(join(g.Addresses), "-"), cmp.Or(join(g.Routes), "-"), cmp.Or(g.Origin, "by hand"))
	}
	w.Flush()
}

func guestsLeft(n int, node string) string {
	return plural.Of(n, "guest is left on ", "guests are left on ") + node
}

// someNames names a few of the guests.
func someNames(guests []drainedGuest) string {
	const most = 8
	var names []string
	for _, g := range guests[:min(len(guests), most)] {
		names = append(names, g.VM)
	}
	if more := len(guests) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
