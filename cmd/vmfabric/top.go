package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

// rate is what a guest exchanges in a second.
type rate struct {
	VM       string   `json:"vm"`
	Sent     perScope `json:"sent"`     // by the guest
	Received perScope `json:"received"` // by the guest
	// Dropped are packets from the guest and to it that the node dropped.
	Dropped float64 `json:"dropped_packets_per_second"`
}

type perScope struct {
	Internal perSecond `json:"internal"`
	External perSecond `json:"external"`
}

type perSecond struct {
	Bytes   float64 `json:"bytes_per_second"`
	Packets float64 `json:"packets_per_second"`
}

func (p perScope) sum() perSecond {
	return perSecond{p.Internal.Bytes + p.External.Bytes, p.Internal.Packets + p.External.Packets}
}

func (r rate) bytes() float64 { return r.Sent.sum().Bytes + r.Received.sum().Bytes }

func topCommand(t *tool) *cobra.Command {
	var once bool
	var every time.Duration
	var most int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show which guests of this node send and receive most",
		Long: `Top prints the guests of this node by the bytes that they send and receive in a
second, those with the most first, again and again, or with --once a single time.
Addresses of the pools and of the underlay are inside (INT), all others outside
(EXT). DROPPED are packets from the guest and to it that the node dropped; for the
reasons see vmfabric list --counters. It needs accounting: true in the cluster file. Totals are in the metrics.`,
		Example: "  vmfabric top\n  vmfabric top --once --interval 10s --json | jq '.[0]'",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || most < 1 {
				return usageError{errors.New("--interval: give 100ms or more; --number: give 1 or more")}
			}
			return t.top(cmd, once, every, most)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print once, after one interval")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "the time over which rates are taken")
	cmd.Flags().IntVar(&most, "number", 20, "how many guests are shown")
	return cmd
}

func (t *tool) top(cmd *cobra.Command, once bool, every time.Duration, most int) error {
	ctx := cmd.Context()
	was, err := t.sample(ctx)
	for err == nil {
		if !backoff.Sleep(ctx, every) {
			return nil
		}
		var is sample
		if is, err = t.sample(ctx); err != nil {
			break
		}
		rates := ratesOf(was, is)
		rates = rates[:min(len(rates), most)]
		was = is
		printed, err := t.print(cmd, rates)
		if !printed {
			err = printRates(cmd, rates)
		}
		if err != nil || once {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// sample is what the node had counted at a time.
type sample struct {
	at      time.Time
	traffic []fabric.Traffic
	dropped map[string]uint64 // packets, by guest
}

// sample asks the agent what was forwarded and dropped.
func (t *tool) sample(ctx context.Context) (sample, error) {
	reply, err := t.call(ctx, hooks.Request{Op: hooks.Traffic})
	if errors.Is(err, errors.ErrUnsupported) {
		err = fmt.Errorf("%w; write accounting: true into the cluster file and restart the agents", err)
	}
	if err != nil {
		return sample{}, err
	}
	s := sample{time.Now(), reply.Traffic, map[string]uint64{}}
	reply, err = t.call(ctx, hooks.Request{Op: hooks.List})
	for _, p := range reply.Ports {
		for _, d := range p.Drops {
			s.dropped[p.VM] += d.Packets
		}
	}
	return s, err
}

// ratesOf compares two readings, and gives the rates of guests that exchanged something,
// the highest first.
func ratesOf(was, is sample) []rate {
	took := is.at.Sub(was.at)
	type key struct {
		vm     string
		prefix string
	}
	before := map[key]fabric.Traffic{}
	for _, t := range was.traffic {
		before[key{t.VM, t.Prefix.String()}] = t
	}
	guests := map[string]rate{}
	for _, t := range is.traffic {
		old := before[key{t.VM, t.Prefix.String()}]
		r := guests[t.VM]
		r.VM = t.VM
		r.Sent.add(old.Sent, t.Sent, took)
		r.Received.add(old.Received, t.Received, took)
		guests[t.VM] = r
	}
	for vm, n := range is.dropped {
		if old := was.dropped[vm]; n > old && took > 0 {
			r := guests[vm]
			r.VM, r.Dropped = vm, float64(n-old)/took.Seconds()
			guests[vm] = r
		}
	}
	all := []rate{}
	for _, r := range guests {
		if r.Sent.sum().Packets+r.Received.sum().Packets+r.Dropped > 0 {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b rate) int {
		return cmp.Or(cmp.Compare(b.bytes(), a.bytes()), cmp.Compare(b.Dropped, a.Dropped), cmp.Compare(a.VM, b.VM))
	})
	return all
}

func (p *perScope) add(was, is fabric.ByScope, took time.Duration) {
	p.Internal.add(was.Internal, is.Internal, took)
	p.External.add(was.External, is.External, took)
}

func (p *perSecond) add(was, is fabric.Count, took time.Duration) {
	if is.Packets < was.Packets || is.Bytes < was.Bytes || took <= 0 {
		return // an agent that lost its state began anew
	}
	p.Bytes += float64(is.Bytes-was.Bytes) / took.Seconds()
	p.Packets += float64(is.Packets-was.Packets) / took.Seconds()
}

func printRates(cmd *cobra.Command, rates []rate) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, time.Now().Format(time.TimeOnly)+"\tSENT EXT\tp/s\tINT\tp/s\tRECEIVED EXT\tp/s\tINT\tp/s\tDROPPED p/s\t")
	for _, r := range rates {
		fmt.Fprintf(w, "%s\t", r.VM)
		for _, p := range []perSecond{r.Sent.External, r.Sent.Internal, r.Received.External, r.Received.Internal} {
			fmt.Fprintf(w, "%s\t%.0f\t", bits(p.Bytes), p.Packets)
		}
		fmt.Fprintf(w, "%.0f\t\n", r.Dropped)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// bits writes bytes in a second as bits in a second.
func bits(bytes float64) string {
	n := 8 * bytes
	for _, unit := range []string{"bit/s", "kbit/s", "Mbit/s"} {
		if n < 1000 {
			return fmt.Sprintf("%.0f %s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.2f Gbit/s", n)
}
