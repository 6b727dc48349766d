// Package agent keeps the ports, host routes and BGP announcements of one node's
// guests in their wanted state.
//
// [New] takes a cluster and the backends of the node: a [fabric.Dataplane], a
// [fabric.Speaker] and a [fabric.Store]; options add hypervisors ([fabric.Source]),
// the agents of other nodes ([fabric.Nodes]), a [fabric.Registry] and extensions. A program calls
// [Agent.Adopt] once, before it opens BGP sessions, and then [Agent.Run], which
// returns when its context ends. After Adopt, all other methods are safe for
// concurrent use.
//
// The package imports nothing but the standard library and this module.
package agent
