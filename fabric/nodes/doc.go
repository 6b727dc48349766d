// Package nodes lets the agents of a cluster's nodes talk to each other about
// guests that move: [Nodes] implements [fabric.Nodes] over TCP.
//
// An agent listens on port [fabric.Cluster].AgentPort of the node's own addresses,
// IPv4 and IPv6, never on a wildcard. One JSON line asks and one answers. The
// listening side sends the first line:
//
//	◀ {"v":1,"cluster":"msk1","node":"node2","nonce":"V4QX...","keyed":true,"key_from":"key_file","first":4096,"asks":["listing",...],"now":"2026-11-29T12:03:04Z"}
//	▶ {"mac":"h0K...","body":{"v":1,"to":"node2","nonce":"7GHZ...","from":{"name":"node1","address":"10.10.0.21"},"notice":{"kind":"claimed","vm":"web",...}}}
//	◀ {"mac":"9rW...","body":{"v":1,"answer":{"held":false}}}
//
// The connection stays open for the next question. Each connection has one question
// at a time, and further questions open further connections, so that a slow answer
// about one guest holds up no other guest.
//
// A question without a notice is a greeting. The agent greets each node when it
// starts and every 40 s, so that [Nodes.Diagnose] names the nodes that do not
// answer before a guest moves to one. Between two greetings the connection stays
// open: when it ends, for example because the other agent was killed, the node is
// greeted at once. Diagnose names a node on which no agent listens after 5 s, so
// that it does not name one that restarts, and any other that does not answer after
// 10 s. A node that disagrees is greeted again after 2 s, then less often, down to
// every 15 s, and at once when it calls.
//
// # Who may call
//
// Only a neighbour may call: packets have TTL or hop limit 255, and the kernel
// drops those with a lower one before they reach the listener (GTSM, RFC 5082). So
// no router can be between two nodes, as none may be between a diverted packet and
// its new node.
//
// Only a node may call. The cluster has a key for that, [fabric.Cluster].Key, or
// one that is derived from the reflectors' passwords. Each line carries a MAC
// (HMAC-SHA256) over the nonces of both sides, the direction, the number of the
// line and its body; the MAC of an answer also covers the question's MAC. So a
// recorded line, or one for another node, is refused. Nothing is encrypted: the
// contents are public soon after. Two nodes do not talk if one has another key, or
// none. Without a key, an agent hears only calls from the addresses of the cluster
// file's nodes.
//
// A caller says which node it is. A node of the cluster file must call from its
// address there. With a key, the agent also believes another one in
// [fabric.Cluster.NodeRanges], which is one of [Nodes.Names] from then on: a new
// node needs no change on the old ones. It can take neither the name nor the
// address of a node that the file has. Of the addresses that a node says it has,
// those count that the file gives it, that it called from, or at which it answers
// as this node; never one of a reflector, a core gateway, the gateway, another node
// or a guest.
//
// # What strangers cost
//
// Until a line with the right MAC has come, a connection may carry one line of
// maxFirst bytes, the size of the buffer that it has anyway; a caller with a longer
// question greets first. Addresses that are no node's may have a few such
// connections in all, and one more closes the oldest; those of the nodes do not
// count among them. [Nodes.Refused] counts what strangers send. It is no proof that
// a node has a fault: this agent greets the node that seems to have sent it, and
// believes that answer.
package nodes
