package reflector

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// routeCounts counts the routes of each peer that the policy accepts, and keeps the
// numbers until the peer has sent other routes. It is safe for concurrent use, and
// counts for one peer at a time.
type routeCounts struct {
	bgp *server.BgpServer

	mu     sync.Mutex
	byPeer map[netip.Addr]routeCount
}

// routeCount is the number of a peer's routes that the policy accepts, after a number of
// its updates.
type routeCount struct {
	updates    uint64
	received   [2]uint64
	at         time.Time
	accepted   [2]uint64
	refused    []netip.Prefix
	incomplete bool
}

// countAge bounds how long a count is used: GoBGP may count an update just before
// it has the routes of it.
const countAge = 30 * time.Second

// examples is how many refused prefixes a [Peer] lists.
const examples = 3

// families are in the order in which GoBGP gets them.
var families = [2]bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC}

// of returns the number of a peer's routes that the policy accepts. GoBGP's own
// number of accepted routes ignores a policy of the whole table.
func (c *routeCounts) of(a netip.Addr, p *api.Peer, received [2]uint64) routeCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	updates := p.GetState().GetMessages().GetReceived().GetUpdate()
	have, known := c.byPeer[a]
	if known && have.updates == updates && have.received == received && time.Since(have.at) < countAge && !have.incomplete {
		return have
	}
	is := routeCount{updates: updates, received: received, at: time.Now()}
	for i, f := range families {
		if received[i] == 0 {
			continue
		}
		req := apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: a.String(), Family: f, EnableFiltered: true}
		err := c.bgp.ListPath(req, func(prefix bgp.NLRI, paths []*apiutil.Path) {
			if len(paths) > 0 && !paths[0].Filtered {
				is.accepted[i]++
			} else if ip, ok := prefix.(*bgp.IPAddrPrefix); ok && len(is.refused) < examples {
				is.refused = append(is.refused, ip.Prefix)
			}
		})
		if err != nil { // the peer has gone meanwhile
			is.incomplete = true
		}
	}
	c.byPeer[a] = is
	return is
}

// drop drops the numbers of a peer.
func (c *routeCounts) drop(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byPeer, a)
}

// keep drops the numbers of the peers for which kept is false.
func (c *routeCounts) keep(kept func(netip.Addr) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.byPeer, func(a netip.Addr, _ routeCount) bool { return !kept(a) })
}
