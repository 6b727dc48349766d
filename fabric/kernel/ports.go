package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
)

// ports has the ports as they were put, and the Puts that are under way. Its
// methods wait for nothing.
type ports struct {
	mu       sync.Mutex
	want     map[string]fabric.Port
	arrived  map[string]fabric.Port // whose guests have just arrived, until they are ordinary ports
	underWay map[string]int         // how many Puts of a port are under way
	puts     int                    // how many Puts have ended
	last     map[string]int         // the number of each port's last Put
	awaited  map[string]bool        // adopted ports whose link is to appear
	guarded  guarded
}

func newPorts() *ports {
	return &ports{
		want: map[string]fabric.Port{}, arrived: map[string]fabric.Port{},
		underWay: map[string]int{}, last: map[string]int{}, awaited: map[string]bool{},
		guarded: guarded{map[string]*guard{}, map[string]bool{}},
	}
}

// begin begins a Put, and returns the port as it was put before; zero if it was
// not. The caller ends the Put by its result. After an error the port is wanted as
// it was before.
func (t *ports) begin(p fabric.Port) (was fabric.Port, end func(error)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, wanted := t.want[p.Name]
	t.want[p.Name] = p
	t.guarded.set(p.Name, guardOf(p))
	t.underWay[p.Name]++
	arrives := was.Incoming && !p.Incoming
	if arrives {
		// The guest runs: its packets must pass until its addresses are routed to
		// the port.
		t.arrived[p.Name] = was
	}
	return was, func(err error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		switch {
		case err == nil:
		case wanted:
			t.want[p.Name] = was
			t.guarded.set(p.Name, guardOf(was))
		default:
			delete(t.want, p.Name)
			t.guarded.set(p.Name, nil)
		}
		if arrives {
			delete(t.arrived, p.Name)
		}
		if t.underWay[p.Name]--; t.underWay[p.Name] <= 0 {
			delete(t.underWay, p.Name)
		}
		t.puts++
		t.last[p.Name] = t.puts
	}
}

// remove makes a port unwanted, and returns it.
func (t *ports) remove(name string) (p fabric.Port, wanted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, wanted = t.want[name]
	delete(t.want, name)
	t.guarded.set(name, nil)
	delete(t.awaited, name)
	delete(t.last, name)
	return p, wanted
}

// get returns a port as it was put.
func (t *ports) get(name string) (p fabric.Port, wanted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, wanted = t.want[name]
	return p, wanted
}

// settled returns a port as it was put. It returns none while a Put of it is under
// way.
func (t *ports) settled(name string) (p fabric.Port, settled bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, settled = t.want[name]
	return p, settled && t.underWay[name] == 0
}

// lastPut returns a number that changes with each Put of a port. idle is false
// while one is under way.
func (t *ports) lastPut(name string) (n int, idle bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last[name], t.underWay[name] == 0
}

// names lists the wanted ports, in their order.
func (t *ports) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.want))
}

// anyIncoming reports whether a guest is about to arrive.
func (t *ports) anyIncoming() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.want {
		if p.Incoming {
			return true
		}
	}
	return false
}

// anyTap reports whether a guest has a tap.
func (t *ports) anyTap() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.want {
		if p.NIC.Kind == fabric.Tap {
			return true
		}
	}
	return false
}

// arriving lists the prefixes of guests that are about to arrive, by port, and of
// those that have just arrived.
func (t *ports) arriving() map[string][]netip.Prefix {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string][]netip.Prefix{}
	for name, p := range t.want {
		if p.Incoming {
			all[name] = p.NIC.Prefixes()
		}
	}
	for name, p := range t.arrived {
		all[name] = p.NIC.Prefixes()
	}
	return all
}

// await makes appeared report the link of an adopted port.
func (t *ports) await(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.awaited[name] = true
}

// appeared reports whether a port awaits one of the links. From then on it does not
// await that link any more.
func (t *ports) appeared(names []string) (awaited bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		awaited = awaited || t.awaited[name]
		delete(t.awaited, name)
	}
	return awaited
}
