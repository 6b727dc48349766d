// Package simulate runs a whole cluster in one process: the agents with their real
// code, over a kernel, a disk, hypervisors, routers and a network between the
// agents that are in memory. [NewHistory] makes a history of operators' actions and
// of failures from a seed. [Run] runs it in a bubble of package testing/synctest,
// where hours take a second. A checker tests all the time whether packets find
// every guest, and at the end whether everything is right. [Shrink] leaves out
// steps of a history as long as it still shows a fault, and [History.String] tells
// it as a story.
package simulate
