package reflector

import (
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/resend"
)

// openings has the sessions that are being established, and the prefixes that are
// withdrawn meanwhile. It is safe for concurrent use.
type openings struct {
	mu       sync.Mutex
	byPeer   map[netip.Addr]opening
	removals resend.Removals // empty unless a session is being established
}

// opening is a session that is being established, or was not long ago.
type opening struct {
	from time.Time // when it reached OpenConfirm
	seen time.Time // when GoBGP had marked it as established; zero: not yet
}

func newOpenings() *openings { return &openings{byPeer: map[netip.Addr]opening{}} }

// began notes that a session has reached OpenConfirm.
func (o *openings) began(a netip.Addr, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byPeer[a] = opening{from: at}
}

// established notes that GoBGP has marked a session as established, and returns the
// prefixes that were withdrawn since it began.
func (o *openings) established(a netip.Addr) []netip.Prefix {
	o.mu.Lock()
	defer o.mu.Unlock()
	one := o.byPeer[a]
	one.seen = time.Now()
	o.byPeer[a] = one
	return o.removals.Since(one.from)
}

// withdrawn notes the prefixes that are withdrawn while a session is being
// established. An event may come after the call of established: it returns such
// prefixes.
func (o *openings) withdrawn(paths []*apiutil.Path, at time.Time) (late []netip.Prefix) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for a, one := range o.byPeer {
		if at.Sub(one.from) > 2*resend.Wait {
			delete(o.byPeer, a)
		}
	}
	if len(o.byPeer) == 0 {
		o.removals = nil
		return nil
	}
	for _, p := range paths {
		nlri, ok := p.Nlri.(*bgp.IPAddrPrefix)
		if !ok || !p.Withdrawal || resend.IsPlaceholder(p) {
			continue
		}
		o.removals.Add(at, nlri.Prefix)
		for _, one := range o.byPeer {
			if !at.Before(one.from) && !one.seen.IsZero() && !at.After(one.seen) {
				late = append(late, nlri.Prefix)
				break
			}
		}
	}
	return late
}
