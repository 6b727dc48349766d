package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/gobgp/router"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// demoCoreCommand is the core gateway of the demonstration: it puts the routes that
// it learns into the kernel.
func demoCoreCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "core", Hidden: true, Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := clusterfile.Load(config)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			fib, err := kernel.NewFIB(cmd.Context(), kernel.FIBConfig{Protocol: unix.RTPROT_BGP, Metric: fabric.PeerMetric, Logger: log})
			if err != nil {
				return err
			}
			r := router.New(router.Config{
				ASN: c.ASN, Address: c.Core[0].Address, Reflectors: c.Reflectors, Timers: c.Timers,
				Learned: func(l router.Route) {
					if l.NextHop.IsValid() {
						fib.Put(l.Prefix, l.NextHop)
					} else {
						fib.Remove(l.Prefix)
					}
				},
			}, log)
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return fib.Run(ctx) })
			group.Go(func() error { return r.Run(ctx) })
			return errors.Join(group.Wait(), fib.Close())
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultConfig, "the cluster file")
	return cmd
}

// routeLog notes when routes to guests arrive in a host's kernel.
type routeLog struct {
	mu     sync.Mutex
	routes map[netip.Prefix]logged
	woken  chan struct{} // closed and renewed with every change
}

type logged struct {
	at  time.Time
	via netip.Addr
}

// watchRoutes follows a host's routes until the program ends.
func watchRoutes(h *core.Host) (*routeLog, error) {
	l := &routeLog{routes: map[netip.Prefix]logged{}, woken: make(chan struct{})}
	updates := make(chan netlink.RouteUpdate, 1024)
	if err := netlink.RouteSubscribeAt(h.NsHandle(), updates, nil); err != nil {
		return nil, fmt.Errorf("watch the routes of %s: %w", h.Name(), err)
	}
	go func() {
		for u := range updates {
			l.note(u)
		}
	}()
	return l, nil
}

func (l *routeLog) note(u netlink.RouteUpdate) {
	if u.Dst == nil || u.Route.Table != unix.RT_TABLE_MAIN {
		return
	}
	addr, ok := netip.AddrFromSlice(u.Dst.IP)
	bits, _ := u.Dst.Mask.Size()
	if !ok {
		return
	}
	via, _ := netip.AddrFromSlice(u.Gw)
	p := netip.PrefixFrom(addr.Unmap(), bits)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case u.Type == unix.RTM_NEWROUTE:
		l.routes[p] = logged{time.Now(), via.Unmap()}
	case l.routes[p].via == via.Unmap():
		delete(l.routes, p)
	}
	close(l.woken)
	l.woken = make(chan struct{})
}

// wait waits for a route to the prefix.
func (l *routeLog) wait(ctx context.Context, p netip.Prefix) error {
	for {
		l.mu.Lock()
		_, ok := l.routes[p]
		woken := l.woken
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not reach the core gateway", p)
		case <-woken:
		}
	}
}

func (l *routeLog) seen(p netip.Prefix) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routes[p].at
}

func (l *routeLog) via(p netip.Prefix) netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routes[p].via
}

// leadsTo returns an error unless the route to a prefix leads to a node.
func (l *routeLog) leadsTo(p netip.Prefix, n fabric.Node) error {
	if via := l.via(p); via != n.Source(p.Addr()) {
		return fmt.Errorf("%s still goes via %s, not %s", p, via, n.Name)
	}
	return nil
}
