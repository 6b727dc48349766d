package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
)

// domainXML is a domain as libvirt describes it to its hooks.
//
//go:embed domain.xml
var domainXML string

func (g guest) xml() string {
	return strings.NewReplacer("@NAME@", g.name, "@ID@", g.name[1:], "@PORT@", g.port(),
		"@ADDRESS4@", g.a4.String(), "@ADDRESS6@", g.a6.String()).Replace(domainXML)
}

// hookCommand returns the command of the hook as libvirt runs it, or of a program
// in its place.
func hookCommand(ctx context.Context, program, socket, op string, g guest) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, g.name, op, "begin", "-")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C", "VMFABRIC_SOCKET=" + socket}
	cmd.Stdin = strings.NewReader(g.xml())
	return cmd
}

// hooked is a program that the benchmark runs again and again as a hook.
type hooked struct {
	name, program, socket string
	took                  sample
}

// measureHook compares whole processes of the hook with the least process in Go.
func measureHook(ctx context.Context, b *bench) (s section, err error) {
	l, a, err := b.newNode(ctx, "hook", 1)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	idle := filepath.Join(l.Dir(), "idle.sock")
	stop, err := serveIdle(ctx, idle)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	runs := []*hooked{
		{name: "hello world: reads its input, prints a line", program: b.bin.hello},
		{name: "a round trip over a socket besides", program: b.bin.roundtrip, socket: idle},
		{name: "the hook, an agent that does nothing", program: b.bin.hook, socket: idle},
		{name: "the hook, the agent makes the port", program: b.bin.hook, socket: a.socket},
	}
	for i := range b.size.guests {
		for k := range runs {
			h := runs[(i+k)%len(runs)]
			if err := h.run(ctx, guestNumber(i)); err != nil {
				return s, err
			}
		}
	}
	if _, err := a.askAll(ctx, hooks.Remove, guests(0, b.size.guests), 64); err != nil {
		return s, err
	}
	return hookSection(runs), nil
}

func (h *hooked) run(ctx context.Context, g guest) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := hookCommand(ctx, h.program, h.socket, "prepare", g)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	began := time.Now()
	err := cmd.Run()
	h.took.add(time.Since(began))
	if err != nil {
		return fmt.Errorf("%s: %w: %s", h.name, err, strings.TrimSpace(complaint.String()))
	}
	return nil
}

func hookSection(runs []*hooked) section {
	s := section{
		title: "The hook as a process",
		method: fmt.Sprintf(`
%s runs of each, by turns: from just before the process is started until it has ended, with libvirt's operation prepare and a
domain's XML of %s bytes on its standard input. Every program gets the same arguments, environment and input. In the last
line the agent makes a port for a new guest each time.`, count(len(runs[0].took)), count(len(domainXML))),
	}
	t := table{head: []string{"process", "p50 ms", "p99 ms", "p50 factor", "p99 factor"}}
	hello, ours := runs[0].took, runs[len(runs)-1].took
	for _, h := range runs {
		t.row(h.name, ms(h.took.p50()), ms(h.took.p99()), times(ratio(h.took.p50(), hello.p50())), times(ratio(h.took.p99(), hello.p99())))
	}
	s.tables = []table{t}
	s.targets = []target{
		within("hook with the agent's work against hello world, p50", ratio(ours.p50(), hello.p50()), 2),
		within("hook with the agent's work against hello world, p99", ratio(ours.p99(), hello.p99()), 2),
	}
	return s
}

// serveIdle serves hooks by an agent that accepts every request.
func serveIdle(ctx context.Context, socket string) (stop func() error, err error) {
	l, err := hooks.Listen(ctx, socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- hooks.Serve(ctx, l, idleAgent{}, nil) }()
	return func() error { cancel(); return <-done }, nil
}

type idleAgent struct {
	hooks.Hypervisors
	hooks.Registry
	hooks.Cluster
}

func (idleAgent) Apply(context.Context, fabric.VM, fabric.State) error { return nil }
func (idleAgent) Started(context.Context, fabric.VM) error             { return nil }
func (idleAgent) Withdraw(context.Context, string) error               { return nil }
func (idleAgent) Expect(context.Context, string) error                 { return nil }
func (idleAgent) List(context.Context) ([]fabric.PortEntry, error)     { return nil, nil }
func (idleAgent) Status(context.Context) (s fabric.Status, err error)  { return s, nil }
func (idleAgent) Drain(context.Context) error                          { return nil }
func (idleAgent) Advertisements(context.Context, netip.Prefix) ([]fabric.Advertisement, error) {
	return nil, nil
}
func (idleAgent) Undrain(context.Context) error { return nil }
func (idleAgent) CheckForwarding(context.Context) ([]fabric.ForwardingFault, error) {
	return nil, nil
}
func (idleAgent) Traffic(context.Context) ([]fabric.Traffic, error) { return nil, nil }
func (idleAgent) Blackhole(context.Context, netip.Addr, time.Duration) (b fabric.Blackhole, err error) {
	return b, nil
}
func (idleAgent) LiftBlackhole(context.Context, netip.Addr) error        { return nil }
func (idleAgent) Blackholes(context.Context) ([]fabric.Blackhole, error) { return nil, nil }
func (idleAgent) Moves(context.Context, string) ([]fabric.Move, error)   { return nil, nil }
