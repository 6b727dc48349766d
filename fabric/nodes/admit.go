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

// visitors counts who has connections open. The lock of [Nodes] guards it.
type visitors struct {
	known     map[netip.Addr]int
	strangers []visitor // the oldest first
}

type visitor struct {
	source netip.Addr
	conn   io.Closer
}

// admit reports whether a connection may stay. Where strangers have too many
// open, the oldest of them gives way: a node proves at once that it is one.
func (v *visitors) admit(source netip.Addr, s standing, conn io.Closer) bool {
	switch s {
	case known:
		if v.known[source] >= maxEach {
			return false
		}
		v.known[source]++
		return true
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
		if len(v.strangers) >= maxStrangers {
			v.strangers[0].conn.Close()
			v.strangers = slices.Delete(v.strangers, 0, 1)
		}
		v.strangers = append(v.strangers, visitor{source, conn})
		return true
	}
	return false
}

// prove counts the connection of a stranger among those of nodes that are known.
// It reports whether there is room for it there, and it did not give way already.
func (v *visitors) prove(source netip.Addr, conn io.Closer) bool {
	i := v.stranger(conn)
	if i < 0 || v.known[source] >= maxEach {
		return false
	}
	v.strangers = slices.Delete(v.strangers, i, i+1)
	v.known[source]++
	return true
}

// leave takes a connection that ended out of the count. One that gave way is in
// neither.
func (v *visitors) leave(source netip.Addr, conn io.Closer, was standing) {
	if i := v.stranger(conn); i >= 0 {
		v.strangers = slices.Delete(v.strangers, i, i+1)
		return
	}
	if was != known {
		return
	}
	if v.known[source]--; v.known[source] <= 0 {
		delete(v.known, source)
	}
}

func (v *visitors) stranger(conn io.Closer) int {
	return slices.IndexFunc(v.strangers, func(other visitor) bool { return other.conn == conn })
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
func (n *Nodes) admit(source netip.Addr, conn io.Closer) (standing, bool) {
	s := n.standing(source)
	if s == nobody {
		n.refused.Add(1)
		n.log.Debug("call of a stranger refused", "address", source)
		return s, false
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
	return s, admitted
}

// Refused counts, since the start, the connections and questions that were
// refused because they came from no node of the cluster, had another key, or
// were no questions.
func (n *Nodes) Refused() uint64 { return n.refused.Load() }
