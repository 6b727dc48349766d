package lxd

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// leftover is the port of an instance that is stopped. LXD removes it with the
// stop, unless the guest died while LXD did not run; then it stays for good,
// and every start fails because a link of that name exists.
type leftover struct {
	ports []string
	seen  time.Time // when a list first found it stopped, with a pair; or zero
	often bool      // and another list again
}

// halted notes whether an instance is stopped. s.mu is held.
func (s *Source) halted(k key, vm fabric.VM, stopped bool) {
	if !stopped {
		delete(s.left, k)
		return
	}
	if s.left[k] != nil {
		return
	}
	l := &leftover{}
	for n, nic := range vm.NICs {
		if nic.Kind == fabric.Adopt {
			l.ports = append(l.ports, fabric.PortName(vm.Name, n))
		}
	}
	if len(l.ports) > 0 {
		s.left[k] = l
	}
}

// search looks for the ports of stopped instances. That a pair is there says
// little once: for a moment it is in every start.
func (s *Source) search() {
	if s.hasPair == nil {
		return
	}
	s.mu.Lock()
	left := slices.Collect(maps.Values(s.left))
	s.mu.Unlock()
	for _, l := range left {
		there := slices.ContainsFunc(l.ports, s.hasPair)
		s.mu.Lock()
		switch {
		case !there:
			l.seen, l.often = time.Time{}, false
		case l.seen.IsZero():
			l.seen = time.Now()
		case time.Since(l.seen) >= s.times.leak:
			l.often = true
		}
		s.mu.Unlock()
	}
}

// leaks tells of the ports that LXD left behind and that are still there.
func (s *Source) leaks() []string {
	s.mu.Lock()
	ports := map[string]string{}
	for k, l := range s.left {
		if l.often && s.known[k.name] == nil {
			for _, p := range l.ports {
				ports[p] = k.name
			}
		}
	}
	s.mu.Unlock()
	var problems []string
	for _, p := range slices.Sorted(maps.Keys(ports)) {
		if s.hasPair(p) {
			problems = append(problems, fmt.Sprintf(
				"%s: instance %s is stopped and cannot start, because its link %s is still there (%[1]s did not run when the guest died); ip link del %[3]s",
				s.name, ports[p], p))
		}
	}
	return problems
}
