package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/plugins"
)

// speaker is the agent's speaker, and the part that keeps its sessions.
type speaker interface {
	fabric.Speaker
	Run(ctx context.Context) error // opens the sessions, after the first pass
}

// pluginSpeaker is a speaker whose plugin keeps the sessions itself.
type pluginSpeaker struct{ *plugins.Speaker }

func (pluginSpeaker) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// extensions are the plugins of an agent.
type extensions struct {
	place     plugins.Place
	log       *slog.Logger
	resolver  fabric.Resolver // nil: none
	observers []fabric.Observer
	// diagnosers are the resolver and the observers, too.
	diagnosers []fabric.Diagnoser
	closers    []func() error
}

// openExtensions starts the resolver and the observers that the flags name, or else
// the cluster. If one cannot start, it is tried again, and status says so: guests
// that need neither still get an agent.
func (f agentFlags) openExtensions(ctx context.Context, c *fabric.Cluster, node fabric.Node, log *slog.Logger) (*extensions, error) {
	config, err := filepath.Abs(f.config)
	if err != nil {
		return nil, err
	}
	x := &extensions{place: plugins.Place{Config: config, Node: node.Name}, log: log}
	if path := cmp.Or(f.resolver, c.Resolver); path != "" {
		r, err := plugins.OpenResolver(ctx, x.program(path), plugins.WithLogger(log), plugins.WithRetry())
		if err != nil {
			return nil, fmt.Errorf("resolver: %w", err)
		}
		x.resolver, x.diagnosers, x.closers = r, append(x.diagnosers, r), append(x.closers, r.Close)
	}
	paths := c.Observers
	if len(f.observers) > 0 {
		paths = f.observers
	}
	for _, path := range paths {
		o, err := plugins.OpenObserver(ctx, x.program(path), plugins.WithLogger(log), plugins.WithRetry())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("observer: %w", err), x.Close())
		}
		x.observers, x.diagnosers, x.closers = append(x.observers, o), append(x.diagnosers, o), append(x.closers, o.Close)
	}
	return x, nil
}

// Close ends the plugins.
func (x *extensions) Close() error {
	var errs []error
	for _, c := range x.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

func (x *extensions) program(path string) plugins.Program {
	return plugins.Program{Path: path, Place: x.place}
}

// openSpeaker makes the speaker that the flag names, or else the cluster. The
// embedded one passes the routes to other nodes' guests to peers; BIRD and FRR do
// that themselves.
func (f agentFlags) openSpeaker(ctx context.Context, c fabric.Cluster, node fabric.Node, x *extensions, peers *kernel.FIB) (speaker, error) {
	name := cmp.Or(f.speaker, c.Speaker, fabric.SpeakerGoBGP)
	path := name
	switch {
	case name == fabric.SpeakerGoBGP:
		options, err := eastWest(c, peers)
		if err == nil {
			err = forgetAnnouncements(ctx)
		}
		if err != nil {
			return nil, err
		}
		return gobgp.New(gobgp.Config{Cluster: c, Node: node}, append(options, gobgp.WithLogger(x.log))...)
	case name == fabric.SpeakerBIRD || name == fabric.SpeakerFRR:
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("speaker %s: %w", name, err)
		}
		if path, err = shippedPlugin(exe, name); err != nil {
			return nil, err
		}
	case !strings.ContainsRune(name, '/'):
		return nil, fmt.Errorf("speaker %q is not one of gobgp, bird, frr, nor the path of a plugin; write one with a slash for that, such as /usr/local/lib/vmfabric/%s", name, name)
	}
	s, err := plugins.OpenSpeaker(ctx, x.program(path), plugins.WithLogger(x.log))
	if err != nil {
		return nil, fmt.Errorf("speaker: %w", err)
	}
	x.closers = append(x.closers, s.Close)
	if err := peers.Close(); err != nil { // with the routes that an embedded speaker learned
		return nil, err
	}
	return pluginSpeaker{s}, nil
}

// forgetAnnouncements removes from the kernel what an agent with another speaker
// left there for BIRD or FRR: nothing else would ever withdraw it. A plugin may
// have put it there itself before a restart, so openSpeaker calls it only for the
// embedded speaker.
func forgetAnnouncements(ctx context.Context) error {
	a, err := kernel.NewAnnouncer(ctx)
	if err != nil {
		return err
	}
	routes, err := a.Actual(ctx)
	prefixes := make([]netip.Prefix, len(routes))
	for i, r := range routes {
		prefixes[i] = r.Prefix
	}
	return errors.Join(err, a.Remove(ctx, prefixes...), a.Close())
}

// shippedPlugin finds the plugin of a speaker that comes with the agent: beside the
// agent's executable, as a build has it, or in the folder of make install.
func shippedPlugin(exe, name string) (string, error) {
	dir := filepath.Dir(exe)
	tried := []string{
		filepath.Join(dir, "vmfabric-plugin-"+name),
		filepath.Join(filepath.Dir(dir), "lib", "vmfabric", "plugin-"+name),
	}
	for _, path := range tried {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path, nil // its start reports what is wrong with it
		}
	}
	return "", fmt.Errorf("speaker %s: its plugin is neither %s; install it, or choose speaker gobgp", name, strings.Join(tried, " nor "))
}
