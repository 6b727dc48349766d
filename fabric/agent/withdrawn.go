package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent/internal/withdrawal"
)

// waiting is why the addresses of a guest that is gone are not given back yet.
type waiting string

func (w waiting) Error() string { return string(w) }

// delay is how long, and for what, the addresses of a guest that is gone have waited.
type delay struct {
	since time.Time
	text  string
}

// remaining gives a [waiting] error while reflectors may have routes to what a guest had
// that is gone; nil: none has.
func (a *Agent) remaining(ctx context.Context, guest fabric.Identity, prefixes []netip.Prefix) error {
	ctx, cancel := context.WithTimeout(ctx, sessionTime)
	defer cancel()
	c := withdrawal.Case{Timers: a.cluster().Timers, Since: a.registration.waitsSince(guest), Now: time.Now(), NodeAt: func(at netip.Addr) string {
		node, _ := a.nodeAt(at)
		return node
	}}
	known := func(err error) {
		if c.Error == nil && !errors.Is(err, errors.ErrUnsupported) {
			c.Error = err
		}
	}
	var err error
	c.Sessions, err = a.speaker.Sessions(ctx)
	known(err)
	c.Received, err = a.speaker.Received(ctx, prefixes...)
	known(err)
	for _, p := range prefixes {
		sent, err := a.speaker.Advertisements(ctx, p)
		known(err)
		for _, to := range sent {
			if to.Sent {
				c.Sent = append(c.Sent, withdrawal.Sent{Prefix: p, Peer: to.Peer})
			}
		}
	}
	if text := c.Remains(); text != "" {
		return waiting(text)
	}
	return nil
}

// waitsSince gives since when the addresses of a guest wait: from now on, if they did not
// before.
func (r *registration) waitsSince(guest fabric.Identity) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, waits := r.delays[guest]
	if !waits {
		d.since = time.Now()
		r.delays[guest] = d
	}
	return d.since
}

// waitsFor gives what the addresses of a guest wait for; empty: nothing.
func (r *registration) waitsFor(guest fabric.Identity) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.delays[guest].text
}

// noteDelay notes what the addresses of a guest wait for that is gone, for Status and for
// the list of addresses.
func (a *Agent) noteDelay(guest fabric.VM, err error) {
	r := &a.registration
	var why waiting
	if waits := errors.As(err, &why); !waits {
		return // the registry does not answer, and says so itself
	}
	r.mu.Lock()
	d := r.delays[guest.Identity()]
	d.text = why.Error()
	r.delays[guest.Identity()] = d
	r.mu.Unlock()
	a.conditions.set(delayed(guest.Identity()), a.because(fabric.AddressesWait, fmt.Errorf("guest %s is gone for good, and its addresses are not given back yet: %w; or release them by hand", guest.Name, err)))
}

// delayed is the key of the condition that a guest's addresses wait.
func delayed(guest fabric.Identity) string { return "gone " + string(guest) }
