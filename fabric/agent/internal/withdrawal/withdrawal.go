// Package withdrawal decides whether reflectors may still have routes to what a guest
// had that is gone.
package withdrawal

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/text"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

// Case is what a node knows of the routes to what a guest had, which the node has
// withdrawn.
type Case struct {
	Sessions []fabric.Session
	Sent     []Sent                 // the prefixes that the speaker still sends, by the reflectors
	Received []fabric.ReceivedRoute // the routes of others
	Error    error                  // why the speaker does not say all of that
	NodeAt   func(netip.Addr) string

	Timers fabric.Timers
	Since  time.Time // since when the node waits
	Now    time.Time
}

// Sent is a route of this node that its speaker still sends to a reflector.
type Sent struct {
	Prefix netip.Prefix
	Peer   string
}

// Keeps is how long a reflector may keep what a node that it lost has announced: until it
// notices that, and then as a stale route (RFC 4724, RFC 9494).
func Keeps(t fabric.Timers) time.Duration { return t.Hold + t.Restart + t.LongLived }

// Remains says which route a reflector has, or may have, and until when; empty: none has
// one. A route of another node is waited for as long as it is there. What the node cannot
// know, it waits for as long as reflectors keep routes, and no longer.
func (c Case) Remains() string {
	if len(c.Received) > 0 {
		r := c.Received[0]
		via := r.Via.String()
		if node := c.NodeAt(r.Via); node != "" {
			via = fmt.Sprintf("%s (%s)", node, via)
		}
		return fmt.Sprintf("reflector %s has a route to %s via %s: see what announces it there", r.Peer, text.Prefix(r.Prefix), via)
	}
	keeps := Keeps(c.Timers)
	until := c.Since.Add(keeps)
	if !c.Now.Before(until) {
		return ""
	}
	if len(c.Sent) > 0 {
		s := c.Sent[0]
		return fmt.Sprintf("this node's speaker still announces %s to reflector %s: see that it takes up changes; this ends at %s", text.Prefix(s.Prefix), s.Peer, until.Format(time.TimeOnly))
	}
	for _, s := range c.Sessions {
		if s.State == fabric.Established || c.Now.Sub(s.Since) >= keeps {
			continue
		}
		ends := until
		if at := s.Since.Add(keeps); at.Before(ends) {
			ends = at
		}
		return fmt.Sprintf("reflector %s may keep this node's route until %s, because the session with it is %s: bring that up", s.Peer, ends.Format(time.TimeOnly), s.State)
	}
	if c.Error != nil {
		return fmt.Sprintf("the speaker does not say which routes the reflectors have (%s); this ends at %s", oneline.Of(c.Error.Error()), until.Format(time.TimeOnly))
	}
	return ""
}
