package nodes

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// peers has the nodes that this one calls: the idle connections to each, whether it
// answers, and when it is to be greeted. It is safe for concurrent use.
type peers struct {
	log  *slog.Logger
	look signal.Signal // a node is due to be greeted

	mu     sync.Mutex
	all    map[string]*peer // by name
	closed bool             // keep no connection
}

// peer is a node that this one calls. [peers.open] gives access to all but slots.
type peer struct {
	slots chan struct{} // questions to the node at a time
	idle  []*conn       // the one used last is the last

	refusal   error     // no agent listens on any of its addresses
	refusedAt time.Time // when that was seen
	calledAt  time.Time // when it last called, or answered

	met     bool          // it has answered
	silent  time.Time     // since when it does not answer; zero: it answers, or was not asked
	why     string        // the error to report about that; empty: none
	grace   time.Duration // how long it may be silent before that is reported
	refuses bool          // it answers, but the two agents disagree
	pauses  backoff.Backoff
	due     time.Time // when to greet it next
}

func newPeers(log *slog.Logger) *peers {
	return &peers{log: log, look: signal.New(), all: map[string]*peer{}}
}

// open returns a node that this one calls. Nobody else changes it until done is
// called.
func (p *peers) open(name string) (to *peer, done func()) {
	p.mu.Lock()
	to = p.all[name]
	if to == nil {
		to = &peer{slots: make(chan struct{}, maxAtOnce), pauses: backoff.Backoff{First: greetAgain, Most: greetMost}}
		p.all[name] = to
	}
	return to, p.mu.Unlock
}

// slots returns the channel that bounds the questions to a node at a time.
func (p *peers) slots(name string) chan struct{} {
	to, done := p.open(name)
	defer done()
	return to.slots
}

// take returns an idle connection to a node, or nil.
func (p *peers) take(node fabric.Node) *conn {
	to, done := p.open(node.Name)
	defer done()
	for len(to.idle) > 0 {
		c := to.idle[len(to.idle)-1]
		to.idle = to.idle[:len(to.idle)-1]
		if c.remote == node.Source(c.remote) && time.Since(c.used) < keepFor {
			return c
		}
		c.Close()
	}
	return nil
}

// keep keeps a connection to a node for the next question.
func (p *peers) keep(name string, c *conn) {
	to, done := p.open(name)
	defer done()
	if p.closed || len(to.idle) >= maxIdle {
		c.Close()
		return
	}
	c.used = time.Now()
	to.idle = append(to.idle, c)
}

// drop closes the idle connections to a node.
func (p *peers) drop(name string) {
	to, done := p.open(name)
	defer done()
	to.closeIdle(0)
}

// closeIdle closes the connections that were idle for at least so long.
func (to *peer) closeIdle(least time.Duration) {
	kept := to.idle[:0]
	for _, c := range to.idle {
		if time.Since(c.used) >= least {
			c.Close()
		} else {
			kept = append(kept, c)
		}
	}
	clear(to.idle[len(kept):])
	to.idle = kept
}

// prune closes the connections that were idle for keepFor.
func (p *peers) prune() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, to := range p.all {
		to.closeIdle(keepFor)
	}
}

// start allows connections to be kept for the next question.
func (p *peers) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = false
}

// stop closes every idle connection, and lets none be kept from now on.
func (p *peers) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, to := range p.all {
		to.closeIdle(0)
	}
}

// refuseConnections notes that no agent listens on a node, as an attempt saw that
// began at a time. That says nothing about a node that answered before, or called
// since.
func (p *peers) refuseConnections(name string, err error, began time.Time) {
	to, done := p.open(name)
	defer done()
	if !to.met && !to.calledAt.After(began) {
		to.refusal, to.refusedAt = err, time.Now()
	}
}

// refusedLately returns the error of a node that never answered, on which no agent
// listened a moment ago, and that has not called since; nil: call it.
func (p *peers) refusedLately(name string) error {
	to, done := p.open(name)
	defer done()
	if time.Since(to.refusedAt) >= refusedFor {
		return nil
	}
	return to.refusal
}

// takeUp reports whether a node is due to be greeted, and sets when it is due next.
func (p *peers) takeUp(name string, now time.Time) bool {
	to, done := p.open(name)
	defer done()
	if now.Before(to.due) {
		return false
	}
	to.due = now.Add(greetEvery)
	return true
}

// greetNow makes a node due to be greeted at once.
func (p *peers) greetNow(name string) {
	to, done := p.open(name)
	defer done()
	to.due = time.Time{}
	p.look.Send()
}

// left makes a node due to be greeted at once when its last connection to this node
// has ended.
func (p *peers) left(name string) {
	to, done := p.open(name)
	defer done()
	if to.silent.IsZero() { // otherwise its retries greet it
		to.due = time.Time{}
		p.look.Send()
	}
}

// doubt makes a node due to be greeted soon: something about it is odd. The pauses
// of a node that disagrees grow all the same, even if each side doubts the other.
func (p *peers) doubt(name string) {
	to, done := p.open(name)
	defer done()
	if soon := time.Now().Add(to.pauses.Peek()); to.due.After(soon) {
		to.due = soon
	}
}

// heard notes that a node called, and was understood: if it did not answer, or
// refused to, it may now.
func (p *peers) heard(name string) {
	to, done := p.open(name)
	defer done()
	to.refusal, to.calledAt = nil, time.Now()
	if !to.silent.IsZero() || to.refuses {
		to.due = time.Time{}
		to.pauses.Reset()
		p.look.Send()
	}
}

// answered notes that a node answers.
func (p *peers) answered(name string) {
	to, done := p.open(name)
	since := to.silent
	to.refusal, to.calledAt = nil, time.Now()
	to.met, to.silent, to.why, to.refuses, to.due = true, time.Time{}, "", false, time.Now().Add(greetEvery)
	to.pauses.Reset()
	done()
	if !since.IsZero() && time.Since(since) >= goneFor {
		p.log.Info("node answers again", "node", name)
	}
}

// disagreed notes that a node answers but disagrees, for example because it has
// another key. Somebody may correct that at any time.
func (p *peers) disagreed(name string) {
	to, done := p.open(name)
	defer done()
	to.met, to.silent, to.why, to.refuses = true, time.Time{}, "", true
	to.due = time.Now().Add(to.pauses.Next())
}

// unanswered notes that a node does not answer, and why. A node on which no agent
// ever answered, and none listens, counts as not set up yet, and nothing is
// reported about it.
func (p *peers) unanswered(name string, err error) {
	to, done := p.open(name)
	defer done()
	now := time.Now()
	if to.silent.IsZero() {
		to.silent = now
		to.pauses.Reset()
	}
	to.grace = silentFor
	if refused(err) {
		to.grace = goneFor
	}
	if again := now.Add(to.pauses.Next()); to.due.After(again) || to.due.Before(now) {
		to.due = again
	}
	to.why = ""
	if to.met || !refused(err) {
		to.why = fmt.Sprintf("%v (no answer since %s)", err, to.silent.Format(time.TimeOnly))
	}
}

// silences says which of these nodes do not answer, and why. The others may have
// another name now.
func (p *peers) silences(names []string, now time.Time) (lines []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		if to := p.all[name]; to != nil && to.why != "" && now.Sub(to.silent) >= to.grace {
			lines = append(lines, to.why)
		}
	}
	return lines
}

// forget drops a node that has been silent for forgetAfter. It reports whether the
// node was.
func (p *peers) forget(name string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	to := p.all[name]
	if to == nil || to.silent.IsZero() || now.Sub(to.silent) <= forgetAfter {
		return false
	}
	delete(p.all, name)
	return true
}
