package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/endure"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// see looks at every node, every reflector and the core gateway.
func (e *endurance) see(ctx context.Context) (endure.Seen, error) {
	s := endure.Seen{Nodes: map[string]endure.Node{}, Routers: map[string][]endure.Path{}, Way: map[netip.Prefix]string{}}
	var errs []error
	for name := range e.top.Nodes {
		n, err := e.seeNode(ctx, name)
		s.Nodes[name], errs = n, append(errs, err)
	}
	for _, name := range append(slices.Clone(e.world.Reflectors), coreName) {
		routes, err := e.routers[name].Routes(ctx)
		errs = append(errs, err)
		for _, r := range routes {
			s.Routers[name] = append(s.Routers[name], endure.Path{Prefix: r.Prefix, From: e.hostAt(r.From), By: e.hostAt(r.NextHop), LocalPref: r.LocalPref})
		}
	}
	for _, list := range []func() ([]core.Route, error){e.top.Core.Routes4, e.top.Core.Routes6} {
		routes, err := list()
		errs = append(errs, err)
		for _, r := range routes {
			for _, via := range r.Vias() {
				s.Way[r.Prefix] = e.hostAt(via)
			}
		}
	}
	return s, errors.Join(errs...)
}

// hostAt names the node or reflector that has an address of the underlay.
func (e *endurance) hostAt(a netip.Addr) string {
	for _, hosts := range []map[string]*core.Host{e.top.Nodes, e.top.Reflectors} {
		for name, h := range hosts {
			if a == addressOf(h, a.Is6()) {
				return name
			}
		}
	}
	return "a stranger at " + a.String()
}

func (e *endurance) seeNode(ctx context.Context, name string) (endure.Node, error) {
	h := e.top.Nodes[name]
	n := endure.Node{Ports: map[string]string{}}
	links, err := h.Netlink().LinkList()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // what is missing is looked for again
	}
	if err != nil {
		return n, err
	}
	for _, l := range links {
		if f := strings.Split(l.Attrs().Alias, ":"); len(f) == 4 && f[0] == "vmfabric" {
			n.Ports[l.Attrs().Name] = f[2]
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.Routes(family, 0)
		if err != nil {
			return n, err
		}
		for _, r := range routes {
			switch {
			case r.Table == fabric.ArrivingTable || r.Table == fabric.DivertedTable:
				n.Strays = append(n.Strays, r.String())
			case r.Protocol == fabric.Protocol && r.Table == mainTable && len(r.Hops) == 1:
				n.Routes = append(n.Routes, endure.Route{Prefix: r.Prefix, Link: r.Hops[0].Link, Announces: r.Metric < fabric.PortMetric})
			}
		}
	}
	if n.Tables, err = tables(h); err != nil {
		return n, err
	}
	files, err := filepath.Glob(filepath.Join(h.Dir(), "state", "guests", "*.json"))
	if err != nil {
		return n, err
	}
	for _, f := range files {
		n.Kept = append(n.Kept, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	return n, e.ask(ctx, name, &n)
}

const mainTable = 254

// tables names the nftables tables of the fabric on a host.
func tables(h *core.Host) (names []string, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(h.NsHandle())))
	if err != nil {
		return nil, err
	}
	all, err := c.ListTables()
	for _, t := range all {
		if strings.HasPrefix(t.Name, "vmfabric") && !strings.HasSuffix(t.Name, "_trial") {
			names = append(names, fmt.Sprintf("%d %s", t.Family, t.Name))
		}
	}
	slices.Sort(names)
	return names, err
}

// ask asks a node's agent how it is.
func (e *endurance) ask(ctx context.Context, name string, n *endure.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	reply, err := hooks.Call(ctx, e.agents[name].socket, hooks.Request{Op: hooks.Status})
	if err != nil {
		n.Problems = []string{err.Error()}
		return nil
	}
	st := reply.Status
	n.Live, n.Problems = st.Live, st.Problems
	for _, s := range st.Sessions {
		if s.State != fabric.Established {
			n.Sessions = append(n.Sessions, s.Peer+" is "+s.State)
		}
	}
	for _, s := range st.Sources {
		if !s.Connected {
			n.Sessions = append(n.Sessions, s.Name)
		}
	}
	return nil
}

// silent lists the addresses of guests that run and that do not answer the client.
func (e *endurance) silent(ctx context.Context, within time.Duration) (all []netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, g := range e.world.Running() {
		for _, p := range g.Prefixes {
			a := p.Addr()
			if !p.IsSingleIP() {
				a = a.Next()
			}
			asking.Go(func() {
				if _, err := e.top.Client.Ping(ctx, a); err != nil {
					mu.Lock()
					defer mu.Unlock()
					all = append(all, a)
				}
			})
		}
	}
	asking.Wait()
	return all
}

// wrong lists what is not as it should be now.
func (e *endurance) wrong(ctx context.Context) []string {
	s, err := e.see(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	if wrong := e.world.Wrong(s); len(wrong) > 0 {
		return wrong
	}
	s.Silent = e.silent(ctx, 3*time.Second)
	return e.world.Wrong(s)
}
