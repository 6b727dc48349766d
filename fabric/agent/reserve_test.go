package agent_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// change is one of web from an address to another that hangs in the dataplane,
// and db, which would like to have either.
type change struct {
	*node
	old, new string
	release  func() // lets the dataplane go on
	cancel   func() // makes the change fail; it is undone when the dataplane goes on
	ended    chan error
}

func eachChange(t *testing.T, f func(t *testing.T, c *change)) {
	for family, addr := range map[string][2]string{
		"IPv4": {"203.0.113.10", "203.0.113.11"}, "IPv6": {"2001:db8:100:1::10", "2001:db8:100:1::11"},
		"IPv4 route": {"203.0.113.9 198.51.100.0/29", "203.0.113.9 198.51.100.8/29"},
	} {
		t.Run(family, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				c := &change{node: n, old: addr[0], new: addr[1], ended: make(chan error, 1)}
				n.apply(guest("web", c.old), fabric.Live)
				c.release = n.dataplane.Hang("wire web_net0")
				var ctx context.Context
				ctx, c.cancel = context.WithCancel(t.Context())
				defer c.cancel()
				go func() { c.ended <- n.Apply(ctx, guest("web", c.new), fabric.Live) }()
				synctest.Wait()
				c.refuses(c.old)
				c.refuses(c.new)
				f(t, c)
				n.holdsOnce()
			})
		})
	}
}

// other is db with what of web's it would like to have.
func other(address string) fabric.VM {
	if len(address) > 24 { // a route
		return guest("db", "203.0.113.99 "+address[len("203.0.113.9 "):])
	}
	return guest("db", address)
}

func (c *change) refuses(address string) {
	c.t.Helper()
	require.ErrorIs(c.t, c.Apply(c.t.Context(), other(address), fabric.Live), fabric.ErrRefused, address)
}

// admits lets db have an address for a moment.
func (c *change) admits(address string) {
	c.t.Helper()
	c.apply(other(address), fabric.Live)
	c.apply(fabric.VM{Name: "db"}, fabric.Absent)
}

// holdsOnce checks that no two guests are live with one prefix.
func (n *node) holdsOnce() {
	n.t.Helper()
	ports, err := n.List(n.t.Context())
	require.NoError(n.t, err)
	holder := map[string]string{}
	for _, p := range ports {
		for _, text := range texts(fabric.NIC{Addresses: p.Addresses, Routes: p.Routes}.Prefixes()) {
			assert.Empty(n.t, holder[text], "%s is also that of %s", text, p.VM)
			holder[text] = p.VM
		}
	}
}

func TestAddressesOfAChangeThatSucceeds(t *testing.T) {
	eachChange(t, func(t *testing.T, c *change) {
		c.release()
		require.NoError(t, <-c.ended)
		c.refuses(c.new)
		c.apply(other(c.old), fabric.Live)
		c.holds(want{guest("web", c.new), fabric.Live}, want{other(c.old), fabric.Live})
	})
}

func TestAddressesOfAChangeThatFails(t *testing.T) {
	eachChange(t, func(t *testing.T, c *change) {
		c.cancel()
		synctest.Wait() // in the dataplane, to be put back as it was
		c.refuses(c.old)
		c.refuses(c.new)
		c.release()
		require.ErrorIs(t, <-c.ended, context.Canceled)
		c.refuses(c.old)
		c.apply(other(c.new), fabric.Live)
		c.holds(want{guest("web", c.old), fabric.Live}, want{other(c.new), fabric.Live})
	})
}

func TestAddressesOfAChangeThatCannotBeUndone(t *testing.T) {
	eachChange(t, func(t *testing.T, c *change) {
		c.dataplane.Fail("wire web_net0", errors.New("no memory"))
		c.release()
		require.ErrorContains(t, <-c.ended, "no memory")
		c.refuses(c.old)
		c.refuses(c.new) // nobody knows whether its port has it
		c.dataplane.Fail("wire web_net0", nil)
		time.Sleep(5 * time.Second) // until it is tried again
		c.refuses(c.old)
		c.admits(c.new)
		c.holds(want{guest("web", c.old), fabric.Live})
	})
}

func TestAddressesOfAChangeThatIsDetached(t *testing.T) {
	for name, end := range map[string]func(*change){
		"and succeeds": func(c *change) {
			c.release()
			require.NoError(c.t, <-c.ended)
		},
		"and fails": func(c *change) {
			c.cancel()
			c.release()
			<-c.ended
		},
		"and cannot be undone": func(c *change) {
			c.dataplane.Fail("wire web_net0", errors.New("no memory"))
			c.release()
			<-c.ended
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachChange(t, func(t *testing.T, c *change) {
				gone := make(chan error, 1)
				go func() { gone <- c.Apply(t.Context(), fabric.VM{Name: "web"}, fabric.Absent) }()
				c.refuses(c.old) // the change comes first, and this waits for it
				c.refuses(c.new)
				end(c)
				require.NoError(t, <-gone)
				c.admits(c.old)
				c.admits(c.new)
				c.holds()
			})
		})
	}
}

// A guest that runs is not put back: what it had stays its own until it has the
// new for good.
func TestAddressesOfARunningGuestThatIsNotAsWantedYet(t *testing.T) {
	for family, addr := range map[string][2]string{
		"IPv4": {"203.0.113.10", "203.0.113.11"}, "IPv6": {"2001:db8:100:1::10", "2001:db8:100:1::11"},
	} {
		t.Run(family, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				c := &change{node: n, old: addr[0], new: addr[1]}
				n.apply(guest("web", c.old), fabric.Live)
				n.dataplane.Fail("wire web_net0", errors.New("no memory"))
				require.Error(t, n.Started(t.Context(), guest("web", c.new)))
				time.Sleep(5 * time.Second)
				c.refuses(c.old)
				c.refuses(c.new)
				n.dataplane.Fail("wire web_net0", nil)
				time.Sleep(5 * time.Second)
				c.admits(c.old)
				c.refuses(c.new)
				c.holds(want{guest("web", c.new), fabric.Live})
			})
		})
	}
}

// A NIC less: its port goes with the change, and with its undoing it stays.
func TestPortsOfAChange(t *testing.T) {
	for name, fails := range map[string]bool{"that succeeds": false, "that fails": true} {
		t.Run(name, func(t *testing.T) {
			runs(t, nil, func(t *testing.T, n *node) {
				two := guest("web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11")
				one := guest("web", "203.0.113.10 2001:db8:100:1::10")
				n.apply(two, fabric.Live)
				if !fails {
					n.apply(one, fabric.Live)
					n.holds(want{one, fabric.Live})
					return
				}
				n.speaker.Fail("withdraw", errors.New("the speaker is gone"))
				require.Error(t, n.Apply(t.Context(), one, fabric.Live))
				n.speaker.Fail("withdraw", nil)
				time.Sleep(5 * time.Second)
				n.holds(want{two, fabric.Live})
				n.apply(one, fabric.Live)
				n.holds(want{one, fabric.Live})
			})
		})
	}
}
