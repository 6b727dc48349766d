package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// Unverified is the fault of a port that was not put since its dataplane
// started.
const Unverified = "not verified since the start"

// Dataplane is a [fabric.Dataplane] over links in memory. Its ports have
// carrier from the start.
type Dataplane struct {
	Trouble
	journal *Journal
	kernel  *kernel
	changed signal.Signal

	heard chan string

	put map[string]bool // ports that were put since the start; kernel.mu guards it
	had map[string]bool // ports of put that had carrier

	recorded map[string]int  // the frames that Divert sends again, by recorded port
	told     map[string]bool // incoming ports that were heard

	found    map[string]bool     // ports that had carrier at the start
	silences map[string]*silence // of ports with Listen
	contacts map[string][]fabric.Contact
}

// silence says whether a guest was not heard since it got carrier. since is when
// the port got carrier, zero if it has none; over says that the wait has ended.
type silence struct {
	over  bool
	since time.Time
}

var _ fabric.Dataplane = (*Dataplane)(nil)

// kernel outlives the dataplanes that work on it.
type kernel struct {
	mu        sync.Mutex
	links     map[string]*link
	users     []*Dataplane
	muted     bool
	discarded []fabric.Blackhole
	hops      map[bool]error // why IPv6 (true) or IPv4 has no next hop

	guests fabric.Guests // what guests are told

	diverted map[netip.Prefix]fabric.Node
	drops    map[string][]fabric.Drops // by port
}

type link struct {
	ours    bool
	adopted bool
	port    fabric.Port // as it was put, if the link is ours
	carrier bool
	faults  []string
}

// NewDataplane makes a dataplane with no links. It writes to j.
func NewDataplane(j *Journal) *Dataplane {
	return (&kernel{links: map[string]*link{}, diverted: map[netip.Prefix]fabric.Node{}}).dataplane(j)
}

// Again makes a second dataplane over the same links, as after a restart.
func (d *Dataplane) Again() *Dataplane { return d.kernel.dataplane(d.journal) }

func (k *kernel) dataplane(j *Journal) *Dataplane {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := &Dataplane{journal: j, kernel: k, changed: signal.New(), put: map[string]bool{}, had: map[string]bool{}, heard: make(chan string, 64), recorded: map[string]int{}, told: map[string]bool{}, found: map[string]bool{}, silences: map[string]*silence{}, contacts: map[string][]fabric.Contact{}}
	for name, l := range k.links {
		d.had[name] = l.adopted // its owner brought it into use before
		d.found[name] = l.carrier
	}
	k.users = append(k.users, d)
	return d
}

// Actual implements [fabric.Dataplane]. It sorts the ports by name.
func (d *Dataplane) Actual(ctx context.Context) ([]fabric.PortState, error) {
	if err := d.before(ctx, "list ports"); err != nil {
		return nil, err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	var ports []fabric.PortState
	for _, name := range slices.Sorted(maps.Keys(d.kernel.links)) {
		l := d.kernel.links[name]
		if !l.ours {
			continue
		}
		faults := slices.Clone(l.faults)
		if !d.put[name] {
			faults = append(faults, Unverified)
		}
		ports = append(ports, fabric.PortState{
			Name: name, Cluster: l.port.Cluster, VM: l.port.VM, Index: l.port.Index, NIC: l.port.NIC,
			Carrier: l.carrier, Lost: d.had[name] && !l.carrier, Faults: faults, Silent: l.carrier && l.port.Listen && d.silent(name),
			Contacts: slices.Clone(d.contacts[name]),
		})
	}
	return ports, nil
}

// Put implements [fabric.Dataplane].
func (d *Dataplane) Put(ctx context.Context, p fabric.Port) error {
	if err := d.before(ctx, "wire "+p.Name); err != nil {
		return err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	l, there := d.kernel.links[p.Name]
	adopt := p.NIC.Kind == fabric.Adopt
	switch {
	case !there && adopt:
		return fmt.Errorf("link %s: %w; the hypervisor makes it", p.Name, os.ErrNotExist)
	case there && !l.ours && !adopt, there && l.ours && (l.port.VM != p.VM || l.port.Cluster != p.Cluster):
		return fmt.Errorf("link %s is there already and %w; remove or rename it", p.Name, fabric.ErrForeign)
	}
	if !there || !l.ours || len(l.faults) > 0 || !reflect.DeepEqual(l.port, p) {
		line := "wire " + p.Name
		if p.Incoming {
			line += " incoming"
		}
		d.journal.add(line)
	}
	carrier := !there || l.carrier
	d.kernel.links[p.Name] = &link{ours: true, adopted: adopt, port: p, carrier: carrier}
	if !p.Incoming {
		delete(d.told, p.Name)
	}
	d.put[p.Name] = true
	d.had[p.Name] = carrier || d.had[p.Name]
	if p.Listen && d.silences[p.Name] == nil {
		d.silences[p.Name] = &silence{over: d.found[p.Name]}
		d.lookSilence(p.Name, carrier)
	}
	return nil
}

// Remove implements [fabric.Dataplane]. Links that are not ours stay.
func (d *Dataplane) Remove(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, d.remove(ctx, name))
	}
	return errors.Join(errs...)
}

