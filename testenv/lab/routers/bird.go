package routers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/internal/daemons"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Bird is a BIRD 2 that runs in a host.
type Bird struct {
	*core.Daemon
	conf, socket string
}

// StartBird starts BIRD in the host with this configuration, which should log
// to stderr, and returns when its control socket answers; sessions take longer.
// A host can have one at a time.
func StartBird(ctx context.Context, h *core.Host, conf string, args ...string) (*Bird, error) {
	b := &Bird{conf: filepath.Join(h.Dir(), "bird.conf"), socket: filepath.Join(h.Dir(), "bird.ctl")}
	if err := os.WriteFile(b.conf, []byte(conf), 0o644); err != nil {
		return nil, fmt.Errorf("start bird on %s: %w", h.Name(), err)
	}
	program, err := daemons.Find(ctx, "bird")
	if err != nil {
		return nil, fmt.Errorf("start bird on %s: %w", h.Name(), err)
	}
	// The socket of a killed BIRD would refuse connections for a while.
	if err := os.Remove(b.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start bird on %s: %w", h.Name(), err)
	}
	cmd := exec.Command(program, append([]string{"-f", "-c", b.conf, "-s", b.socket, "-P", filepath.Join(h.Dir(), "bird.pid")}, args...)...)
	if b.Daemon, err = h.StartDaemon("bird", cmd); err != nil {
		return nil, err
	}
	if err := b.Until(ctx, func() error { _, err := b.Query(ctx, "show status"); return err }); err != nil {
		_ = b.Kill()
		return nil, err
	}
	return b, nil
}

// Configure gives BIRD another configuration, as `birdc configure` does.
func (b *Bird) Configure(ctx context.Context, conf string) error {
	if err := os.WriteFile(b.conf, []byte(conf), 0o644); err != nil {
		return err
	}
	_, err := b.Query(ctx, "configure")
	return err
}

// Socket returns the path of BIRD's control socket.
func (b *Bird) Socket() string { return b.socket }

// ConfPath returns the path of BIRD's configuration file.
func (b *Bird) ConfPath() string { return b.conf }

// Query sends one command to BIRD's control socket and returns the lines of the
// answer, as birdc shows them. A command that BIRD refuses is an error.
func (b *Bird) Query(ctx context.Context, command string) ([]string, error) {
	lines, err := bird.Client{Socket: b.socket}.Query(ctx, command)
	if err != nil {
		return lines, fmt.Errorf("bird on %s: %s: %w", b.Host().Name(), command, err)
	}
	return lines, nil
}

// Routes lists BIRD's BGP routes of both families, also those that are not the
// best of their prefix.
func (b *Bird) Routes(ctx context.Context) ([]BGPRoute, error) {
	lines, err := b.Query(ctx, "show route all where source = RTS_BGP")
	if err != nil {
		return nil, err
	}
	rs, err := parseBirdRoutes(lines)
	if err != nil {
		return nil, fmt.Errorf("bird on %s: %w", b.Host().Name(), err)
	}
	return rs, nil
}

// Established counts the BGP sessions of BIRD that are up.
func (b *Bird) Established(ctx context.Context) (int, error) {
	lines, err := b.Query(ctx, "show protocols")
	n := 0
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "BGP" && f[len(f)-1] == "Established" {
			n++
		}
	}
	return n, err
}

// A route begins with its prefix, which further routes of the prefix leave out:
//
//	203.0.113.10/32      unicast [rr0 21:40:02.123 from 10.10.0.11] * (100/-) [i]
var birdRouteLine = regexp.MustCompile(`^(\S*)\s+\w+ \[\S+ \S+(?: from ([^\]\s]+))?\] (\* )?\(`)

func parseBirdRoutes(lines []string) ([]BGPRoute, error) {
	var rs []BGPRoute
	var prefix netip.Prefix
	for _, line := range lines {
		if m := birdRouteLine.FindStringSubmatch(line); m != nil {
			if m[1] != "" {
				var err error
				if prefix, err = netip.ParsePrefix(m[1]); err != nil {
					return nil, err
				}
			}
			from, _ := netip.ParseAddr(m[2])
			rs = append(rs, BGPRoute{Prefix: prefix, From: from, Best: m[3] != ""})
			continue
		}
		if len(rs) == 0 {
			continue
		}
		r := &rs[len(rs)-1]
		// BIRD leaves the neighbour out if it is the next hop, too.
		if f := strings.Fields(line); len(f) > 1 && f[0] == "via" && !r.From.IsValid() {
			r.From, _ = netip.ParseAddr(f[1])
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		if err := r.setBird(key, value); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
	}
	return rs, nil
}

// setBird sets one attribute from BIRD's output.
func (r *BGPRoute) setBird(key, value string) error {
	if name, is := strings.CutPrefix(key, "bgp_"); is { // BIRD 3
		key = "BGP." + name
	}
	switch key {
	case "BGP.origin":
		r.Origin = value
	case "BGP.next_hop":
		// A link-local next hop can follow an IPv6 one.
		a, err := netip.ParseAddr(strings.Fields(value)[0])
		r.NextHop = a
		return err
	case "BGP.local_pref":
		n, err := strconv.ParseUint(value, 10, 32)
		r.LocalPref = uint32(n)
		return err
	case "BGP.community", "BGP.large_community":
		for _, tuple := range birdTuple.FindAllStringSubmatch(value, -1) {
			c, err := fabric.ParseCommunity(strings.NewReplacer(",", ":", " ", "").Replace(tuple[1]))
			if err != nil {
				return err
			}
			r.Communities = append(r.Communities, c)
		}
	}
	return nil
}

var birdTuple = regexp.MustCompile(`\(([\d, ]+)\)`)
