package kernel

import (
	"slices"

	"golang.org/x/sys/unix"
)

// verifier reads the settings and the neighbours of ports, for whose changes the
// kernel gives no notification.
type verifier struct {
	rtnl       *socket
	cache      *netlinkCache
	ports      *ports
	conditions *conditions

	next       string // where the next round goes on
	verified   int    // ports since neighbours were listed
	neighbours map[int32][]neighbour
}

// round verifies the next ports in line, and reports whether one is faulty.
func (v *verifier) round() (faulty bool) {
	names := v.ports.names()
	if len(names) == 0 {
		return false
	}
	at, _ := slices.BinarySearch(names, v.next)
	if v.verified += verifyAtMost; v.verified >= len(names) {
		v.verified = 0
		v.listNeighbours(len(names))
	}
	for range min(len(names), verifyAtMost) {
		if at >= len(names) {
			at = 0
		}
		faulty = v.verify(names[at], v.neighbours) || faulty
		at++
	}
	if at >= len(names) {
		at = 0
	}
	v.next = names[at]
	return faulty
}

// listNeighbours lists all neighbours at once, one time for the rounds that go
// through all ports: even for one link the kernel goes through all of them.
func (v *verifier) listNeighbours(ports int) {
	all, err := v.rtnl.neighbours(unix.AF_UNSPEC, 0)
	if err != nil {
		return // keep the last listing
	}
	v.neighbours = map[int32][]neighbour{}
	for _, n := range all {
		v.neighbours[n.index] = append(v.neighbours[n.index], n)
	}
	v.weighNeighbours(all, ports)
}

// verify reads the settings of a port, notes their faults in the cache, and reports
// whether there are any. With all neighbours, it checks the port's, too.
func (v *verifier) verify(name string, all map[int32][]neighbour) bool {
	put, idle := v.ports.lastPut(name)
	l, err := v.rtnl.linkByName(name)
	if err != nil {
		return false // the kernel has notified of a link that is gone
	}
	p, wanted := v.ports.get(name)
	var neighbours []string
	if wanted && all != nil {
		neighbours = neighbourFaults(p, all[l.index])
	}
	if len(neighbours) > 0 {
		// The port may have been put since the listing of all.
		if have, err := v.rtnl.neighbours(unix.AF_UNSPEC, l.index); err == nil {
			neighbours = neighbourFaults(p, have)
		}
	}
	faults := l.settingFaults()
	if last, still := v.ports.lastPut(name); wanted && !(idle && still && put == last) {
		return false // a Put came between; the next round looks again
	}
	cached, done := v.cache.open()
	defer done()
	if m := cached.links[l.index]; m != nil {
		m.settings, m.conf4 = faults, l.conf4
		if all != nil {
			m.neighbours = neighbours
		}
	}
	return len(faults)+len(neighbours) > 0 || wanted && l.reversePathFault(p) != ""
}
