package nodes

import (
	"io"
	"net/netip"
	"slices"
	"time"
)

// What a node that is known may have open does not depend on what others have:
// strangers, who may turn out to be new nodes, share a small rest.
const (
	maxEach      = 32 // connections from one address of a node: its own, and those of its agent before the restart
	maxStrangers = 64 // connections from all others that have proven nothing yet
	maxStranger  = 4  // of these, from one address
)

// standing is what an address is to this node.
type standing int

const (
	nobody   standing = iota + 1
	stranger          // it may be a new node, which has the key
	known             // a node of the cluster file, or one that called with the key
)

// visitors are the connections that are open. The lock of [Nodes] guards them.
type visitors struct {
	known     map[netip.Addr][]visitor // the oldest first
	strangers []visitor                // likewise
}

type visitor struct {
	source netip.Addr
	conn   io.Closer
	proven bool // it comes from a node: a line with the right MAC has come
}

// admit reports whether a connection may stay. Where there are too many, the
// oldest that has proven nothing gives way: an agent proves at once what it is,
// and on its node there are other programs.
func (v *visitors) admit(source netip.Addr, s standing, conn io.Closer) bool {
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

// makeRoom has the oldest of too many give way that has proven nothing.
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

// prove has a connection count as that of a node. It reports whether there is
// room for it, and it did not give way already.
func (v *visitors) prove(source netip.Addr, conn io.Closer) bool {
	if i := at(v.known[source], conn); i >= 0 {
		v.known[source][i].proven = true
		return true
	}
	i := at(v.strangers, conn)
	if i < 0 || !v.admit(source, known, conn) {
		return false
	}
	v.strangers = slices.Delete(v.strangers, i, i+1)
	return v.prove(source, conn)
}

// leave takes a connection that ended out. One that gave way is gone already.
func (v *visitors) leave(source netip.Addr, conn io.Closer) {
	if i := at(v.strangers, conn); i >= 0 {
		v.strangers = slices.Delete(v.strangers, i, i+1)
	}
	if i := at(v.known[source], conn); i >= 0 {
		v.known[source] = slices.Delete(v.known[source], i, i+1)
	}
	if len(v.known[source]) == 0 {
		delete(v.known, source)
	}
}

func at(list []visitor, conn io.Closer) int {
	return slices.IndexFunc(list, func(v visitor) bool { return v.conn == conn })
}

// standing tells what an address is. Without a key only the addresses of nodes
// are heard: anybody could say that he is a new one.
func (n *Nodes) standing(a netip.Addr) standing {
	if a == n.self.Source(a) {
		return nobody // a program of this machine
	}
	if _, named := n.named(a); named {
		return known
	}
	n.mu.Lock()
	_, called := n.calledFrom(a)
	said := n.saidToBe(a)
	n.mu.Unlock()
	switch {
	case called:
		return known
	case said: // whoever is there has still to say that it is that node
		return stranger
	case n.key == nil, n.reserved[a] != "":
		return nobody
	case slices.ContainsFunc(n.ranges, func(p netip.Prefix) bool { return p.Contains(a) }):
		return stranger
	}
	return nobody
}

// admit counts a connection, or says that it is not to be.
func (n *Nodes) admit(source netip.Addr, conn io.Closer) bool {
	s := n.standing(source)
	if s == nobody {
		n.refused.Add(1)
		n.log.Debug("call of a stranger refused", "address", source)
		return false
	}
	n.mu.Lock()
	admitted := n.visitors.admit(source, s, conn)
	n.mu.Unlock()
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

// Refused counts, since the start, the connections and questions that were
// refused because they came from no node of the cluster, had another key, or
// were no questions.
func (n *Nodes) Refused() uint64 { return n.refused.Load() }
