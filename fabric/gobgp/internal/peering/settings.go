// Package peering has what every GoBGP server of the fabric needs: its start, the
// configuration of its peers, and the names of their states.
package peering

import (
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/vmfabric/vmfabric/fabric"
)

// Segment is the size of a session's TCP segments that every path passes (RFC 8200, 5).
// Where larger packets vanish without a word, a session would stand still with its first
// full table, and begin anew, for ever.
const Segment = 1280 - 40 - 20

// Timers returns the timers of a cluster in GoBGP's terms.
func Timers(t fabric.Timers) *api.Timers {
	hold := uint64(t.Hold / time.Second)
	return &api.Timers{Config: &api.TimersConfig{
		ConnectRetry: uint64(t.ConnectRetry / time.Second), IdleHoldTimeAfterReset: 1, HoldTime: hold, KeepaliveInterval: hold / 3,
	}}
}

// LongLived turns long-lived graceful restart (RFC 9494) with a peer on if the
// cluster has it.
func LongLived(p *api.Peer, t fabric.Timers) {
	if t.LongLived == 0 {
		return
	}
	p.GracefulRestart.LonglivedEnabled = true
	for _, f := range p.AfiSafis {
		f.LongLivedGracefulRestart = &api.LongLivedGracefulRestart{
			Config: &api.LongLivedGracefulRestartConfig{Enabled: true, RestartTime: uint32(t.LongLived.Seconds())},
		}
	}
}

// BothFamilies returns IPv4 and IPv6 unicast, each with graceful restart.
func BothFamilies() []*api.AfiSafi {
	var all []*api.AfiSafi
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		all = append(all, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	return all
}
