package reflector

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// GoBGP (v4.8.0) packs together all changes that wait for a peer. Of each path it
// packs the last change. Several nodes may have a path to one prefix: of these it
// packs the withdrawals first and then the announcements in no order. So when the
// best route of a prefix goes from one node's to another's and on within moments,
// as it may when a guest moves, a peer can keep a route that is no longer the best,
// or that is withdrawn. No event reports that. order finds such prefixes by the
// changes of the best route. The reflector sends every peer the table again when
// the changes have stopped.

const (
	// mixWindow is far longer than a change waits for a peer that reads what it
	// receives.
	mixWindow = 5 * time.Second
	// firstOrder is how long after the last such change the reflector sends the
	// table again, and lastOrder how long after that it does so once more: the
	// first table may have been packed together with changes that still waited.
	firstOrder = 300 * time.Millisecond
	lastOrder  = 3 * time.Second
)

// order finds prefixes whose changes may reach a peer in the wrong order. It is
// safe for concurrent use.
type order struct {
	found signal.Signal

	mu     sync.Mutex
	last   map[netip.Prefix]bestChange // the last change of each prefix, within mixWindow or little more
	mixed  map[netip.Prefix]bool       // the prefixes found since the table was last sent again; true: withdrawn
	pruned time.Time
}

// bestChange is a change of the best route of a prefix.
type bestChange struct {
	by netip.Addr // the peer whose route it is
	at time.Time
}

func newOrder() *order {
	return &order{found: signal.New(), last: map[netip.Prefix]bestChange{}, mixed: map[netip.Prefix]bool{}}
}

// note takes the changes of best routes.
func (o *order) note(paths []*apiutil.Path, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at.Sub(o.pruned) > mixWindow {
		o.pruned = at
		for p, c := range o.last {
			if at.Sub(c.at) > mixWindow {
				delete(o.last, p)
			}
		}
	}
	for _, p := range paths {
		nlri, ok := p.Nlri.(*bgp.IPAddrPrefix)
		if !ok || resend.IsPlaceholder(p) {
			continue
		}
		last, recent := o.last[nlri.Prefix]
		o.last[nlri.Prefix] = bestChange{p.PeerAddress, at}
		_, mixed := o.mixed[nlri.Prefix]
		if mixed || recent && last.by != p.PeerAddress && at.Sub(last.at) < mixWindow {
			o.mixed[nlri.Prefix] = p.Withdrawal
			o.found.Send()
		}
	}
}

// withdrawn returns the found prefixes that have no route now.
func (o *order) withdrawn() (ps []netip.Prefix) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for p, gone := range o.mixed {
		if gone {
			ps = append(ps, p)
		}
	}
	return ps
}

// forget drops the found prefixes: the table is being sent again.
func (o *order) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.mixed)
}

// keepOrder sends every peer the table again after order has found a prefix, until
// ctx ends.
func (r *Reflector) keepOrder(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.order.found:
		}
		for rest := firstOrder; ; rest = lastOrder {
			if !backoff.Sleep(ctx, rest) {
				return
			}
			if len(r.order.found) > 0 && rest == firstOrder {
				break // the changes have not stopped yet
			}
			gone := r.order.withdrawn()
			if rest == lastOrder {
				r.order.forget()
			}
			r.resendAll(ctx)
			r.withdrawAgain(gone)
			if rest == lastOrder {
				break
			}
		}
	}
}

// resendAll sends the table again to every peer that has a session.
func (r *Reflector) resendAll(ctx context.Context) {
	for _, n := range r.peers.up() {
		if err := resend.Table(ctx, r.bgp, n.address.String()); err != nil && ctx.Err() == nil {
			r.log.Debug("routes not sent again", "peer", n.name, "address", n.address, "err", err)
		}
	}
}
