// Command bench measures vmfabric against its baselines, all in one run on one
// machine, and writes a report of the figures: docs/performance.md is one. It needs
// root, BIRD 2, and for one comparison FRR.
//
//	go run ./internal/bench                 everything, into docs/performance.md
//	go run ./internal/bench --only attach   one measurement, printed only
//	go run ./internal/bench --only crowd --addresses 100000   1,000 nodes with one registry
//	go run ./internal/bench --only packets --part "dhcp and ra"   packets through one of its nodes
//	go run ./internal/bench --quick         a smoke run: the figures mean nothing
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const document = "docs/performance.md"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the parts that belong to the process. It returns the exit
// status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 2
	}
	if err := f.run(ctx, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

type flags struct {
	only, out string
	part      string
	guests    int
	quick     bool
	crowd     crowdSize // of --only crowd; without addresses: several, as in a full run
}

func parseFlags(args []string, stderr io.Writer) (flags, error) {
	f := flags{crowd: crowdSize{agents: []int{10, 1000}}}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&f.only, "only", "", "the measurement to make: "+strings.Join(names(), ", "))
	fs.StringVar(&f.out, "out", "", "the file to write; "+document+" for a full run, none for a partial one")
	fs.IntVar(&f.guests, "guests", 200, "how often an attach and a hook are measured")
	fs.BoolVar(&f.quick, "quick", false, "a smoke run with small numbers")
	fs.StringVar(&f.part, "part", "", "with --only packets, the nodes with this in their name alone, such as \"dhcp and ra\"")
	fs.Func("nodes", "with --addresses, how many nodes start at once, one number after the other (default 10,1000)", func(s string) error {
		f.crowd.agents = nil
		for part := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(part)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is not a number of nodes", part)
			}
			f.crowd.agents = append(f.crowd.agents, n)
		}
		return nil
	})
	fs.IntVar(&f.crowd.addresses, "addresses", 0, "measure the registry (--only crowd) with so many addresses")
	fs.IntVar(&f.crowd.copies, "copies", 50, "with --addresses, how many of the nodes keep what they list, as agents do")
	if err := fs.Parse(args); err != nil {
		return f, err
	}
	switch {
	case fs.NArg() > 0:
		return f, fmt.Errorf("%q is not a flag; see --help", fs.Arg(0))
	case f.only != "" && find(f.only) == nil:
		return f, fmt.Errorf("--only %s: no such measurement; give one of %s", f.only, strings.Join(names(), ", "))
	case f.part != "" && f.only != "packets":
		return f, fmt.Errorf("--part %s: it is for --only packets; give both", f.part)
	case !slices.ContainsFunc(sitePlans(fullSize.ported), func(p sitePlan) bool { return strings.Contains(p.name, f.part) }):
		return f, fmt.Errorf("--part %s: no node of --only packets has that in its name; see the rows of %s", f.part, document)
	case f.crowd.addresses != 0 && f.only != "crowd":
		return f, fmt.Errorf("--addresses %d: it is for --only crowd; give both", f.crowd.addresses)
	case f.crowd.addresses < 0 || f.crowd.copies < 0:
		return f, errors.New("--addresses and --copies are no numbers below zero; give 100000 and 50")
	case f.guests < 1:
		return f, fmt.Errorf("--guests %d: nothing to measure; give 200 for figures that mean something", f.guests)
	}
	return f, nil
}

func (f flags) run(ctx context.Context, stdout, stderr io.Writer) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	if f.out == "" && f.only == "" && !f.quick {
		f.out = filepath.Join(root, document)
	}
	b := &bench{root: root, size: fullSize, log: stderr}
	if f.quick {
		b.size, b.quick = quickSize, true
	} else {
		b.size.guests = f.guests
	}
	b.size.part = f.part
	if f.crowd.addresses > 0 {
		f.crowd.changes = b.size.crowds[0].changes
		b.size.crowds = []crowdSize{f.crowd}
	}
	r, err := b.measure(ctx, f.only)
	if err != nil {
		return err
	}
	text := r.markdown()
	fmt.Fprint(stdout, text)
	if f.out == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(f.out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(f.out, []byte(text), 0o644)
}
