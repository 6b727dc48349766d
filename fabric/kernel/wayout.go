package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/signal"
	"golang.org/x/sys/unix"
)

// waysOut knows, for each family of guests, whether the kernel has a route to the
// outside for their packets. A trial cannot tell: a table of its own routes its
// packets.
type waysOut struct {
	guests   *addressList // one address that a guest may have, of each family
	lookup   wayLookup
	withheld func(v6 bool) bool // the node announces nothing of the family, so no guest needs a way
	log      func(msg string, args ...any)
	kick     signal.Signal

	looking sync.Mutex // held during a look

	mu     sync.Mutex
	faults map[uint8]string // by family
}

// lookShare bounds the cost of looks: on a node without a way each lists all
// routes. After a look, the next waits lookShare times as long as it took.
const lookShare = 20

func newWaysOut(cfg Config, guests *addressList) *waysOut {
	return &waysOut{
		guests: guests, lookup: newWayLookup(cfg), kick: signal.New(), faults: map[uint8]string{},
	}
}

// openWaysOut looks for the first time. run looks again after every change.
func (d *Dataplane) openWaysOut() error {
	w := d.waysOut
	var err error
	if w.lookup.rtnl, err = dial(); err != nil {
		return err
	}
	w.lookup.port, w.log = d.watch.cache.anyPort, d.log.Warn
	w.withheld = func(v6 bool) bool { return d.NextHop(v6) != nil }
	w.look()
	return nil
}

func (w *waysOut) close() error {
	if w.lookup.rtnl == nil {
		return nil
	}
	return w.lookup.rtnl.Close()
}

// run looks after each change that a way may depend on. It waits until the changes
// have settled, and at least in proportion to the time of the last look.
func (w *waysOut) run(ctx context.Context) {
	rest := time.Duration(0)
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		}
		wait.Reset(max(settleAfter, rest))
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		began := time.Now()
		w.look()
		rest = lookShare * time.Since(began)
	}
}

// changed makes run look soon.
func (w *waysOut) changed() { w.kick.Send() }

// concerns reports whether a way may depend on the subject of a notification: a
// route that is not the fabric's, a rule, or a link or address, with which the
// kernel drops routes without a notification.
func (w *waysOut) concerns(m netlink.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[5] != routeProtocol && m.Data[5] != fabric.PeerProtocol
	case unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	}
	return isLink(m)
}

// look asks the kernel for each family, and keeps the results.
func (w *waysOut) look() {
	w.looking.Lock()
	defer w.looking.Unlock()
	for _, guest := range w.guests.get() {
		family := familyOf(guest)
		text, err := w.lookup.fault(guest)
		w.mu.Lock()
		if err == nil && w.faults[family] != text {
			w.faults[family] = text
			if text != "" {
				w.log("way out", "fault", text)
			}
		}
		w.mu.Unlock()
	}
}

// reconfigure has later looks go by another configuration, and asks for one.
func (w *waysOut) reconfigure(cfg Config) {
	w.looking.Lock()
	w.lookup.configure(cfg)
	w.looking.Unlock()
	w.changed()
}

// list returns the faults that the last look found.
func (w *waysOut) list() (faults []fabric.ForwardingFault) {
	for _, guest := range w.guests.get() {
		w.mu.Lock()
		text := w.faults[familyOf(guest)]
		w.mu.Unlock()
		if text != "" && !w.withheld(guest.Is6()) {
			faults = append(faults, fabric.ForwardingFault{Family: fmt.Sprintf("IPv%d", version(familyOf(guest))), Text: text})
		}
	}
	return faults
}

// anyPort returns a port that is up, and an address of a family that its guest has,
// or zero values.
func (c *netlinkCache) anyPort(v6 bool) (index int32, guest netip.Addr) {
	m, done := c.open()
	defer done()
	for i, l := range m.links {
		if _, _, _, ours := fabric.ParseAlias(l.alias); !ours || !l.up() {
			continue
		}
		for _, r := range l.routes {
			if r.prefix.IsSingleIP() && !r.via.IsValid() && r.prefix.Addr().Is6() == v6 {
				return i, r.prefix.Addr()
			}
		}
	}
	return 0, netip.Addr{}
}
