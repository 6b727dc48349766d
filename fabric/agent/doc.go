// Package agent keeps the guests of one node as they are wanted: their ports,
// host routes and BGP announcements.
//
// [New] takes a cluster and the backends of the node: a [fabric.Dataplane], a
// [fabric.Speaker] and a [fabric.Store]; options add hypervisors
// ([fabric.Source]), the agents of other nodes ([fabric.Nodes]) and extensions. A
// program calls [Agent.Adopt] once, before it opens BGP sessions, and then
// [Agent.Run] until it ends. [Agent.Apply], [Agent.Withdraw] and the others may be
// called at the same time.
//
// The agent imports the standard library only.
package agent
