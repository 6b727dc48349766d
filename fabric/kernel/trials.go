package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// trials makes trials of all ways of guests' packets through the node. One
// goroutine at a time makes one.
type trials struct {
	guests   addressList // one address that a guest may have, of each family that is to pass
	underlay *underlay
	rtnl     *socket
	ipv6     bool
	repair   func()      // repairs the settings that the agent itself keeps; nil without one
	filter   func()      // brings the fabric's own source checks in step with exempted; nil without an agent
	trying   atomic.Bool // a trial sends packets from the throw-away port
}

// exempt lets the throw-away port send from guests' addresses, which are routed
// elsewhere, or nowhere.
func (x *trials) exempt(on bool) {
	x.trying.Store(on)
	if x.filter != nil {
		x.filter()
	}
}

// exempted lists the sources that the throw-away port may send from.
func (x *trials) exempted() (sources []netip.Prefix) {
	if !x.trying.Load() {
		return nil
	}
	for _, a := range x.guests.get() {
		sources = append(sources, fabric.HostPrefix(a))
	}
	return sources
}

// links returns the links of the underlay that are up.
func (x *trials) links() (links []link, err error) {
	names, err := x.underlay.links()
	for _, name := range names {
		if l, err := x.rtnl.linkByName(name); err == nil && l.up() {
			links = append(links, l)
		}
	}
	return links, err
}

// run tries every way of every link and family.
func (x *trials) run(ctx context.Context, links []link) (found findings, err error) {
	if len(links) == 0 {
		return found, nil // no link leads anywhere; the BGP sessions say so
	}
	if x.repair != nil {
		x.repair()
	}
	x.exempt(true)
	defer x.exempt(false)
	t, err := openTrial(ctx, x.rtnl, x.ipv6)
	if err != nil {
		return found, err
	}
	defer func() {
		if cerr := t.close(); err == nil {
			err = cerr
		}
	}()
	var all []lost
	for _, l := range links {
		for _, guest := range x.guests.get() {
			some, err := x.course(ctx, t, l, guest)
			if err != nil {
				return found, err
			}
			all = append(all, some...)
		}
	}
	found.unnotified = slices.ContainsFunc(all, func(l lost) bool { return l.unnotified })
	found.faults = faults(all, len(links))
	return found, nil
}

// course tries the ways of one family over one link. It sends a packet that seems
// lost a second time.
func (x *trials) course(ctx context.Context, t *trial, l link, guest netip.Addr) ([]lost, error) {
	c := course{family: familyOf(guest), link: l, guest: guest}
	c.remote = remotes[c.family]
	c.sender = x.sender(c)
	evidence := evidence{legacy: legacyTables(c.family), setting: func(path string) string { v, _ := readSysctl(path); return v }}
	ways := func(do func(w way) error) error {
		for _, inbound := range []bool{true, false} {
			for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				if err := do(way{c.family, inbound, proto, l.name}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var all []lost
	if o, off := settingObstacle(way{family: c.family, link: l.name}, evidence); off {
		// All ways of the family are closed; a trial is not needed.
		err := ways(func(w way) error { all = append(all, lost{w, o, true}); return nil })
		return all, err
	}
	if err := t.prepare(c); err != nil {
		return nil, err
	}
	err := ways(func(w way) error {
		o, err := t.send(ctx, c, w, trialWait)
		if err == nil && !o.passed {
			if o.dropper().table == tableName {
				// The fabric's own table was made anew meanwhile, by the watcher or
				// after somebody flushed all rules.
				x.exempt(true)
			}
			if o, err = t.send(ctx, c, w, t.patience); err == nil && !o.passed && o.dropper().table == "" {
				t.patience = trialWait
			}
		}
		if err != nil || o.passed || x.filter == nil && o.dropper().table == tableName {
			return err // the table of an agent that does not run is no obstacle
		}
		if evidence.chains == nil {
			if evidence.chains, err = listChains(); err != nil {
				return err
			}
		}
		all = append(all, lost{w, explain(w, o, evidence), o.dropper().table == ""})
		return nil
	})
	return all, err
}

// sender returns a source that passes the link's own reverse path filter: a host of
// the Internet if its route is by this link, else a machine of the underlay.
func (x *trials) sender(c course) netip.Addr {
	for _, a := range append([]netip.Addr{c.remote}, x.underlay.machines.get()...) {
		if familyOf(a) != c.family {
			continue
		}
		replies, err := x.rtnl.Do(routeRequest(a, 0))
		if err != nil {
			continue
		}
		for _, reply := range replies {
			if slices.Contains(routeLinks(reply.Data), c.link.index) {
				return a
			}
		}
	}
	return c.remote
}

// legacyTables lists the tables of a family that iptables-legacy has made.
func legacyTables(family uint8) []string {
	path := "/proc/thread-self/net/ip_tables_names"
	if family == unix.AF_INET6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

func listChains() ([]chain, error) {
	c, err := openTables()
	if err != nil {
		return nil, err
	}
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables chains: %w", err)
	}
	chains := make([]chain, 0, len(all))
	for _, c := range all {
		chains = append(chains, chain{uint8(c.Table.Family), c.Table.Name, c.Name})
	}
	return chains, nil
}
