package routers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// FRR's directories, below which each pathspace has one of its own.
const (
	frrConfDir = "/etc/frr"
	frrRunDir  = "/var/run/frr"
	frrTmpDir  = "/var/tmp/frr" // one per process
)

// FRR is a set of FRR's daemons that runs in a host.
type FRR struct {
	Zebra, BGP, Static, BFD *core.Daemon

	mgmt  *core.Daemon // nil: a version without it
	host  *core.Host
	space string
	vtysh string
}

// StartFRR starts zebra, staticd, bfdd and bgpd in the host and gives them this
// configuration; sessions take longer. A host can have one set at a time. args
// are for bgpd.
//
// FRR keeps the sets of a machine apart by pathspaces (-N), here one of the
// name of the host's namespace; its directories go with the lab.
func StartFRR(ctx context.Context, h *core.Host, conf string, args ...string) (*FRR, error) {
	f, err := startFRR(ctx, h, conf, args)
	if err != nil {
		return nil, fmt.Errorf("start frr on %s: %w", h.Name(), err)
	}
	return f, nil
}

func startFRR(ctx context.Context, h *core.Host, conf string, args []string) (*FRR, error) {
	// A pathspace has no dots.
	f := &FRR{host: h, space: strings.ReplaceAll(h.Namespace(), ".", "_")}
	var err error
	if f.vtysh, err = daemons.Find(ctx, "vtysh"); err != nil {
		return nil, err
	}
	confDir, runDir := filepath.Join(frrConfDir, f.space), filepath.Join(frrRunDir, f.space)
	if err := h.Lab().OwnTree(confDir, runDir); err != nil {
		return nil, err
	}
	if err := frrDirs(confDir, runDir); err != nil {
		return nil, err
	}
	// vtysh needs its file, even an empty one.
	if err := os.WriteFile(filepath.Join(confDir, "vtysh.conf"), nil, 0o644); err != nil {
		return nil, err
	}
	if err := f.startMgmt(ctx); err != nil {
		return nil, err
	}
	static := unconfigured
	if f.mgmt != nil {
		static = nil // mgmtd configures it: since then it reads no file
	}
	// Without its option zebra removes an IPv6 route in order to change it
	// (docs/core.md).
	for _, d := range []struct {
		daemon **core.Daemon
		name   string
		args   []string
	}{
		{&f.Zebra, "zebra", slices.Concat(unconfigured, []string{"--v6-rr-semantics"})},
		{&f.Static, "staticd", static},
		{&f.BFD, "bfdd", unconfigured},
		{&f.BGP, "bgpd", slices.Concat(unconfigured, args)},
	} {
		if *d.daemon, err = f.start(ctx, d.name, d.args); err != nil {
			return nil, err
		}
	}
	return f, f.Configure(ctx, conf)
}

// unconfigured has a daemon start without its configuration file, which is the
// machine's.
var unconfigured = []string{"-f", "/dev/null"}

// startMgmt starts mgmtd, which the other daemons of the versions that have it (9 and
// newer) get their configuration from.
func (f *FRR) startMgmt(ctx context.Context) (err error) {
	if _, err = daemons.Find(ctx, "mgmtd"); errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	f.mgmt, err = f.start(ctx, "mgmtd", nil)
	return err
}

