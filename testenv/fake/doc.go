// Package fake has the backends of an agent in memory: a [Dataplane], a [Speaker],
// a [Store], a [Source] and, for the agents of other nodes, [Nodes]. They obey the
// same laws as the real ones (testenv/conformance tests that), and write their
// effects into a [Journal], in order and in the reader's words:
//
//	store web live
//	wire web_net0
//	announce 198.51.100.7/32
//	withdraw 198.51.100.7/32
//	unwire web_net0
//	forget web
//
// A fake writes only changes: a Put that changes nothing leaves no line. By the
// same words a test makes an effect fail or hang, see [Trouble].
package fake
