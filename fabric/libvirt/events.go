package libvirt

import (
	"context"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
)

// hear handles an event. It waits for nothing, because the next event waits for it.
func (s *Source) hear(c *conn, e golibvirt.DomainEventLifecycleMsg) {
	what := stepOf(e.Event, e.Detail)
	s.daemon.Heard()
	s.mu.Lock()
	foreign := s.foreign[e.Dom.UUID]
	_, bad := s.conditions[e.Dom.UUID]
	described := s.known[e.Dom.UUID] != nil || !foreign && !bad
	n := news{dom: e.Dom, fresh: what == begin, last: what == over || what == forget}
	switch what {
	case over:
		n.outlived = s.outlives(e)
		s.past(e.Dom)
	case begin:
		s.begun[e.Dom.UUID] = e.Dom.ID
	}
	if what == begin || what == over {
		delete(s.foreign, e.Dom.UUID)
	}
	s.mu.Unlock()
	s.log.Debug("libvirt event", "vm", e.Dom.Name, "event", e.Event, "detail", e.Detail)
	switch {
	case what == over && !described:
		// The agent may know it from before its description was removed.
		n.ended = true
		c.reads.Request(e.Dom.UUID, n)
	case what == nothing, foreign && what != begin && what != forget:
	default:
		s.cutover(e.Dom, what)
		c.reads.Request(e.Dom.UUID, n)
	}
}

// outlives reports whether the guest of a domain that stopped may go on: it moved to
// another node, it was saved to a file, or it never ran here because it was to come
// from another node or a file.
func (v *view) outlives(e golibvirt.DomainEventLifecycleMsg) bool {
	detail, last := golibvirt.DomainEventStoppedDetailType(e.Detail), v.known[e.Dom.UUID]
	switch {
	case detail == golibvirt.DomainEventStoppedMigrated, detail == golibvirt.DomainEventStoppedSaved:
		return true
	case last == nil:
		return detail == golibvirt.DomainEventStoppedFailed
	}
	return last.as != standing{state: fabric.Live}
}

// past notes that a life of a domain is over: the guest's state in it says nothing
// about the next.
func (v *view) past(dom golibvirt.Domain) {
	delete(v.begun, dom.UUID)
	if last := v.known[dom.UUID]; last != nil {
		over := *last
		over.id = noLife
		v.known[dom.UUID] = &over
	}
}

// noLife is not an id of libvirt: these are positive, or -1 for a domain that does
// not run.
const noLife = -2

// cutover emits at once that a guest stopped for its migration, or that it runs:
// every packet to the guest waits for that. The read, a millisecond or a hundred
// later, emits the state once more.
func (s *Source) cutover(dom golibvirt.Domain, what step) {
	if what != arrive && what != goOn && what != leave {
		return
	}
	s.mu.Lock()
	last := s.known[dom.UUID]
	s.mu.Unlock()
	if last == nil || last.id != dom.ID || what != arrive && last.as.state != fabric.Live {
		return // an event of another life of the domain, or of its arrival
	}
	d := fabric.Desired{VM: last.vm, State: fabric.Live, Leaving: what == leave, Run: runOf(dom), Since: time.Now()}
	s.remember(dom, d)
	s.queue.Put(d)
}

// news is what the source knows of a domain's news before it asks libvirt.
type news struct {
	dom   golibvirt.Domain // as the newest event has it
	fresh bool             // read the XML, too
	ended bool             // nothing describes it: find out only whether it is off
	// last: it was undefined, or stopped. If libvirt does not know it any more, its
	// guest is gone for good, unless it was outlived: see outlives.
	last, outlived bool
}

// gone reports whether the guest is gone for good if libvirt does not know the domain.
func (n news) gone() bool { return n.last && !n.outlived }

// merge combines two pieces of news for one read.
func merge(older, newer news) news {
	return news{
		dom: newer.dom, fresh: older.fresh || newer.fresh, ended: older.ended || newer.ended,
		// A new life is not over with the one before.
		last: older.last && !newer.fresh || newer.last, outlived: older.outlived && !newer.fresh || newer.outlived,
	}
}

// read asks libvirt for a domain's state, and emits it. It returns when ctx ends;
// the call goes on until the connection is closed.
func (s *Source) read(ctx context.Context, c *conn, n news) {
	// An error is the connection's: the list after the next connection makes up for
	// it.
	_ = c.call(ctx, question{"domain " + n.dom.Name, "of it "}, func() error {
		if !n.ended || !s.ended(c, n) {
			s.follow(c, n)
		}
		return nil
	})
}

// follow reads a domain and emits its state.
func (s *Source) follow(c *conn, n news) {
	dom := n.dom
	d, ours, err := s.look(c, dom, n.fresh)
	switch {
	case isNoDomain(err):
		s.vanished(c, n)
	case err != nil:
		select {
		case <-c.raw.gone: // the list after the next connection makes up for it
		default:
			s.log.Warn("libvirt does not tell of a domain; the next list does", "vm", dom.Name, "err", err)
		}
	case ours:
		if d.State == fabric.Absent {
			s.forget(dom)
		}
		s.queue.Put(d)
	}
}

// ended emits that a domain which nothing describes is off, and reports whether it
// is.
func (s *Source) ended(c *conn, n news) bool {
	gone := fabric.Desired{VM: bare(n.dom), State: fabric.Absent, Since: time.Now()}
	state, reason, err := c.lv.DomainGetState(n.dom, 0)
	switch {
	case isNoDomain(err) && n.gone():
		s.queue.PutGone(gone)
	case isNoDomain(err), err == nil && phaseOf(state, reason) == off:
		s.queue.Put(gone)
	default:
		return false
	}
	return true
}

// vanished emits that a domain is gone and that libvirt knows nothing of it any
// more: it was transient, or was undefined.
func (s *Source) vanished(c *conn, n news) {
	gone := fabric.Desired{VM: bare(n.dom), State: fabric.Absent, Since: time.Now()}
	last := s.forget(n.dom)
	if last != nil {
		gone.VM = last.vm
	}
	if n.gone() {
		s.queue.PutGone(gone)
	}
	if last == nil {
		return
	}
	// Another domain may have the name by now, and the port with it.
	d, ours := gone, false
	heir, err := c.lv.DomainLookupByName(last.vm.Name)
	if err == nil {
		d, ours, err = s.look(c, heir, true)
	}
	switch {
	case err == nil && ours:
		s.queue.Put(d)
	case !n.gone() && (err == nil || isNoDomain(err)):
		s.queue.Put(gone)
	}
}

// forget drops a domain that does not run any more, and returns what was known of
// it.
func (s *Source) forget(dom golibvirt.Domain) *observed {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.known[dom.UUID]
	delete(s.known, dom.UUID)
	delete(s.foreign, dom.UUID)
	delete(s.conditions, dom.UUID)
	return last
}
