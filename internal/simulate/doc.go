// Package simulate runs a whole cluster in one process: the agents with their
// real code, over a kernel, a disk, hypervisors, routers and a network between
// the agents that are in memory. A history of what operators do and of what
// breaks is made from a seed ([NewHistory]), and run in a bubble of package
// testing/synctest, where hours take a second ([Run]). A checker looks whether
// packets find every guest, all the time, and whether everything is right at the
// end. A history that shows a fault is made as short as it still shows it
// ([Shrink]), and told as a story.
package simulate