// Configure adds to the configuration as if it were typed. That takes effect at
// once; neighbours that bgpd reads from a file wait for five seconds.
func (f *FRR) Configure(ctx context.Context, conf string) error {
	commands := []string{"configure terminal"}
	for line := range strings.Lines(conf) {
		if line = strings.TrimSpace(line); line != "" {
			commands = append(commands, line)
		}
	}
	for {
		_, err := f.Vtysh(ctx, commands...)
		if err == nil || !strings.Contains(err.Error(), "could not lock running DS") {
			return err
		}
		select { // mgmtd has given the configuration to a daemon that begins
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// frrDirs makes directories that FRR's daemons, which do not stay root, can use.
func frrDirs(dirs ...string) error {
	u, err := user.Lookup("frr")
	if err != nil {
		return fmt.Errorf("%w; install the frr package", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func (f *FRR) start(ctx context.Context, name string, args []string) (*core.Daemon, error) {
	program, err := daemons.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	// Remove the socket of a killed daemon; vtysh would try it in vain.
	vty := filepath.Join(frrRunDir, f.space, name+".vty")
	_ = os.Remove(vty)
	args = append([]string{"-N", f.space, "-A", "127.0.0.1", "--log", "stdout"}, args...)
	d, err := f.host.StartDaemon(name, exec.Command(program, args...))
	if err != nil {
		return nil, err
	}
	tmp := filepath.Join(frrTmpDir, fmt.Sprintf("%s.%d", name, d.Pid()))
	if err := f.host.Lab().OwnTree(tmp); err != nil {
		return nil, err
	}
	return d, d.Until(ctx, func() error { _, err := os.Stat(vty); return err })
}

// Client returns a client of this set of daemons.
func (f *FRR) Client() frr.Client { return frr.Client{Vtysh: f.vtysh, Pathspace: f.space} }

// Vtysh runs commands, one after the other, and returns FRR's output.
func (f *FRR) Vtysh(ctx context.Context, commands ...string) (string, error) {
	out, err := f.Client().Run(ctx, commands...)
	if err != nil {
		return out, fmt.Errorf("frr on %s: %w", f.host.Name(), err)
	}
	return out, nil
}

// JSON runs a command that answers in JSON ("show bgp summary json") and reads
// the answer into v.
func (f *FRR) JSON(ctx context.Context, command string, v any) error {
	return f.jsons(ctx, []string{command}, func(d *json.Decoder) error { return d.Decode(v) })
}

// jsons runs commands and calls next to read the answer to each.
func (f *FRR) jsons(ctx context.Context, commands []string, next func(*json.Decoder) error) error {
	if len(commands) == 0 {
		return nil
	}
	out, err := f.Vtysh(ctx, commands...)
	if err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(out))
	for _, command := range commands {
		if err := next(d); err != nil {
			return fmt.Errorf("frr on %s: %s: %w", f.host.Name(), command, err)
		}
	}
	return nil
}

// Daemons lists the set's daemons, those first that use the others.
func (f *FRR) Daemons() []*core.Daemon {
	all := []*core.Daemon{f.BGP, f.BFD, f.Static, f.Zebra}
	if f.mgmt != nil {
		all = append(all, f.mgmt)
	}
	return all
}

// Stop asks all daemons of the set to end, and waits until they have.
func (f *FRR) Stop() error { return f.each((*core.Daemon).Stop) }

// Kill ends all daemons of the set without warning.
func (f *FRR) Kill() error { return f.each((*core.Daemon).Kill) }

func (f *FRR) each(end func(*core.Daemon) error) error {
	for _, d := range f.Daemons() {
		if err := end(d); err != nil {
			return err
		}
	}
	return nil
}

// Established counts the BGP sessions that are up.
func (f *FRR) Established(ctx context.Context) (int, error) {
	var summary map[string]struct {
		Peers map[string]struct{ State string }
	}
	if err := f.JSON(ctx, "show bgp summary json", &summary); err != nil {
		return 0, err
	}
	up := map[string]bool{} // a session carries several families
	for _, family := range summary {
		for peer, s := range family.Peers {
			if s.State == "Established" {
				up[peer] = true
			}
		}
	}
	return len(up), nil
}

// frrPath is a path in the answer to "show bgp ... PREFIX json".
type frrPath struct {
	Origin         string
	LocalPref      uint32 `json:"locPrf"`
	Peer           struct{ PeerID string }
	Nexthops       []struct{ IP, Scope string }
	Community      struct{ String string }
	LargeCommunity struct{ String string }
	Bestpath       struct{ Overall bool }
}

// Routes lists FRR's BGP routes of both families, also those that are not the
// best of their prefix.
func (f *FRR) Routes(ctx context.Context) ([]BGPRoute, error) {
	var rs []BGPRoute
	for _, family := range []string{"ipv4", "ipv6"} {
		prefixes, err := f.prefixes(ctx, family)
		if err != nil {
			return nil, err
		}
		// The answers about single prefixes look the same in all versions.
		var commands []string
		for _, p := range prefixes {
			commands = append(commands, fmt.Sprintf("show bgp %s unicast %s json", family, p))
		}
		err = f.jsons(ctx, commands, func(d *json.Decoder) error {
			var answer struct {
				Prefix netip.Prefix
				Paths  []frrPath
			}
			if err := d.Decode(&answer); err != nil {
				return err
			}
			for _, path := range answer.Paths {
				r, err := path.route(answer.Prefix)
				if err != nil {
					return err
				}
				rs = append(rs, r)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return rs, nil
}

// prefixes lists the prefixes of FRR's BGP routes, in order.
func (f *FRR) prefixes(ctx context.Context, family string) ([]netip.Prefix, error) {
	var table struct {
		Routes map[netip.Prefix]json.RawMessage
	}
	if err := f.JSON(ctx, "show bgp "+family+" unicast json", &table); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Keys(table.Routes), netip.Prefix.Compare), nil
}

// wellKnown are the well-known communities that nodes send, as FRR writes them.
var wellKnown = map[string]fabric.Community{"graceful-shutdown": fabric.GracefulShutdown, "blackhole": fabric.BlackholeCommunity}

func (p frrPath) route(prefix netip.Prefix) (BGPRoute, error) {
	r := BGPRoute{Prefix: prefix, Origin: p.Origin, LocalPref: p.LocalPref, Best: p.Bestpath.Overall}
	r.From, _ = netip.ParseAddr(p.Peer.PeerID) // "(unspec)" for FRR's own routes
	for _, hop := range p.Nexthops {
		if hop.Scope == "global" || hop.Scope == "" {
			r.NextHop, _ = netip.ParseAddr(hop.IP)
		}
	}
	for _, s := range strings.Fields(p.Community.String + " " + p.LargeCommunity.String) {
		if known, is := wellKnown[s]; is {
			r.Communities = append(r.Communities, known)
			continue
		}
		c, err := fabric.ParseCommunity(s)
		if err != nil {
			return r, err
		}
		r.Communities = append(r.Communities, c)
	}
	return r, nil
}
