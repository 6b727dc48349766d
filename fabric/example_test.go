package fabric_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// printed announces routes by printing them.
type printed struct {
	mu      sync.Mutex // calls come at the same time
	routes  []fabric.Route
	changed chan struct{}
}

func (p *printed) Put(_ context.Context, routes ...fabric.Route) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range routes {
		p.remove(r.Prefix) // one that is there gets the new preference
		p.routes = append(p.routes, r)
		fmt.Println("announce", r.Prefix, "LOCAL_PREF", r.Preference.LocalPref())
	}
	return nil
}

func (p *printed) Remove(_ context.Context, prefixes ...netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, prefix := range prefixes {
		if p.remove(prefix) {
			fmt.Println("withdraw", prefix)
		}
	}
	return nil
}

func (p *printed) remove(prefix netip.Prefix) bool {
	had := len(p.routes)
	p.routes = slices.DeleteFunc(p.routes, func(r fabric.Route) bool { return r.Prefix == prefix })
	return len(p.routes) < had
}

func (p *printed) Actual(context.Context) ([]fabric.Route, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.routes), nil
}

func (p *printed) Changed() <-chan struct{} { return p.changed }

// What takes routes becomes a speaker that tells nothing of its sessions.
// testenv/conformance has the laws of a speaker, for the tests of one.
func ExampleNewSpeaker() {
	ctx := context.Background()
	s := fabric.NewSpeaker(&printed{changed: make(chan struct{}, 1)})
	v4, v6 := netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("2001:db8:100::10/128")
	_ = s.Put(ctx, fabric.Route{Prefix: v4, Preference: fabric.Fresh}, fabric.Route{Prefix: v6})
	_ = s.Put(ctx, fabric.Route{Prefix: v4})
	_ = s.Remove(ctx, v6, v6)
	routes, _ := s.Actual(ctx)
	fmt.Println(routes[0].Prefix, routes[0].Preference, len(routes))
	_, err := s.Sessions(ctx)
	fmt.Println(err)
	// Output:
	// announce 203.0.113.10/32 LOCAL_PREF 200
	// announce 2001:db8:100::10/128 LOCAL_PREF 100
	// announce 203.0.113.10/32 LOCAL_PREF 100
	// withdraw 2001:db8:100::10/128
	// 203.0.113.10/32 normal 1
	// unsupported operation
}
