package kernel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
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
	d       *Dataplane
	feed    following
	place   *rtnl.Follower
	loaded  bool // of Load alone: it was called before
	cache   *netlinkCache
	changed signal.Signal
	wake    signal.Signal
	stop    chan struct{}
	wg      sync.WaitGroup

	mu       sync.Mutex
	held     map[string]int  // a Put is under way: anyFaulty skips them
	puts     int             // how many Puts have ended
	lastPuts map[string]int  // the number of each port's last Put
	unruled  bool            // somebody removed a rule, perhaps one of the fabric's
	awaited  map[string]bool // adopted ports whose link is to appear
	suspects map[string]bool // ports to look at
	links    []*Links        // followers of all links
	next     string          // where the round of verifying goes on

	// Of inspect alone.
	verified   int // ports since neighbours were listed
	neighbours map[int32][]neighbour
}

func startWatcher(d *Dataplane, feed following) (*watcher, error) {
	w := &watcher{
		d: d, feed: feed, cache: newNetlinkCache(), changed: signal.New(), wake: signal.New(), stop: make(chan struct{}),
		held: map[string]int{}, lastPuts: map[string]int{}, awaited: map[string]bool{}, suspects: map[string]bool{},
	}
	var err error
	if w.place, err = feed.Join(w, rtnl.Wants{Links: true, Addresses: true, Protocols: []uint8{routeProtocol}}); err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	d.protect(nil) // the chains of an earlier process stay until the agent has put its ports
	w.wg.Go(w.inspect)
	return w, nil
}

func (w *watcher) close() {
	w.place.Leave()
	close(w.stop)
	w.wg.Wait()
}

// Apply implements [rtnl.View].
func (w *watcher) Apply(msgs []netlink.Message) {
	w.cache.mu.Lock()
	var names, links []string
	hops, ways := false, false
	for _, m := range msgs {
		ways = ways || w.d.waysOut.concerns(m)
		if m.Header.Type == unix.RTM_NEWNETCONF {
			names = append(names, w.reconfigured(m.Data)...)
			continue
		}
		if m.Header.Type == unix.RTM_DELRULE {
			w.ruleGone()
			continue
		}
		hops = w.d.hops.apply(m) || hops
		concerned := w.cache.apply(m)
		names = append(names, concerned...)
		if isLink(m) {
			links = append(links, concerned...)
		}
	}
	flaps := w.cache.flaps
	w.cache.flaps = nil
	w.cache.mu.Unlock()
	for _, f := range flaps {
		w.d.moves.carrier(f.name, f.index, f.up)
	}
	w.publish(links, false)
	w.welcome(names...)
	w.suspect(names...)
	if ways {
		w.d.waysOut.changed()
	}
	if hops {
		w.d.forwarding.changed(true)
	}
	if len(flaps) > 0 || hops {
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
		w.publish(nil, true)
	}
	w.loaded = true
}

// reconfigured returns the port whose setting a notification is about
// (RTM_NEWNETCONF). inspect reads the value. The caller holds w.cache.mu.
func (w *watcher) reconfigured(data []byte) []string {
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
		if l := w.cache.links[index]; l != nil {
			l.settings = nil
			w.mu.Lock()
			w.suspects["/"+l.name] = true // no link has such a name; inspect reads the port's settings, and does not only compare
			w.mu.Unlock()
			return []string{l.name}
		}
	}
	return nil
}

// suspect makes inspect look at ports soon.
func (w *watcher) suspect(names ...string) {
	if len(names) == 0 {
		return
	}
	w.mu.Lock()
	for _, name := range names {
		w.suspects[name] = true
	}
	w.mu.Unlock()
	w.wake.Send()
}

// ruleGone makes inspect look at the rules soon.
func (w *watcher) ruleGone() {
	w.mu.Lock()
	w.unruled = true
	w.mu.Unlock()
	w.wake.Send()
}

// welcome signals if an adopted port awaits one of the links.
func (w *watcher) welcome(names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range names {
		if w.awaited[name] {
			delete(w.awaited, name)
			w.changed.Send()
		}
	}
}

func (w *watcher) hold(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[name]++
}

func (w *watcher) release(name string) {
	w.mu.Lock()
	if w.held[name]--; w.held[name] <= 0 {
		delete(w.held, name)
	}
	w.puts++
	w.lastPuts[name] = w.puts
	w.mu.Unlock()
	w.suspect(name)
}

func (w *watcher) await(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.awaited[name] = true
}

func (w *watcher) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.awaited, name)
	delete(w.lastPuts, name)
}

// seen returns copies of a link's addresses and routes in the netlink cache.
func (w *watcher) seen(index int32) (addrs map[netip.Addr]bool, routes map[place]route, rivals map[netip.Prefix]route) {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	if l := w.cache.links[index]; l != nil {
		return maps.Clone(l.addrs), maps.Clone(l.routes), maps.Clone(l.rivals)
	}
	return nil, map[place]route{}, nil
}

// knows reports whether the netlink cache has a link of a name.
func (w *watcher) knows(name string) bool {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	_, known := w.cache.byName[name]
	return known
}

// lastPut returns a number that changes with each Put of a port. idle is false
// while one is under way.
func (w *watcher) lastPut(name string) (n int, idle bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastPuts[name], w.held[name] == 0
}

