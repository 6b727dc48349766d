package libvirt

import (
	"context"
	"errors"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/vmfabric/vmfabric/fabric"
)

// hear takes up an event. It only sets things going: the next event waits.
func (s *Source) hear(c *conn, e golibvirt.DomainEventLifecycleMsg) {
	what := stepOf(e.Event, e.Detail)
	s.mu.Lock()
	s.lastEvent = time.Now()
	foreign := s.foreign[e.Dom.UUID]
	_, bad := s.bad[e.Dom.UUID]
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
		s.touch(c, e.Dom, job{ended: true})
	case what == nothing, foreign && what != begin:
	default:
		s.cutover(e.Dom, what)
		s.touch(c, e.Dom, job{fresh: what == begin})
	}
}

// past notes that a life of a domain is over: what the guest was in it says
// nothing of its next. s.mu is held.
func (s *Source) past(dom golibvirt.Domain) {
	delete(s.begun, dom.UUID)
	if last := s.known[dom.UUID]; last != nil {
		over := *last
		over.id = noLife
		s.known[dom.UUID] = &over
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
	s.box.Put(d)
}

// job is the work on the news of one domain.
type job struct {
	dom   golibvirt.Domain // as in the newest event
	asked time.Time        // when libvirt was asked; zero while that waits for its turn
	again bool             // there was more news meanwhile
	fresh bool             // the XML is to be read
	ended bool             // one that nothing describes: only whether it is off is of interest
}

// touch has a domain looked at. Each domain has one who looks, and never two:
// whatever happens while he does is one more look. Domains do not wait for one
// another.
func (s *Source) touch(c *conn, dom golibvirt.Domain, news job) {
	c.mu.Lock()
	j, busy := c.jobs[dom.UUID]
	if busy {
		j.dom, j.again, j.fresh, j.ended = dom, true, j.fresh || news.fresh, j.ended || news.ended
		c.mu.Unlock()
		return
	}
	j = &job{dom: dom, fresh: news.fresh, ended: news.ended}
	c.jobs[dom.UUID] = j
	c.mu.Unlock()
	c.start(func() { s.work(c, j) })
}

func (s *Source) work(c *conn, j *job) {
	for {
		waiting, cancel := context.WithTimeout(context.Background(), s.times.call)
		release, err := c.acquire(waiting, c.slots)
		cancel()
		if errors.Is(err, errTimeout) {
			// As many domains as there are slots hang in their hooks. Others
			// must not wait for that.
			c.drop(errHooks)
		}
		if err != nil {
			return
		}
		c.mu.Lock()
		dom, fresh, ended := j.dom, j.fresh, j.ended
		j.asked, j.again, j.fresh, j.ended = time.Now(), false, false, false
		c.mu.Unlock()

		if !ended || !s.ended(c, dom) {
			s.follow(c, dom, fresh)
		}
		release()

		c.mu.Lock()
		if !j.again {
			delete(c.jobs, dom.UUID)
			c.mu.Unlock()
			return
		}
		j.asked = time.Time{}
		c.mu.Unlock()
	}
}

// follow reads a domain and tells how it is.
func (s *Source) follow(c *conn, dom golibvirt.Domain, fresh bool) {
	d, ours, err := s.look(c, dom, fresh)
	switch {
	case isNoDomain(err):
		s.vanished(c, dom)
	case err != nil:
		select {
		case <-c.gone: // all that was missed is asked for again
		default:
			s.log.Warn("libvirt does not tell of a domain; the next list does", "vm", dom.Name, "err", err)
		}
	case ours:
		if d.State == fabric.Absent {
			s.forget(dom)
		}
		s.box.Put(d)
	}
}

// ended tells that a domain which nothing describes is off, if it is.
func (s *Source) ended(c *conn, dom golibvirt.Domain) bool {
	gone := fabric.Desired{VM: bare(dom), State: fabric.Absent, Since: time.Now()}
	state, reason, err := c.lv.DomainGetState(dom, 0)
	if !isNoDomain(err) && (err != nil || phaseOf(state, reason) != off) {
		return false
	}
	s.box.Put(gone)
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
		s.box.Put(gone)
	}
}

// forget gives what was known of a domain that does not run any more.
func (s *Source) forget(dom golibvirt.Domain) *sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.known[dom.UUID]
	delete(s.known, dom.UUID)
	delete(s.foreign, dom.UUID)
	delete(s.bad, dom.UUID)
	return last
}
