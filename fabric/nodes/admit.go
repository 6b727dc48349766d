package nodes

import (
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The number of connections from a known node does not depend on the others:
// strangers, some of which may be new nodes, share a small number.
const (
	maxEach      = 32 // connections from one address of a node: those of its agent, and those of its agent before a restart
	maxStrangers = 64 // connections from all other addresses, as long as they have proven nothing
	maxStranger  = 4  // and from one of these addresses
)

// trust is how far this node trusts an address.
type trust int

const (
	nobody   trust = iota + 1
	stranger       // it may be a new node, which has the key
	known          // a node of the cluster file, or one that called with the key
)

// visitors has the open connections from other addresses. It is safe for concurrent
// use.
type visitors struct {
	mu        sync.Mutex
	known     map[netip.Addr][]visitor // the oldest first
	strangers []visitor                // the oldest first, too
}

type visitor struct {
	source netip.Addr
	conn   io.Closer
	proven bool // a line with the right MAC has come, so it comes from a node
}

// admit adds a connection and reports whether it may stay. If there are too many,
// admit closes the oldest one that has proven nothing: an agent proves at once that
// it is one, and other programs run on its node, too.
func (v *visitors) admit(source netip.Addr, s trust, conn io.Closer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	came := visitor{source: source, conn: conn}
	switch s {
	case known:
		list, room := makeRoom(v.known[source], maxEach)
		if room {
			list = append(list, came)
		}
		v.known[source] = list
		return room
	case stranger:
		has := 0
		for _, other := range v.strangers {
			if other.source == source {
				has++
			}
		}
		if has >= maxStranger {
			return false
		}
		list, _ := makeRoom(v.strangers, maxStrangers)
		v.strangers = append(list, came)
		return true
	}
	return false
}

// makeRoom closes and removes the oldest connection that has proven nothing if
// there are too many. It reports whether there is room.
func makeRoom(list []visitor, most int) ([]visitor, bool) {
	if len(list) < most {
		return list, true
	}
	i := slices.IndexFunc(list, func(v visitor) bool { return !v.proven })
	if i < 0 {
		return list, false
	}
	list[i].conn.Close()
	return slices.Delete(list, i, i+1), true
}

// prove counts a connection as a node's. It reports false if there is no room for
// that, or if the connection was closed to make room for another.
func (v *visitors) prove(source netip.Addr, conn io.Closer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := at(v.known[source], conn); i >= 0 {
		v.known[source][i].proven = true
		return true
	}
	i := at(v.strangers, conn)
	if i < 0 {
		return false
	}
	list, room := makeRoom(v.known[source], maxEach)
	if room {
		v.strangers = slices.Delete(v.strangers, i, i+1)
		v.known[source] = append(list, visitor{source: source, conn: conn, proven: true})
	}
	return room
}

// leave removes a connection that ended, if admit has not removed it already. It
// reports whether no other one from that address is a node's.
func (v *visitors) leave(source netip.Addr, conn io.Closer) (last bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := at(v.strangers, conn); i >= 0 {
		v.strangers = slices.Delete(v.strangers, i, i+1)
	}
	if i := at(v.known[source], conn); i >= 0 {
		v.known[source] = slices.Delete(v.known[source], i, i+1)
	}
	if len(v.known[source]) == 0 {
		delete(v.known, source)
	}
	return !slices.ContainsFunc(v.known[source], func(other visitor) bool { return other.proven })
}

func at(list []visitor, conn io.Closer) int {
	return slices.IndexFunc(list, func(v visitor) bool { return v.conn == conn })
}

// admit counts a connection, or refuses it and logs why.
func (n *Nodes) admit(source netip.Addr, conn io.Closer) bool {
	s := n.directory.trustOf(source)
	if s == nobody {
		n.refused.Add(1)
		n.log.Debug("call of a stranger refused", "address", source)
		return false
	}
	admitted := n.visitors.admit(source, s, conn)
	if !admitted {
		n.refused.Add(1)
		text := "call refused: too many connections from one node"
		if s == stranger {
			text = "call refused: too many connections from an address that is not a node's"
		}
		n.tally.warn(time.Now(), text, "address", source)
	}
	return admitted
}

// Refused counts, since the start, the connections and questions that were refused
// because they came from no node of the cluster, had another key, or were not
// readable as questions.
func (n *Nodes) Refused() uint64 { return n.refused.Load() }
