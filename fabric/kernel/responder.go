package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/nflog"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// requestGroups are the groups of nfnetlink_log of which a dataplane takes one.
var requestGroups = []uint16{147, 148, 149, 150}

// Router advertisements that nobody asked for. A guest that got none for 18 h loses
// its IPv6 default route.
const (
	advertiseMost = 10 * time.Minute       // between two, and half of that at least: see [fabric.Lifetimes]
	advertiseLook = 2 * time.Second        // how often the responder looks which ports are due
	advertiseSoon = 100 * time.Millisecond // after a port was made or has changed; many are made together
)

// responder answers the guests' DHCP requests and router solicitations, and
// advertises the node as a router. It owns what each port is told.
//
// The packet filter logs the requests to the responder and drops them, on ways that
// no forwarded packet takes. So there is one socket for all ports, and none that
// another DHCP server on the node could be in the way of, or that would be in its
// way. A packet that comes while no agent runs is dropped.
type responder struct {
	log        *slog.Logger
	conditions *conditions
	features   *features
	requests   *nflog.Listener // nil: there are no requests
	sender     *capture.Answerer
	changed    signal.Signal // a port was made, or has changed
	opened     chan struct{} // closed when the sockets are there, as far as they could be opened

	mu    sync.Mutex
	table toldPorts
}

// toldPorts has the ports that this process has put, by the index of their link. A
// goroutine that has it, by [responder.open], has it alone.
type toldPorts struct {
	guests  fabric.Guests
	byIndex map[int32]*toldPort
	byName  map[string]int32
	changed map[int32]bool // those that nothing was advertised to since they were made or changed
	asked   map[fabric.ContactProtocol]fabric.RequestCount
}

// toldPort is a port and what its guest is told.
type toldPort struct {
	port     fabric.Port
	offer    autoconf.Offer
	contacts []fabric.Contact // the newest of each protocol
	next     time.Time        // of the next advertisement that nobody asks for
	most     time.Duration    // between two of these
}

func newResponder(cfg Config, c *conditions) *responder {
	return &responder{
		conditions: c, log: slog.New(slog.DiscardHandler), changed: signal.New(), opened: make(chan struct{}),
		table: toldPorts{
			guests: cfg.Guests, byIndex: map[int32]*toldPort{}, byName: map[string]int32{}, changed: map[int32]bool{}, asked: map[fabric.ContactProtocol]fabric.RequestCount{},
		},
	}
}

// open locks the table for the caller, until it calls done.
func (r *responder) open() (t *toldPorts, done func()) {
	r.mu.Lock()
	return &r.table, r.mu.Unlock
}

// listen opens the sockets, unless the cluster has no use for them. close closes
// them, also after an error.
func (r *responder) listen() (err error) {
	t, done := r.open()
	unused := t.guests.NoDHCP && t.guests.NoRA
	done()
	if unused {
		return nil
	}
	if r.sender, err = capture.NewAnswerer(); err != nil {
		return err
	}
	defer close(r.opened)
	if err := r.features.lack(packetLog, inetTables); err != nil {
		return err
	}
	r.requests, err = nflog.Listen(requestGroups...)
	return err
}

// isOpen waits until the sockets are there, which may be when another configuration has a
// use for them, or until ctx ends.
func (r *responder) isOpen(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-r.opened:
		return true
	}
}

// fail reports why guests are not answered.
func (r *responder) fail(err error) {
	r.conditions.set("requests", refusal(err))
	r.log.Warn("requests of guests", "err", err)
}

// refusal says for people why guests are not answered.
func refusal(err error) string {
	way := "load nfnetlink_log and nft_log, and restart the agent"
	var lack *lackError
	switch {
	case errors.As(err, &lack):
		way = "then restart the agent"
	case errors.Is(err, nflog.ErrTaken):
		way = "free one of them (cat /proc/net/netfilter/nfnetlink_log), and restart the agent"
	case errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EAFNOSUPPORT):
		way = "then restart the agent"
	}
	return fmt.Sprintf("guests get no answer to DHCP requests and router solicitations: %v; %s", err, way)
}

