// Package nodes is how the agents of a cluster's nodes talk to each other about
// guests that move: [Nodes] implements [fabric.Nodes] over TCP.
//
// An agent listens on port [fabric.Cluster].AgentPort of the node's own
// addresses, IPv4 and IPv6, never on a wildcard. One JSON line asks and one
// answers. Whoever listens speaks first:
//
//	◀ {"v":1,"cluster":"msk1","node":"node2","nonce":"V4QX...","keyed":true}
//	▶ {"mac":"h0K...","body":{"v":1,"to":"node2","nonce":"7GHZ...","from":{"name":"node1","address":"10.10.0.21"},"notice":{"kind":"claimed","vm":"web",...}}}
//	◀ {"mac":"9rW...","body":{"v":1,"answer":{"held":false}}}
//
// A connection stays for the next question. There is one question at a time on
// each, and more connections for more questions, so that a guest whose answer
// takes long holds up no other's.
//
// # Who may call
//
// Nobody but a neighbour: packets have TTL or hop limit 255, and those with a
// lower one never reach the listener (GTSM, RFC 5082). So no router can be
// between two nodes, as none may be between a diverted packet and its new node.
//
// Nobody but a node, by the address that the call comes from: it must be that of
// a node of the cluster file, or in [fabric.Cluster.NodeRanges], as for the
// sessions of the reflectors. A guest on the same node is a neighbour too, but
// has its own public address, which is in none of them, and the fabric's source
// checks let it send from no other. Its connection is closed without a word.
//
// A caller says which node it is. One of the cluster file must call from its
// address there. Another that is in the ranges is believed, and from then on is
// one of [Nodes.Names], reached at the addresses that it said: a new node
// needs no change on the old ones. It can take neither the name nor the address
// of a node that the file has.
//
// Where reflectors have passwords, those are the cluster's secret here too: each
// line carries a MAC (HMAC-SHA256) with a key that is derived from the cluster's
// name and these passwords, over the nonces of both sides, the direction, the
// number of the line and what it says; an answer's is over the question's MAC
// as well. A line that was recorded, or meant for another node, is worth nothing.
// Nothing is encrypted: what is told is public soon after. Where no reflector
// has a password there is no MAC; one node with and one without do not talk.
package nodes
