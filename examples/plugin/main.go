// Command plugin is a speaker for a routing daemon that reads routes from files. It
// keeps one file a route in the directory $ROUTES_DIR, each a static route of BIRD 2,
// and runs $ROUTES_RELOAD, such as "birdc configure", after a change.
// In BIRD's configuration:
//
//	protocol static guests4 { ipv4;
//	  include "/var/lib/routes/*.v4";
//	}                                  and likewise with ipv6 and v6
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/plugins"
)

func main() {
	s := &files{dir: cmp.Or(os.Getenv("ROUTES_DIR"), "/var/lib/routes")}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		log.Fatal(err) // the agent shows a plugin's last words
	}
	plugins.Serve(plugins.Config{Speaker: fabric.NewSpeaker(s)}) // until the agent ends; the routes stay for the next one
}

// files is a fabric.Announcer. What it announces is what lies in dir.
type files struct {
	mu  sync.Mutex // calls come at the same time
	dir string
}

func (s *files) path(p netip.Prefix) string {
	family := map[bool]string{true: ".v4", false: ".v6"}[p.Addr().Is4()]
	return filepath.Join(s.dir, strings.ReplaceAll(p.String(), "/", "_")+family)
}

func (s *files) Put(ctx context.Context, routes ...fabric.Route) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range routes { // one that is there already gets its new preference
		attrs := fmt.Sprintf("bgp_local_pref = %d;", r.Preference.LocalPref())
		for _, c := range r.Preference.Communities() {
			attrs += fmt.Sprintf(" bgp_community.add((%d, %d));", c.A, c.B)
		}
		line := fmt.Sprintf("route %s blackhole { %s };\n", r.Prefix, attrs)
		if err := os.WriteFile(s.path(r.Prefix), []byte(line), 0o644); err != nil {
			return err
		}
	}
	return reload(ctx)
}

func (s *files) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range prefixes {
		if err := os.Remove(s.path(p)); err != nil && !os.IsNotExist(err) { // absence is success
			return err
		}
	}
	return reload(ctx)
}

// Actual reads the directory: others may have been at work in it, or an earlier run.
func (s *files) Actual(context.Context) (routes []fabric.Route, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, _ := filepath.Glob(filepath.Join(s.dir, "*.v[46]"))
	for _, name := range names {
		var prefix string
		var pref fabric.Preference
		line, _ := os.ReadFile(name)
		n, _ := fmt.Sscanf(string(line), "route %s blackhole { bgp_local_pref = %d;", &prefix, &pref)
		if pref == 100 {
			pref = fabric.Normal
		}
		if p, err := netip.ParsePrefix(prefix); err == nil && n == 2 && s.path(p) == name { // else not ours, or half written
			routes = append(routes, fabric.Route{Prefix: p, Preference: pref})
		}
	}
	return routes, nil
}

// Changed never fires: the agent looks every half minute all the same.
func (s *files) Changed() <-chan struct{} { return nil }

// reload has the daemon read the files. After an error the agent puts again.
func reload(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "/bin/sh", "-c", os.Getenv("ROUTES_RELOAD")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", os.Getenv("ROUTES_RELOAD"), err, out)
	}
	return nil
}