// close closes the sockets. The guests keep what they were told.
func (r *responder) close() error {
	var errs []error
	if r.requests != nil {
		errs = append(errs, r.requests.Close())
	}
	if r.sender != nil {
		errs = append(errs, r.sender.Close())
	}
	return errors.Join(errs...)
}

// attend tells the guest of a port from now on what the port says.
func (r *responder) attend(p fabric.Port, index int32) {
	t, done := r.open()
	defer done()
	had := t.byIndex[index]
	if had != nil && reflect.DeepEqual(had.port, p) {
		return
	}
	next := &toldPort{port: p, offer: autoconf.OfferOf(p, t.guests), most: cmp.Or(t.guests.Lifetimes.Advertise, advertiseMost)}
	if had != nil {
		if had.port.Name == p.Name {
			next.contacts = had.contacts
		}
		t.forget(had.port.Name)
	}
	t.forget(p.Name) // on the link that it had before
	t.byIndex[index], t.byName[p.Name], t.changed[index] = next, index, true
	r.changed.Send()
}

// reconfigure tells the guests from now on what g says: those that ask, and by a router
// advertisement those for whom it is something else than before.
func (r *responder) reconfigure(g fabric.Guests) {
	t, done := r.open()
	g.Lifetimes = t.guests.Lifetimes
	t.guests = g
	for index, p := range t.byIndex {
		if o := autoconf.OfferOf(p.port, g); !reflect.DeepEqual(o, p.offer) {
			p.offer, p.next, t.changed[index] = o, time.Time{}, true
		}
	}
	done()
	r.changed.Send()
	if r.sender != nil {
		return
	}
	if err := r.listen(); err != nil { // until now there was no use for it
		r.fail(err)
	}
}

// leave forgets a port that is being removed.
func (r *responder) leave(name string) {
	t, done := r.open()
	defer done()
	t.forget(name)
}

func (t *toldPorts) forget(name string) {
	if i, there := t.byName[name]; there {
		delete(t.byIndex, i)
		delete(t.changed, i)
		delete(t.byName, name)
	}
}

// gone forgets the port of a link that was deleted.
func (r *responder) gone(index int32) {
	t, done := r.open()
	defer done()
	if p := t.byIndex[index]; p != nil {
		t.forget(p.port.Name)
	}
}

// contacts returns the last contact of a port's guest by each protocol.
func (r *responder) contacts(index int32) []fabric.Contact {
	t, done := r.open()
	defer done()
	if p := t.byIndex[index]; p != nil {
		return slices.Clone(p.contacts)
	}
	return nil
}

// offer returns what the guest behind a link is told; ok is false for a link that
// is no port.
func (t *toldPorts) offer(index int32) (o autoconf.Offer, ok bool) {
	if p := t.byIndex[index]; p != nil {
		return p.offer, true
	}
	return autoconf.Offer{}, false
}

// portOf returns the port of a guest by an address of its: of a link-local one, of which
// each link has its own, with the index of the link.
func (r *responder) portOf(a netip.Addr, index int32) (fabric.Port, bool) {
	t, done := r.open()
	defer done()
	if a.IsLinkLocalUnicast() {
		if p := t.byIndex[index]; p != nil {
			return p.port, true
		}
		return fabric.Port{}, false
	}
	return t.portOf(a)
}

// portOf returns the port to which the kernel routes an address: that of the longest
// prefix. Two ports never have one prefix at the same time.
func (t *toldPorts) portOf(a netip.Addr) (port fabric.Port, found bool) {
	longest := -1
	for _, p := range t.byIndex {
		for _, prefix := range p.port.NIC.Prefixes() {
			if prefix.Contains(a) && prefix.Bits() > longest {
				port, longest, found = p.port, prefix.Bits(), true
			}
		}
	}
	return port, found
}

