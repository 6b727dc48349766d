// Package nodes is how the agents of a cluster's nodes talk to each other about
// guests that move: [Nodes] implements [fabric.Nodes] over TCP.
//
// An agent listens on port [fabric.Cluster].AgentPort of the node's own
// addresses, IPv4 and IPv6, never on a wildcard. One JSON line asks and one
// answers. Whoever listens speaks first:
//
//	◀ {"v":1,"cluster":"msk1","node":"node2","nonce":"V4QX...","keyed":true,"key_from":"key_file","first":4096}
//	▶ {"mac":"h0K...","body":{"v":1,"to":"node2","nonce":"7GHZ...","from":{"name":"node1","address":"10.10.0.21"},"notice":{"kind":"claimed","vm":"web",...}}}
//	◀ {"mac":"9rW...","body":{"v":1,"answer":{"held":false}}}
//
// A connection stays for the next question. There is one question at a time on
// each, and more connections for more questions, so that a guest whose answer
// takes long holds up no other's.
//
// A question without a notice is a greeting. Each node is greeted when the agent
// starts and every 40 s, so that [Nodes.Diagnose] names those that do not answer
// before a guest is on its way to one. Between two greetings the connection stays:
// when it ends, as with an agent that is killed, the node is greeted at once. One on
// which no agent listens is named after 5 s, so that a restart is not, and any other
// that does not answer after 10 s. One that refuses to answer is greeted again
// after 2 s, then less often, down to every 15 s, and at once when it calls.
//
// # Who may call
//
// Nobody but a neighbour: packets have TTL or hop limit 255, and those with a
// lower one never reach the listener (GTSM, RFC 5082). So no router can be
// between two nodes, as none may be between a diverted packet and its new node.
//
// Nobody but a node. The cluster has a key for that, [fabric.Cluster].Key, or one
// that is derived from the reflectors' passwords: each line carries a MAC
// (HMAC-SHA256) over the nonces of both sides, the direction, the number of the
// line and what it says; an answer's is over the question's MAC as well. A line
// that was recorded, or meant for another node, is worth nothing. Nothing is
// encrypted: what is told is public soon after. Two nodes of which one has
// another key, or none, do not talk. Without a key, only calls from the addresses
// of the cluster file's nodes are heard.
//
// A caller says which node it is. One of the cluster file must call from its
// address there. With a key, another in [fabric.Cluster.NodeRanges] is believed,
// and from then on is one of [Nodes.Names]: a new node needs no change on the old
// ones. It can take neither the name nor the address of a node that the file has.
// Of the addresses that a node says it has, those count that the file gives it,
// that it called from, or where it answers as the node that it is; never one of a
// reflector, a core gateway, the gateway, another node or a guest.
//
// # What strangers cost
//
// Until the right MAC has come, a connection is good for one line of maxFirst
// bytes, the size of the buffer that it has anyway; who has more to say greets
// first. Addresses that are no node's may have a few of those open, in which the
// oldest gives way; the nodes' own do not depend on them. What they say is
// counted, see [Nodes.Refused], and never a reason to believe that a node is ill:
// this one greets the node that seems to have said it, and believes that.
package nodes