// lacksNeighbours reports whether the last check found that neighbours of a link
// are missing.
func (w *watcher) lacksNeighbours(index int32) bool {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	l := w.cache.links[index]
	return l != nil && len(l.neighbours) > 0
}

// unrivalled notes that the kernel uses our route to a prefix.
func (w *watcher) unrivalled(index int32, p netip.Prefix) {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	if l := w.cache.links[index]; l != nil {
		delete(l.rivals, p)
	}
}

// inspect looks at suspects once they had time to settle, and in rounds at
// everything that changes without a notification.
func (w *watcher) inspect() {
	tick := time.NewTicker(verifyEvery)
	defer tick.Stop()
	settled := time.NewTimer(0)
	defer settled.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-w.wake:
			settled.Reset(settleAfter)
			select {
			case <-w.stop:
				return
			case <-settled.C:
			}
			w.mu.Lock()
			suspects := w.suspects
			w.suspects = map[string]bool{}
			unruled := w.unruled
			w.unruled = false
			w.mu.Unlock()
			if unruled {
				w.d.keepRules()
			}
			for name := range suspects {
				if name[0] == '/' {
					w.verify(name[1:], nil)
					delete(suspects, name)
				}
			}
			if w.anyFaulty(suspects) {
				w.changed.Send()
			}
		case <-tick.C:
			w.d.protect(w.d.arriving)
			w.d.keepRules()
			w.round()
		}
	}
}

// anyFaulty reports whether one of the ports is not as it was put.
func (w *watcher) anyFaulty(names map[string]bool) bool {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range names {
		p, wanted := w.d.want[name]
		if !wanted || w.held[name] > 0 {
			continue // release makes it a suspect again
		}
		l := w.cache.links[w.cache.byName[name]]
		if l == nil || len(w.d.faults(p, l)) > 0 {
			return true
		}
	}
	return false
}

// round verifies the next ports in line.
func (w *watcher) round() {
	w.d.mu.Lock()
	names := slices.Sorted(maps.Keys(w.d.want))
	w.d.mu.Unlock()
	if len(names) == 0 {
		return
	}
	at, _ := slices.BinarySearch(names, w.next)
	if w.verified += verifyAtMost; w.verified >= len(names) {
		w.verified = 0
		w.listNeighbours(len(names))
	}
	faulty := false
	for range min(len(names), verifyAtMost) {
		if at >= len(names) {
			at = 0
		}
		faulty = w.verify(names[at], w.neighbours) || faulty
		at++
	}
	if at >= len(names) {
		at = 0
	}
	w.next = names[at]
	if faulty {
		w.changed.Send()
	}
}

// listNeighbours lists all neighbours at once, one time for the rounds that go
// through all ports: even for one link the kernel goes through all of them.
func (w *watcher) listNeighbours(ports int) {
	all, err := w.d.rtnl.neighbours(unix.AF_UNSPEC, 0)
	if err != nil {
		return // keep the last listing
	}
	w.neighbours = map[int32][]neighbour{}
	for _, n := range all {
		w.neighbours[n.index] = append(w.neighbours[n.index], n)
	}
	w.d.weighNeighbours(all, ports)
}

// verify reads the settings of a port, notes their faults in the cache, and reports
// whether there are any. With all neighbours, it checks the port's, too.
func (w *watcher) verify(name string, all map[int32][]neighbour) bool {
	put, idle := w.lastPut(name)
	l, err := w.d.rtnl.linkByName(name)
	if err != nil {
		return false // the kernel has notified of a link that is gone
	}
	w.d.mu.Lock()
	p, wanted := w.d.want[name]
	w.d.mu.Unlock()
	var neighbours []string
	if wanted && all != nil {
		neighbours = neighbourFaults(p, all[l.index])
	}
	if len(neighbours) > 0 {
		// The port may have been put since the listing of all.
		if have, err := w.d.rtnl.neighbours(unix.AF_UNSPEC, l.index); err == nil {
			neighbours = neighbourFaults(p, have)
		}
	}
	faults := l.settingFaults()
	if last, still := w.lastPut(name); wanted && !(idle && still && put == last) {
		return false // a Put came between; the next round looks again
	}
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	if m := w.cache.links[l.index]; m != nil {
		m.settings, m.conf4 = faults, l.conf4
		if all != nil {
			m.neighbours = neighbours
		}
	}
	return len(faults)+len(neighbours) > 0 || wanted && l.reversePathFault(p) != ""
}

// protect keeps the node forwarding and the packet filter in force. If arriving is
// nil, the chains of arriving guests stay as they are.
func (d *Dataplane) protect(arriving func() map[string][]netip.Prefix) {
	d.proxying.look()
	if err := enableForwarding(); err != nil {
		d.setCondition("forwarding", "forwarding: "+err.Error())
	} else {
		d.setCondition("forwarding", "")
	}
	d.keepFilter(arriving)
}

// keepFilter keeps the packet filter in force, and reports an error as a condition.
func (d *Dataplane) keepFilter(arriving func() map[string][]netip.Prefix) {
	if err := d.filter.ensure(arriving); err != nil {
		d.setCondition("filter", fmt.Sprintf("the filter of the ports by nftables is off, a guest can send with another's IPv6 source, and reach the node and the underlay: %v; load nf_tables and nft_fib_inet", err))
	} else {
		d.setCondition("filter", "")
	}
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
