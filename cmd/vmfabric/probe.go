package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/internal/probe"
)

// The most that a probe may send: it must measure a network, not fill it.
const (
	probeRate = 1000           // requests a second
	probeTime = 24 * time.Hour // as a whole
)

type probeFlags struct {
	rate int
	time time.Duration
	from string
}

// probeReport is the result of a probe. Times are in milliseconds.
type probeReport struct {
	Address     netip.Addr `json:"address"`
	Sent        int        `json:"sent"`
	Received    int        `json:"received"`
	Lost        int        `json:"lost"`
	Duplicates  int        `json:"duplicates"`
	Reordered   int        `json:"reordered"`
	Refused     int        `json:"refused"` // ICMP errors: unreachable, time exceeded
	LongestGap  float64    `json:"longest_gap_ms"`
	LongestLoss int        `json:"longest_loss"` // requests lost in a row
	LossFrom    int        `json:"longest_loss_from"`
	MaxRTT      float64    `json:"max_rtt_ms"`
	Took        float64    `json:"took_ms"`
}

func probeCommand(t *tool) *cobra.Command {
	var f probeFlags
	cmd := &cobra.Command{
		Use:   "probe ADDRESS",
		Short: "Send echo requests at a steady rate and account for every one",
		Long: `Probe sends ICMP echo requests to an address and says what became of each:
answered, lost, answered twice or out of order, and the longest time without an
answer. Run it beside a move, or a restart, from where the guest's users are. It
ends by itself; exit 1 when a request was lost. It needs root.`,
		Example: `  vmfabric probe 203.0.113.10 --for 20s
  vmfabric probe 2001:db8:100::10 --rate 100 --for 1m --json`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := f.config(args[0])
			if err != nil {
				return usageError{err}
			}
			p, err := probe.Start(cfg)
			if errors.Is(err, os.ErrPermission) {
				return fmt.Errorf("%w; run it as root, raw sockets need that", err)
			}
			if err != nil {
				return err
			}
			select {
			case <-p.Sent():
			case <-cmd.Context().Done(): // the requests that were sent so far count
			}
			return t.printProbe(cmd, cfg.To, p.Stop())
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.rate, "rate", probeRate, "requests a second, 1 to 1000")
	fl.DurationVar(&f.time, "for", 10*time.Second, "how long to send")
	fl.StringVar(&f.from, "from", "", "the source address (default: the kernel's choice)")
	return cmd
}

func (f probeFlags) config(address string) (cfg probe.Config, err error) {
	if cfg.To, err = netip.ParseAddr(address); err != nil {
		return cfg, fmt.Errorf("%q is not an address; write 203.0.113.10 or 2001:db8:100::10", address)
	}
	if zone := cfg.To.Zone(); zone != "" {
		link, err := net.InterfaceByName(zone)
		if err != nil {
			return cfg, fmt.Errorf("%s: no link %s here; see ip link", address, zone)
		}
		cfg.To, cfg.Link = cfg.To.WithZone(""), link.Index
	}
	if f.from != "" {
		if cfg.From, err = netip.ParseAddr(f.from); err != nil || cfg.From.Is4() != cfg.To.Is4() {
			return cfg, fmt.Errorf("--from %q is not an address of the family of %s", f.from, cfg.To)
		}
	}
	switch {
	case cfg.To.IsMulticast() || cfg.To == netip.MustParseAddr("255.255.255.255"):
		return cfg, fmt.Errorf("%s is not the address of one guest; give one such as 203.0.113.10", cfg.To)
	case f.rate < 1 || f.rate > probeRate:
		return cfg, fmt.Errorf("--rate %d is out of range; give 1 to %d requests a second", f.rate, probeRate)
	case f.time <= 0 || f.time > probeTime:
		return cfg, fmt.Errorf("--for %v is out of range; give a time up to %v", f.time, probeTime)
	}
	cfg.Interval = time.Second / time.Duration(f.rate)
	cfg.Count = max(1, int(f.time/cfg.Interval))
	return cfg, nil
}

func (t *tool) printProbe(cmd *cobra.Command, to netip.Addr, r probe.Result) error {
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	report := probeReport{
		to, r.Sent, r.Received, r.Lost, r.Duplicates, r.Reordered, r.Refused,
		millis(r.LongestGap), r.LongestLoss, r.LongestLossFrom, millis(r.MaxRTT), millis(r.Took),
	}
	done, err := t.print(cmd, report)
	if !done {
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "%s: %d sent in %s, %d answered, %d lost, %d twice, %d out of order, %d refused\n",
			to, r.Sent, r.Took.Round(time.Millisecond), r.Received, r.Lost, r.Duplicates, r.Reordered, r.Refused)
		fmt.Fprintf(out, "longest time without an answer %.1f ms, slowest answer %.1f ms\n", millis(r.LongestGap), millis(r.MaxRTT))
		if r.LongestLoss > 0 {
			fmt.Fprintf(out, "longest run of lost requests %d, from number %d on\n", r.LongestLoss, r.LongestLossFrom)
		}
	}
	if err == nil && r.Lost > 0 {
		err = errDegraded
	}
	return err
}