// note keeps a contact of the guest behind a link.
func (t *toldPorts) note(index int32, c fabric.Contact) {
	if p := t.byIndex[index]; p != nil { // else it was removed meanwhile
		p.contacts = autoconf.Newest(p.contacts, c)
	}
	asked := t.asked[c.Protocol]
	if c.Refused == "" {
		asked.Answered++
	} else {
		asked.Refused++
	}
	t.asked[c.Protocol] = asked
}

// Requests counts the requests of guests for their configuration, by protocol.
func (d *Dataplane) Requests() []fabric.RequestCount {
	t, done := d.responder.open()
	defer done()
	var all []fabric.RequestCount
	for _, p := range []fabric.ContactProtocol{fabric.DHCPv4, fabric.DHCPv6, fabric.RouterSolicitation} {
		asked := t.asked[p]
		asked.Protocol = p
		all = append(all, asked)
	}
	return all
}

// answer answers requests one after the other, as they come, until ctx ends.
func (r *responder) answer(ctx context.Context) {
	if !r.isOpen(ctx) || r.requests == nil {
		return
	}
	for {
		packets, err := r.requests.Receive(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.fail(err)
			}
			return
		}
		for _, p := range packets {
			r.respond(p)
		}
	}
}

// respond answers a request. A port that this process has not put gets no answer:
// what its guest may have is not known yet.
func (r *responder) respond(p nflog.Packet) {
	t, done := r.open()
	o, known := t.offer(p.Index)
	done()
	if !known {
		return
	}
	a := o.Answer(autoconf.Request{From: p.From, Packet: p.Data})
	for _, f := range a.Frames {
		r.send(p.Index, f)
	}
	if a.Contact.Protocol == "" {
		return // nobody's request
	}
	a.Contact.At = time.Now()
	t, done = r.open()
	t.note(p.Index, a.Contact)
	done()
}

// send sends a frame to a guest, which asks again if there is no room for it now.
func (r *responder) send(index int32, frame []byte) {
	if err := r.sender.Send(index, frame); err != nil {
		r.log.Debug("answer lost", "link", index, "err", err)
	}
}

// advertise sends router advertisements that nobody asked for: soon to a port that was
// made or has changed, to the others at random times, until ctx ends.
func (r *responder) advertise(ctx context.Context) {
	if !r.isOpen(ctx) {
		return
	}
	look, soon := time.NewTicker(advertiseLook), time.NewTimer(0)
	defer look.Stop()
	defer soon.Stop()
	for {
		due := (*toldPorts).takeChanged
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
			soon.Reset(advertiseSoon)
			continue
		case <-soon.C:
		case <-look.C:
			due = (*toldPorts).due
		}
		t, done := r.open()
		offers := due(t, time.Now())
		done()
		for index, o := range offers {
			if f := o.Advertisement(); f != nil {
				r.send(index, f)
			}
		}
	}
}

// takeChanged returns the ports that were made or have changed, by the index of their
// link, and sets the times of their next advertisement.
func (t *toldPorts) takeChanged(now time.Time) map[int32]autoconf.Offer {
	due := map[int32]autoconf.Offer{}
	for index := range t.changed {
		if p := t.byIndex[index]; p.next.IsZero() {
			due[index] = p.advertised(now)
		}
	}
	clear(t.changed)
	return due
}

// due is takeChanged of all ports whose next advertisement is due. While ports are
// made without a pause, it is what advertises to them.
func (t *toldPorts) due(now time.Time) map[int32]autoconf.Offer {
	due := map[int32]autoconf.Offer{}
	for index, p := range t.byIndex {
		if !p.next.After(now) {
			due[index] = p.advertised(now)
		}
	}
	return due
}

// advertised sets the time of a port's next advertisement, and returns its offer.
func (p *toldPort) advertised(now time.Time) autoconf.Offer {
	p.next = now.Add(p.most/2 + rand.N(p.most/2))
	return p.offer
}
