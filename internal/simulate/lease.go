package simulate

import (
	"bytes"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/internal/requests"
)

// How often one of the guests asks, each in its turn: while steps are under way, and
// while none was for a while.
const (
	askEvery = 500 * time.Millisecond
	askIdly  = 5 * time.Second
)

// lease is what a guest asks for its addresses, and what it is told, wherever it runs.
type lease struct {
	asks    [requests.Kinds][]byte
	told    [requests.Kinds][]byte
	strange [requests.Kinds][]byte // the same, of somebody else on the guest's port
}

// leaseOf makes the requests of a guest, and the answers that follow from its
// description.
func leaseOf(vm fabric.VM, c *fabric.Cluster) (l lease) {
	p := vm.Ports(c)[0]
	own := requests.Guest{MAC: p.NIC.MAC, Addresses: p.NIC.Addresses, Gateway: c.Gateway}
	stranger := own
	stranger.MAC[1]++
	for k := range requests.Kinds {
		l.asks[k], l.strange[k] = own.Frame(k, uint32(k)), stranger.Frame(k, uint32(k))
		a := autoconf.OfferOf(p, c.Guests).Answer(autoconf.Request{From: p.NIC.MAC, Packet: l.asks[k][14:]})
		if len(a.Frames) == 1 {
			l.told[k] = a.Frames[0]
		}
	}
	return l
}

// asksAt has a guest that runs on a node ask there. It reports whether the node's agent
// heard it; then the answer must be that of its description, and that of nobody else.
func (w *world) asksAt(g *guest, n *node, k requests.Kind) (heard bool) {
	links := n.links()
	if links == nil || n.alive() == nil {
		return false
	}
	answers, heard := links.Ask(g.port(), g.lease.asks[k])
	if !heard {
		return false
	}
	if len(answers) != 1 || !bytes.Equal(answers[0], g.lease.told[k]) {
		w.fail("%s runs on %s, and is told %x by its %v, and not %x", g.vm.Name, n.self.Name, answers, k, g.lease.told[k])
	}
	if answers, _ := links.Ask(g.port(), g.lease.strange[k]); len(answers) > 0 {
		w.fail("%s runs on %s, and somebody else on its port is told %x by its %v", g.vm.Name, n.self.Name, answers, k)
	}
	return true
}

// asksAll has a guest ask in every way, at a moment at which much changes for it.
func (w *world) asksAll(g *guest, n *node) {
	for k := range requests.Kinds {
		w.asksAt(g, n, k)
	}
}

// askers has the guests ask, one after the other.
type askers struct {
	last    time.Time
	turn    int
	unheard map[*guest]bool // those that run, and were not heard when they last asked
}

// look has the next guest ask if it is time, and those that were not heard.
func (a *askers) look(w *world) {
	every := askEvery
	if w.isIdle() {
		every = askIdly
	}
	due := time.Since(a.last) >= every
	if !due && len(a.unheard) == 0 {
		return
	}
	all := w.all()
	if due {
		a.last = time.Now()
		a.turn++
	}
	for i, g := range all {
		switch p := g.now(); {
		case p.at == nil || p.paused:
			delete(a.unheard, g)
		case due && a.turn%len(all) == i || a.unheard[g]:
			if w.asks(g, p, requests.Kind(a.turn)%requests.Kinds) {
				delete(a.unheard, g)
			} else {
				a.unheard[g] = true
			}
		}
	}
}

// asks has a guest ask wherever it runs. It reports whether it was heard where it is to
// be reached.
func (w *world) asks(g *guest, p place, k requests.Kind) (heard bool) {
	if p.also != nil {
		w.asksAt(g, p.also, k)
	}
	if g.instance() && p.to != nil && !p.quiet {
		w.asksAt(g, p.to, k)
	}
	return w.asksAt(g, p.at, k)
}

// why returns the reason why a guest is not answered, or "".
func (a *askers) why(g *guest) string {
	if !a.unheard[g] {
		return ""
	}
	return g.port() + ": its requests are not answered"
}
