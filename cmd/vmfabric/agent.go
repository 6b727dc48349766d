package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/fabric/libvirt"
	"github.com/vmfabric/vmfabric/fabric/lxd"
	"github.com/vmfabric/vmfabric/hooks"
)

type agentFlags struct {
	config, node, state, libvirt, lxd, incus, logLevel, logFormat string
	speaker, resolver, metrics                                    string
	observers                                                     []string
}

func agentCommand(t *tool) *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the resident agent of this node",
		Long: `The agent holds the BGP sessions, the ports and the wanted state of this node.
When it stops, ports and routes stay, and the reflectors keep the node's
announcements for the graceful restart time: an upgrade is a restart. To take a
node out of service, see vmfabric drain.

SIGHUP (systemctl reload vmfabric) has it read the cluster file again: it takes up what
can change while it runs, and status lists what waits for a restart.`,
		Example: `  vmfabric agent
  vmfabric agent --config ./cluster.yaml --node node1 --state ./state --socket ./agent.sock`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd.ErrOrStderr(), f.logLevel, f.logFormat)
			if err != nil {
				return usageError{err}
			}
			return runAgent(cmd.Context(), f, t.socket, log)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", defaultConfig, "the cluster file")
	fl.StringVar(&f.node, "node", "", "which of the cluster's nodes this is (default: the host name)")
	fl.StringVar(&f.state, "state", "/var/lib/vmfabric", "the directory of the wanted state")
	fl.StringVar(&f.libvirt, "libvirt", "auto", "libvirt to follow: auto, off, or the path of its socket")
	fl.StringVar(&f.lxd, "lxd", "auto", "LXD to follow: auto, off, or the path of its socket")
	fl.StringVar(&f.incus, "incus", "auto", "Incus to follow: auto, off, or the path of its socket")
	fl.StringVar(&f.speaker, "speaker", "", "the BGP speaker: gobgp, bird, frr, or the path of a plugin (default: as the cluster file has it)")
	fl.StringVar(&f.resolver, "resolver", "", "the path of a plugin that knows guests' addresses (default: as the cluster file has it)")
	fl.StringArrayVar(&f.observers, "observer", nil, "the path of a plugin that gets the events of this node; may be repeated (default: as the cluster file has it)")
	fl.StringVar(&f.metrics, "metrics", "", "the address and port to serve Prometheus metrics on, or off (default: as the cluster file has it)")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&f.logFormat, "log-format", "text", "text or json")
	return cmd
}

// metricsAddress is where the agent serves its metrics; empty: nowhere.
func (f agentFlags) metricsAddress(c *fabric.Cluster) string {
	switch {
	case f.metrics == "off":
		return ""
	case f.metrics == "" && c.Metrics.IsValid():
		return c.Metrics.String()
	}
	return f.metrics
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is not one of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if level, is := a.Value.Any().(slog.Level); is && a.Key == slog.LevelKey && level == hooks.LevelAudit {
			a.Value = slog.StringValue("AUDIT")
		}
		return a
	}}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format: %q is not one of text, json", format)
}

// load reads the cluster file, with the speaker that the flag names.
func (f agentFlags) load() (c fabric.Cluster, err error) {
	c, err = clusterfile.Load(f.config)
	switch {
	case err != nil || f.speaker == "":
	case strings.ContainsRune(f.speaker, '/'):
		c.Speaker, err = filepath.Abs(f.speaker)
	default:
		c.Speaker = f.speaker
	}
	return c, err
}

func runAgent(ctx context.Context, f agentFlags, socket string, log *slog.Logger) (err error) {
	hangup, ignore := hangups()
	defer ignore()
	read, _ := contentOf(f.config)
	cluster, node, err := f.place(log)
	if err != nil {
		return err
	}
	p := &agentParts{flags: f, cluster: cluster, node: node, log: log, read: read, hangup: hangup}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.open(ctx, socket); err != nil {
		return err
	}
	return p.run(ctx)
}

