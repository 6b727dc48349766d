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
	switch what {
	case over:
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
		c.reads.Request(e.Dom.UUID, news{dom: e.Dom, ended: true})
	case what == nothing, foreign && what != begin:
	default:
		s.cutover(e.Dom, what)
		c.reads.Request(e.Dom.UUID, news{dom: e.Dom, fresh: what == begin})
	}
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
}

// merge combines two pieces of news for one read.
func merge(older, newer news) news {
	return news{newer.dom, older.fresh || newer.fresh, older.ended || newer.ended}
}

// read asks libvirt for a domain's state, and emits it. It returns when ctx ends;
// the call goes on until the connection is closed.
func (s *Source) read(ctx context.Context, c *conn, n news) {
	// An error is the connection's: the list after the next connection makes up for
	// it.
	_ = c.call(ctx, question{"domain " + n.dom.Name, "of it "}, func() error {
		if !n.ended || !s.ended(c, n.dom) {
			s.follow(c, n.dom, n.fresh)
		}
		return nil
	})
}

// follow reads a domain and emits its state.
func (s *Source) follow(c *conn, dom golibvirt.Domain, fresh bool) {
	d, ours, err := s.look(c, dom, fresh)
	switch {
	case isNoDomain(err):
		s.vanished(c, dom)
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
func (s *Source) ended(c *conn, dom golibvirt.Domain) bool {
	gone := fabric.Desired{VM: bare(dom), State: fabric.Absent, Since: time.Now()}
	state, reason, err := c.lv.DomainGetState(dom, 0)
	if !isNoDomain(err) && (err != nil || phaseOf(state, reason) != off) {
		return false
	}
	s.queue.Put(gone)
	return true
}

// vanished emits that a domain is gone and that libvirt knows nothing of it any
// more: it was transient, or was undefined while it ran.
func (s *Source) vanished(c *conn, dom golibvirt.Domain) {
	gone := fabric.Desired{State: fabric.Absent, Since: time.Now()}
	last := s.forget(dom)
	if last == nil {
		return
	}
	gone.VM = last.vm
	// Another domain may have the name by now, and the port with it.
	heir, err := c.lv.DomainLookupByName(last.vm.Name)
	if err == nil {
		var d fabric.Desired
		var ours bool
		if d, ours, err = s.look(c, heir, true); err == nil && ours {
			gone = d
		}
	}
	if err == nil || isNoDomain(err) {
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
