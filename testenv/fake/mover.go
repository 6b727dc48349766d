package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Record implements [fabric.Dataplane]; the journal has "record web_net0" and
// "record web_net0 no more".
func (d *Dataplane) Record(ctx context.Context, port string, record bool) error {
	if err := d.before(ctx, "record "+port); err != nil {
		return err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	l := d.kernel.links[port]
	_, recorded := d.recorded[port]
	switch {
	case record && (l == nil || !l.ours):
		return fmt.Errorf("record %s: %w", port, os.ErrNotExist)
	case record && !recorded:
		d.recorded[port] = 0
		d.journal.add("record " + port)
	case !record && recorded:
		delete(d.recorded, port)
		d.journal.add("record " + port + " no more")
	}
	return nil
}

// Recorded lists the ports that are recorded.
func (d *Dataplane) Recorded() []string {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return slices.Sorted(maps.Keys(d.recorded))
}

// Miss adds frames that went into a recorded port and that its guest did not take.
// Divert sends them again.
func (d *Dataplane) Miss(port string, frames int) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	if _, recorded := d.recorded[port]; recorded {
		d.recorded[port] += frames
	}
}

// Divert implements [fabric.Dataplane]; the journal has "divert 203.0.113.10/32 to
// node2" for each prefix that was not diverted to that node before.
func (d *Dataplane) Divert(ctx context.Context, ports []fabric.Port, to fabric.Node) (fabric.Diversion, error) {
	var errs []error
	var done fabric.Diversion
	for _, p := range ports {
		for _, prefix := range p.NIC.Prefixes() {
			if !to.Source(prefix.Addr()).IsValid() {
				errs = append(errs, fmt.Errorf("divert %s: node %s has no address of its family", prefix, to.Name))
				continue
			}
			if err := d.before(ctx, "divert "+prefix.String()); err != nil {
				errs = append(errs, err)
				continue
			}
			d.kernel.mu.Lock()
			if d.kernel.diverted[prefix] != to {
				d.kernel.diverted[prefix] = to
				d.journal.add("divert " + prefix.String() + " to " + to.Name)
			}
			d.kernel.mu.Unlock()
		}
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	done.At = time.Now()
	for _, p := range ports {
		if n := d.recorded[p.Name]; n > 0 {
			d.recorded[p.Name] = 0
			done.Resent += n
		}
	}
	done.Done = time.Now()
	return done, errors.Join(errs...)
}

// Return implements [fabric.Dataplane]; the journal has "return 203.0.113.10/32"
// for each prefix that was diverted.
func (d *Dataplane) Return(ctx context.Context, prefixes ...netip.Prefix) error {
	var errs []error
	for _, p := range prefixes {
		if err := d.before(ctx, "return "+p.String()); err != nil {
			errs = append(errs, err)
			continue
		}
		d.kernel.mu.Lock()
		if _, diverted := d.kernel.diverted[p]; diverted {
			delete(d.kernel.diverted, p)
			d.journal.add("return " + p.String())
		}
		d.kernel.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Diverted implements [fabric.Dataplane].
func (d *Dataplane) Diverted(ctx context.Context) ([]netip.Prefix, error) {
	if err := d.before(ctx, "list diversions"); err != nil {
		return nil, err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.kernel.diverted), netip.Prefix.Compare), nil
}

// DivertedTo returns the node to which packets for a prefix are diverted.
func (d *Dataplane) DivertedTo(p netip.Prefix) (to fabric.Node, diverted bool) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	to, diverted = d.kernel.diverted[p]
	return to, diverted
}

// Heard implements [fabric.Dataplane].
func (d *Dataplane) Heard() <-chan string { return d.heard }

// lookSilence handles a port's carrier: one that got it is silent until it is
// heard, or for [fabric.ListenFor]. The caller holds kernel.mu.
func (d *Dataplane) lookSilence(name string, carrier bool) {
	s := d.silences[name]
	switch {
	case s == nil:
	case !carrier:
		*s = silence{}
	case s.since.IsZero() && !s.over:
		now := time.Now()
		s.since = now
		time.AfterFunc(fabric.ListenFor, func() {
			d.kernel.mu.Lock()
			defer d.kernel.mu.Unlock()
			if !s.over && s.since.Equal(now) {
				s.over = true
				d.changed.Send()
			}
		})
	}
}

// silent reports whether a port with carrier was not heard yet. The caller holds
// kernel.mu.
func (d *Dataplane) silent(name string) bool {
	s := d.silences[name]
	return s != nil && !s.over
}

// Hear makes the guest of a port send a frame. If the port is incoming, or silent,
// and was not heard yet, Heard gets its name.
func (d *Dataplane) Hear(port string) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	l := d.kernel.links[port]
	if l == nil || !l.ours {
		return
	}
	for _, u := range d.kernel.users {
		if u.put[port] && l.carrier && l.port.Listen && u.silent(port) {
			select {
			case u.heard <- port:
			default: // nobody listens, to 64 of them
			}
			u.silences[port].over = true
		}
		if !u.put[port] || !l.port.Incoming || u.told[port] {
			continue
		}
		select {
		case u.heard <- port:
			u.told[port] = true
		default: // nobody listens, to 64 of them
		}
	}
}