// place reads the cluster, and finds this node in it.
func (f agentFlags) place(log *slog.Logger) (cluster fabric.Cluster, node fabric.Node, err error) {
	if cluster, err = f.load(); err != nil {
		return cluster, node, err
	}
	if node, err = thisNode(&cluster, f.node); err != nil {
		return cluster, node, err
	}
	if !node.Address6.IsValid() {
		if node.Address6 = underlay6(node.Address); node.Address6.IsValid() {
			log.Info("next hop for IPv6 is the underlay interface's address", "address", node.Address6)
		}
	}
	alone := cluster
	alone.Nodes = []fabric.Node{node} // the other nodes' agents report what those lack
	for _, w := range clusterfile.NodeWarnings(alone) {
		log.Warn(w, "config", f.config)
	}
	return cluster, node, nil
}

// kernelConfig says how a node uses its kernel.
func kernelConfig(c *fabric.Cluster, node fabric.Node) kernel.Config {
	return kernel.Config{
		Cluster: c.Name, Underlay: others(c, node), Private: c.Private(), Guests: c.Guests, AgentPort: c.AgentPort,
		Samples: samplesOf(c), NextHop: node.Address, NextHop6: node.Address6, Pools: c.GuestPrefixes(), Routers: routers(c),
	}
}

// source is a hypervisor that the agent follows.
type source interface {
	fabric.Source
	Run(ctx context.Context) error
}

// sources makes the sources that are not off. A source waits without a warning if
// there is no such hypervisor.
func (f agentFlags) sources(dataplane *kernel.Dataplane, log *slog.Logger) (all []source) {
	path := func(flag string) string {
		if flag == "auto" {
			return ""
		}
		return flag
	}
	if f.libvirt != "off" {
		all = append(all, libvirt.New(libvirt.Config{
			Socket: path(f.libvirt), Logger: log, Hooks: libvirt.DefaultHooks, Proof: filepath.Join(f.state, "libvirt-hook"),
		}))
	}
	for product, flag := range []string{lxd.LXD: f.lxd, lxd.Incus: f.incus} {
		if flag != "off" {
			all = append(all, lxd.New(lxd.Config{Product: lxd.Product(product), Socket: path(flag), Logger: log, Links: dataplane.Links()}))
		}
	}
	return all
}

// thisNode finds the node by name, or by the host name, long or short.
func thisNode(c *fabric.Cluster, name string) (fabric.Node, error) {
	if name != "" {
		return c.Node(name)
	}
	host, err := os.Hostname()
	if err != nil {
		return fabric.Node{}, fmt.Errorf("host name: %w; name the node with --node", err)
	}
	if n, err := c.Node(host); err == nil {
		return n, nil
	}
	short, _, _ := strings.Cut(host, ".")
	return c.Node(short)
}

// others lists the addresses of the cluster's other machines.
func others(c *fabric.Cluster, node fabric.Node) []netip.Addr {
	var as []netip.Addr
	for _, r := range c.Reflectors {
		as = append(as, r.Address)
	}
	for _, g := range c.Core {
		as = append(as, g.Address)
	}
	for _, n := range c.Nodes {
		as = append(as, n.Address, n.Address6)
	}
	return slices.DeleteFunc(as, func(a netip.Addr) bool { return !a.IsValid() || a == node.Address || a == node.Address6 })
}

// guarded lists the ports of stored guests that are isolated or have a firewall. Of what
// the store cannot read the agent reports more.
func guarded(ctx context.Context, store fabric.Store, c *fabric.Cluster) (ports []fabric.Port) {
	guests, _ := store.All(ctx)
	for _, d := range guests {
		if d.State != fabric.Absent && (d.VM.Isolated || d.VM.Firewall != nil) {
			ports = append(ports, d.VM.Ports(c)...)
		}
	}
	return ports
}

func routers(c *fabric.Cluster) []netip.Addr {
	var as []netip.Addr
	for _, g := range c.Core {
		as = append(as, g.Address)
	}
	return as
}

// underlay6 finds the IPv6 address of the interface with the node's IPv4 address:
// the next hop of IPv6 routes if the cluster file names none.
func underlay6(v4 netip.Addr) netip.Addr {
	interfaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		var has bool
		var v6 netip.Addr
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			has = has || p.Addr() == v4
			if p.Addr().Is6() && p.Addr().IsGlobalUnicast() && !v6.IsValid() {
				v6 = p.Addr()
			}
		}
		if has {
			return v6
		}
	}
	return netip.Addr{}
}

// notify tells systemd, if systemd started the agent.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd not notified", "err", err)
	}
}

// ignoreClosed drops the error of closing what the orderly way has closed already.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
