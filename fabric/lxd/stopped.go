package lxd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Links watches the node's links. LXD makes a guest's port (nictype=p2p) half a
// second and more before it reports the start of the guest.
type Links interface {
	// Changed wakes after links came, went or changed.
	Changed() <-chan struct{}
	// Take returns the names of the links that changed since the last call. With
	// missed, any other may have changed, too.
	Take() (names []string, missed bool)
	// Link returns the index of a link, or 0 if there is none of that name, and
	// whether both ends of its veth pair are on the node.
	Link(name string) (index int, paired bool)
}

// noLinks is a [Links] that sees nothing.
type noLinks struct{}

func (noLinks) Changed() <-chan struct{} { return nil }
func (noLinks) Take() ([]string, bool)   { return nil, false }
func (noLinks) Link(string) (int, bool)  { return 0, false }

// stoppedInstance is a stopped instance of the fabric's whose port LXD makes when
// it starts. LXD removes the port with the stop, unless the guest died while LXD
// did not run. Then the port stays, and every start fails because a link of that
// name exists.
type stoppedInstance struct {
	vm    fabric.VM
	ports map[string]int // the indexes of their links, as last seen; 0: no link
	seen  time.Time      // when a search first found a pair of it; zero: the last one found none
	often bool           // a search found one again after times.leak
}

// stoppedInstances has the stopped instances by their keys and by their ports: each
// change of any link of the node is looked up.
type stoppedInstances struct {
	byKey  map[key]*stoppedInstance
	byPort map[string][]key
}

func newStoppedInstances() stoppedInstances {
	return stoppedInstances{map[key]*stoppedInstance{}, map[string][]key{}}
}

func (s *stoppedInstances) put(k key, i *stoppedInstance) {
	s.remove(k)
	s.byKey[k] = i
	for port := range i.ports {
		s.byPort[port] = append(s.byPort[port], k)
	}
}

func (s *stoppedInstances) remove(k key) {
	i := s.byKey[k]
	if i == nil {
		return
	}
	delete(s.byKey, k)
	for port := range i.ports {
		s.byPort[port] = slices.DeleteFunc(s.byPort[port], func(other key) bool { return other == k })
		if len(s.byPort[port]) == 0 {
			delete(s.byPort, port)
		}
	}
}

// startFor is how long LXD may take from a guest's port to the guest: until then
// LXD still reports the instance as stopped.
const startFor = 30 * time.Second

// setStopped notes whether an instance is stopped.
func (v *view) setStopped(k key, vm fabric.VM, stopped bool) {
	if !stopped {
		v.stopped.remove(k)
		return
	}
	now := &stoppedInstance{vm: vm, ports: map[string]int{}}
	for n, nic := range vm.NICs {
		if nic.Kind != fabric.Adopt {
			continue
		}
		port := fabric.PortName(vm.Name, n)
		now.ports[port] = 0
		if was := v.stopped.byKey[k]; was != nil {
			now.ports[port], now.seen, now.often = was.ports[port], was.seen, was.often
		} else {
			now.ports[port], _ = v.links.Link(port)
		}
	}
	if len(now.ports) == 0 {
		v.stopped.remove(k)
		return
	}
	v.stopped.put(k, now)
}

// watchLinks emits the starts of guests that it sees by their links, until ctx
// ends.
func (s *Source) watchLinks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.links.Changed():
		}
		names, missed := s.links.Take()
		s.mu.Lock()
		if missed {
			names = slices.AppendSeq(names, maps.Keys(s.stopped.byPort))
			for _, g := range s.known {
				names = append(names, g.ports()...)
			}
		}
		for _, name := range names {
			s.linkChanged(name)
		}
		s.mu.Unlock()
	}
}

// linkChanged handles a link that came, went or changed.
func (v *view) linkChanged(name string) {
	var starting []key
	for _, k := range v.stopped.byPort[name] {
		i := v.stopped.byKey[k]
		was := i.ports[name]
		if i.ports[name], _ = v.links.Link(name); i.ports[name] != 0 && i.ports[name] != was {
			starting = append(starting, k)
		}
	}
	// If instances of several projects have the port, only LXD knows which one
	// starts.
	if len(starting) == 1 {
		v.begin(starting[0])
	}
	c, connected := v.daemon.Conn()
	if !connected {
		return
	}
	for _, g := range v.known {
		if g.until.IsZero() || !slices.Contains(g.ports(), name) {
			continue
		}
		// LXD does not report a start that failed: read the instance.
		if index, _ := v.links.Link(name); index == 0 && !c.request(g.key, nil) {
			v.queue.PutLost()
		}
	}
}

// begin emits a guest that LXD is about to start.
func (v *view) begin(k key) {
	vm := v.stopped.byKey[k].vm
	if v.known[vm.Name] != nil {
		return // another instance with its name is the guest
	}
	v.stopped.remove(k)
	now := time.Now()
	v.log.Debug(v.name+" instance starts", "vm", vm.Name, "project", k.project)
	v.read[k] = now // earlier requests do not show the start
	v.known[vm.Name] = &observed{key: k, vm: vm, state: fabric.Live, at: now, until: now.Add(startFor)}
	v.emit(k, fabric.Desired{VM: vm, State: fabric.Live, Since: now}, false)
}

// ports lists the guest's ports that LXD makes.
func (g *observed) ports() (names []string) {
	for n, nic := range g.vm.NICs {
		if nic.Kind == fabric.Adopt {
			names = append(names, fabric.PortName(g.vm.Name, n))
		}
	}
	return names
}

// starts reports whether LXD is about to start a guest whose link came, although it
// still reports the instance as stopped.
func (v *view) starts(g *observed) bool {
	return time.Now().Before(g.until) && slices.ContainsFunc(g.ports(), func(port string) bool {
		index, _ := v.links.Link(port)
		return index != 0
	})
}

// search looks for the ports of stopped instances. One sight of a pair proves
// little: every start has it for a moment.
func (s *Source) search() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.stopped.byKey {
		there := false
		for port, index := range i.ports {
			if index != 0 {
				_, paired := s.links.Link(port)
				there = there || paired
			}
		}
		switch {
		case !there:
			i.seen, i.often = time.Time{}, false
		case i.seen.IsZero():
			i.seen = time.Now()
		case time.Since(i.seen) >= s.times.leak:
			i.often = true
		}
	}
}

// leaks reports the ports that LXD left behind and that are still there.
func (v *view) leaks() []string {
	var problems []string
	for k, i := range v.stopped.byKey {
		if !i.often || v.known[k.name] != nil {
			continue
		}
		for port := range i.ports {
			if _, paired := v.links.Link(port); paired {
				problems = append(problems, fmt.Sprintf(
					"%s: instance %s is stopped and cannot start, because its link %s is still there (%[1]s did not run when the guest died); ip link del %[3]s",
					v.name, k.name, port))
			}
		}
	}
	slices.Sort(problems)
	return problems
}
