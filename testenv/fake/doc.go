// Package fake has the things that an agent stands on, in memory: a
// [Dataplane], a [Speaker], a [Store], a [Source] and, for the agents of other
// nodes, [Nodes]. They obey the same laws as the real ones (testenv/conformance
// holds them to it) and write what they do into a [Journal], in order and in the
// reader's words:
//
//	store web live
//	wire web_net0
//	announce 198.51.100.7/32
//	withdraw 198.51.100.7/32
//	unwire web_net0
//	forget web
//
// Only what changes something is written: a Put of what is there already
// leaves no line. The same words let a test make trouble, see [Trouble].
package fake