func (d *Dataplane) remove(ctx context.Context, name string) error {
	if err := d.before(ctx, "unwire "+name); err != nil {
		return err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	l, there := d.kernel.links[name]
	if !there || !l.ours {
		return nil
	}
	if l.adopted {
		d.kernel.links[name] = &link{carrier: l.carrier}
	} else {
		delete(d.kernel.links, name)
	}
	delete(d.put, name)
	delete(d.had, name)
	delete(d.recorded, name)
	delete(d.told, name)
	delete(d.silences, name)
	delete(d.found, name)
	delete(d.contacts, name)
	d.journal.add("unwire " + name)
	return nil
}

// Changed implements [fabric.Dataplane].
func (d *Dataplane) Changed() <-chan struct{} { return d.changed }

// Break gives a port a fault, with this text, until it is put again.
func (d *Dataplane) Break(name, fault string) {
	d.outside(func(links map[string]*link) {
		if l := links[name]; l != nil {
			l.faults = append(l.faults, fault)
		}
	})
}

// SetCarrier sets whether a port has carrier.
func (d *Dataplane) SetCarrier(name string, up bool) {
	d.outside(func(links map[string]*link) {
		if l := links[name]; l != nil {
			l.carrier = up
		}
		for _, u := range d.kernel.users {
			u.had[name] = u.had[name] || up && u.put[name]
			u.lookSilence(name, up)
		}
	})
}

// AddLink makes a link that is not a port: somebody else's, or one that a
// hypervisor made for an agent to adopt.
func (d *Dataplane) AddLink(name string) {
	d.outside(func(links map[string]*link) { links[name] = &link{carrier: true} })
}

// AddLinkDown is AddLink for a link without carrier.
func (d *Dataplane) AddLinkDown(name string) {
	d.outside(func(links map[string]*link) { links[name] = &link{} })
}

// RemoveLink removes a link, port or not, behind the back of the dataplane.
func (d *Dataplane) RemoveLink(name string) {
	d.outside(func(links map[string]*link) {
		delete(links, name)
		for _, u := range d.kernel.users {
			delete(u.had, name)
			delete(u.put, name)
			delete(u.silences, name)
			delete(u.found, name)
			delete(u.contacts, name)
		}
	})
}

// Foreign reports whether there is a link of that name that is not a port.
func (d *Dataplane) Foreign(name string) bool {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	l, there := d.kernel.links[name]
	return there && !l.ours
}

// Routed reports whether a port routes packets for a prefix.
func (d *Dataplane) Routed(p netip.Prefix) bool {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	for _, l := range d.kernel.links {
		if l.ours && len(l.faults) == 0 && has(&l.port.NIC, p) {
			return true
		}
	}
	return false
}

// has reports whether p is one of the NIC's prefixes.
func has(n *fabric.NIC, p netip.Prefix) bool {
	return p.IsSingleIP() && slices.Contains(n.Addresses, p.Addr()) || slices.Contains(n.Routes, p)
}

// Port returns a port as it was put; zero if it is none of ours.
func (d *Dataplane) Port(name string) fabric.Port {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	if l := d.kernel.links[name]; l != nil && l.ours {
		return l.port
	}
	return fabric.Port{}
}

// SetNextHop sets the error that NextHop returns for a family.
func (d *Dataplane) SetNextHop(v6 bool, err error) {
	d.outside(func(map[string]*link) {
		if d.kernel.hops == nil {
			d.kernel.hops = map[bool]error{}
		}
		d.kernel.hops[v6] = err
	})
}

// NextHop implements [fabric.Dataplane].
func (d *Dataplane) NextHop(v6 bool) error {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return d.kernel.hops[v6]
}

// CheckForwarding implements [fabric.Dataplane]. It is not supported.
func (*Dataplane) CheckForwarding(context.Context) ([]fabric.ForwardingFault, error) {
	return nil, errors.ErrUnsupported
}

// SetDrops sets what Drops says of a port.
func (d *Dataplane) SetDrops(port string, drops ...fabric.Drops) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	if d.kernel.drops == nil {
		d.kernel.drops = map[string][]fabric.Drops{}
	}
	d.kernel.drops[port] = drops
}

// Drops implements [fabric.Dataplane].
func (d *Dataplane) Drops(ctx context.Context) (map[string][]fabric.Drops, error) {
	if err := d.before(ctx, "read drops"); err != nil {
		return nil, err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	return maps.Clone(d.kernel.drops), nil
}

// Discard implements [fabric.Dataplane].
func (d *Dataplane) Discard(ctx context.Context, all []fabric.Blackhole) error {
	if err := d.before(ctx, "discard"); err != nil {
		return err
	}
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	d.kernel.discarded = slices.Clone(all)
	return nil
}

// Discarded lists the prefixes to which packets are discarded.
func (d *Dataplane) Discarded() (ps []netip.Prefix) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	for _, b := range d.kernel.discarded {
		ps = append(ps, b.Prefix)
	}
	return ps
}

// Mute keeps Changed silent, as if events were lost.
func (d *Dataplane) Mute(silent bool) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	d.kernel.muted = silent
}

// outside changes the links from outside, and signals that.
func (d *Dataplane) outside(f func(links map[string]*link)) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	f(d.kernel.links)
	if d.kernel.muted {
		return
	}
	for _, u := range d.kernel.users {
		u.changed.Send()
	}
}
