package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/internal/signal"
)

const (
	// settleAfter is how long a port may look wrong before it counts: the
	// notifications of one change come one by one.
	settleAfter = 20 * time.Millisecond
	// verifyEvery is how often the watcher checks the settings of which the kernel
	// gives no notification. It checks at most verifyAtMost ports at a time, which
	// bounds the cost to about one hundredth of a processor.
	verifyEvery  = 500 * time.Millisecond
	verifyAtMost = 250
)

// watcher is the dataplane's view of the kernel's notifications. It signals when a
// port is not as it was put.
type watcher struct {
	d        *Dataplane
	feed     following
	place    *rtnl.Follower
	loaded   bool // of Load alone: it was called before
	cache    *netlinkCache
	changed  signal.Signal
	suspects *suspects
	links    linkFollowers
}

// newWatcher returns a watcher that has not joined a feed yet.
func newWatcher(d *Dataplane) *watcher {
	return &watcher{d: d, cache: newNetlinkCache(), changed: signal.New(), suspects: newSuspects()}
}

// join loads what the kernel has, and subscribes to the changes. close ends that, also
// after an error.
func (w *watcher) join(ctx context.Context, n *Netlink) (err error) {
	if w.feed, err = connect(n, w.d.log); err != nil {
		return err
	}
	if w.place, err = w.feed.Join(ctx, w, rtnl.Wants{Links: true, Addresses: true, Protocols: []uint8{routeProtocol}}); err != nil {
		return fmt.Errorf("list ports: %w", err)
	}
	w.d.host.protect(nil) // the chains of an earlier process stay until the agent has put its ports
	return nil
}

func (w *watcher) close() error {
	if w.place != nil {
		w.place.Leave()
	}
	if w.feed.Feed == nil {
		return nil
	}
	return w.feed.end()
}

// Apply implements [rtnl.View].
func (w *watcher) Apply(msgs []netlink.Message) {
	cached, done := w.cache.open()
	var names, links []string
	hops, ways := false, false
	for _, m := range msgs {
		ways = ways || w.d.waysOut.concerns(m)
		if m.Header.Type == unix.RTM_NEWNETCONF {
			names = append(names, w.reconfigured(cached, m.Data)...)
			continue
		}
		if m.Header.Type == unix.RTM_DELRULE {
			w.suspects.addRules()
			continue
		}
		if index, deleted := deletedLink(m); deleted {
			w.d.responder.gone(index)
		}
		hops = w.d.hops.apply(m) || hops
		concerned := cached.apply(m)
		names = append(names, concerned...)
		if isLink(m) {
			links = append(links, concerned...)
		}
	}
	flaps := cached.flaps
	cached.flaps = nil
	done()
	for _, f := range flaps {
		w.d.moves.carrier(f.name, f.index, f.up)
	}
	w.links.publish(links, false)
	w.suspects.addPorts(names...)
	if ways {
		w.d.waysOut.changed()
	}
	if hops {
		w.d.forwarding.changed(true)
	}
	if awaited := w.d.ports.appeared(names); awaited || len(flaps) > 0 || hops {
		w.changed.Send()
	}
}

// Load implements [rtnl.View].
func (w *watcher) Load(l rtnl.Listing) {
	w.cache.load(l, !w.loaded)
	w.d.hops.load(l.Addresses)
	if w.loaded { // notifications were lost
		w.d.waysOut.changed()
		w.changed.Send()
		w.links.publish(nil, true)
	}
	w.loaded = true
}

// reconfigured returns the port whose setting a notification is about
// (RTM_NEWNETCONF). inspect reads the value.
func (w *watcher) reconfigured(cached *portLinks, data []byte) []string {
	const sizeofNetconfmsg, attrIndex = 4, 1
	if len(data) < sizeofNetconfmsg {
		return nil
	}
	ad, err := netlink.NewAttributeDecoder(data[sizeofNetconfmsg:])
	if err != nil {
		return nil
	}
	for ad.Next() {
		if ad.Type() != attrIndex || ad.Len() != 0 && len(ad.Bytes()) != 4 {
			continue
		}
		index := int32(binary.NativeEndian.Uint32(ad.Bytes()))
		w.d.forwarding.reconfigured(index)
		if l := cached.links[index]; l != nil {
			l.settings = nil
			w.suspects.addSettings(l.name)
			return []string{l.name}
		}
	}
	return nil
}

// inspect looks at suspects once they had time to settle, and in rounds at
// everything that changes without a notification, until ctx ends.
func (w *watcher) inspect(ctx context.Context) {
	v := verifier{rtnl: w.d.rtnl, cache: w.cache, ports: w.d.ports, conditions: w.d.conditions}
	tick := time.NewTicker(verifyEvery)
	defer tick.Stop()
	sample := time.NewTicker(sampleDrops)
	defer sample.Stop()
	settled := time.NewTimer(0)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.suspects.wake:
			settled.Reset(settleAfter)
			select {
			case <-ctx.Done():
				return
			case <-settled.C:
			}
			what := w.suspects.take()
			if what.rules {
				w.d.keepRules()
			}
			for name := range what.settings {
				v.verify(name, nil)
			}
			if w.anyFaulty(what.ports) {
				w.changed.Send()
			}
		case <-sample.C:
			if _, err := w.d.host.filter.drops(w.cache.isPort); err != nil {
				w.d.log.Debug("drops not read", "err", err) // the next round may
			}
		case <-tick.C:
			w.d.host.protect(w.d.arriving)
			w.d.keepRules()
			if v.round() {
				w.changed.Send()
			}
		}
	}
}

// anyFaulty reports whether one of the ports is not as it was put.
func (w *watcher) anyFaulty(names map[string]bool) bool {
	cached, done := w.cache.open()
	defer done()
	for name := range names {
		p, settled := w.d.ports.settled(name)
		if !settled {
			continue // the end of a Put makes it a suspect again
		}
		l := cached.links[cached.byName[name]]
		if l == nil || len(w.d.faults(p, l)) > 0 {
			return true
		}
	}
	return false
}

// mayAdministrate reports whether this process has CAP_NET_ADMIN.
func mayAdministrate() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(os.Getpid())}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
