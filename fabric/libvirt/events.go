package libvirt

import (
	"context"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
)

// hear takes up an event. It only sets things going: the next event waits.
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
		// The agent may know it, from before its description was taken away.
		c.reads.Request(e.Dom.UUID, news{dom: e.Dom, ended: true})
	case what == nothing, foreign && what != begin:
	default:
		s.cutover(e.Dom, what)
		c.reads.Request(e.Dom.UUID, news{dom: e.Dom, fresh: what == begin})
	}
}

// past notes that a life of a domain is over: what the guest was in it says
// nothing of its next.
func (v *view) past(dom golibvirt.Domain) {
	delete(v.begun, dom.UUID)
	if last := v.known[dom.UUID]; last != nil {
		over := *last
		over.id = noLife
		v.known[dom.UUID] = &over
	}
}

// noLife is no number of libvirt's, which are positive, or -1 for what does not run.
const noLife = -2

// cutover tells at once that a guest stopped for its migration, or that it runs:
// every packet to it waits for that. What libvirt answers to a question, a
// millisecond later or a hundred, is told besides.
func (s *Source) cutover(dom golibvirt.Domain, what step) {
	if what != arrive && what != goOn && what != leave {
		return
	}
	s.mu.Lock()
	last := s.known[dom.UUID]
	s.mu.Unlock()
	if last == nil || last.id != dom.ID || what != arrive && last.as.state != fabric.Live {
		return // of another life of the domain, or of its arrival
	}
	d := fabric.Desired{VM: last.vm, State: fabric.Live, Leaving: what == leave, Run: runOf(dom), Since: time.Now()}
	s.remember(dom, d)
	s.queue.Put(d)
}

// news is what is known of the news of a domain before libvirt is asked.
type news struct {
	dom   golibvirt.Domain // as in the newest event
	fresh bool             // the XML is to be read
	ended bool             // one that nothing describes: only whether it is off is of interest
}

// merge makes one of two pieces of news that are read together.
func merge(older, newer news) news {
	return news{newer.dom, older.fresh || newer.fresh, older.ended || newer.ended}
}

// read asks libvirt how a domain is, and emits that. It returns when ctx ends;
// the call goes on until the connection is closed, as any does that was given up.
func (s *Source) read(ctx context.Context, c *conn, n news) {
	// An error is the connection's: all that was missed is listed after the next.
	_ = c.call(ctx, question{"domain " + n.dom.Name, "of it "}, func() error {
		if !n.ended || !s.ended(c, n.dom) {
			s.follow(c, n.dom, n.fresh)
		}
		return nil
	})
}

// follow reads a domain and tells how it is.
func (s *Source) follow(c *conn, dom golibvirt.Domain, fresh bool) {
	d, ours, err := s.look(c, dom, fresh)
	switch {
	case isNoDomain(err):
		s.vanished(c, dom)
	case err != nil:
		select {
		case <-c.raw.gone: // all that was missed is asked for again
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

// ended tells that a domain which nothing describes is off, if it is.
func (s *Source) ended(c *conn, dom golibvirt.Domain) bool {
	gone := fabric.Desired{VM: bare(dom), State: fabric.Absent, Since: time.Now()}
	state, reason, err := c.lv.DomainGetState(dom, 0)
	if !isNoDomain(err) && (err != nil || phaseOf(state, reason) != off) {
		return false
	}
	s.queue.Put(gone)
	return true
}

// vanished tells that a domain is gone so thoroughly that libvirt cannot say
// what it was: a transient one, or one that was undefined as it ran.
func (s *Source) vanished(c *conn, dom golibvirt.Domain) {
	gone := fabric.Desired{State: fabric.Absent, Since: time.Now()}
	last := s.forget(dom)
	if last == nil {
		return
	}
	gone.VM = last.vm
	// Another domain may have the name by now, and with it the port.
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

// forget gives what was known of a domain that does not run any more.
func (s *Source) forget(dom golibvirt.Domain) *observed {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.known[dom.UUID]
	delete(s.known, dom.UUID)
	delete(s.foreign, dom.UUID)
	delete(s.conditions, dom.UUID)
	return last
}
