package endure

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Fault is something that fails while a guest is started, stopped or moved, or while
// nothing else happens. It is over by itself.
type Fault struct {
	Kind  string        // the name of a [FaultKind]
	At    string        // the node or reflector that it is about; empty: none
	Other string        // another node that it is about; empty: none
	Guest string        // whose port it is about; empty: none
	After time.Duration // from the beginning of the episode, or of the process that is killed
	For   time.Duration // how long it lasts
	Times int           // how often a process is killed; the later ones while it starts
	Steps int           // if not zero it begins when the agent wrote so many lines to its log, or after After
}

// FaultKind is a kind of faults.
type FaultKind struct {
	Name   string
	Weight int // how often it comes
	// Right is the time from the end of the fault until everything is right, on a
	// machine that has time for everything at once.
	Right time.Duration
	// Harmless: guests that run, and that nobody starts, stops or moves, lose nothing
	// by it.
	Harmless bool
	// fill says what a fault is about; false: there is nothing for it in this world.
	fill func(p *choice, f *Fault) bool
}

// The stated times until everything is right. Sessions come back within the hold time (9 s),
// agents ask each other anew within seconds, and believe a silent node for 15 s at most.
const (
	repaired    = 10 * time.Second // of what the agent of a node mends by itself
	resumed     = 20 * time.Second // of sessions and connections
	reconciled  = 40 * time.Second // of what several nodes have to agree on
	undisturbed = 15 * time.Second // of a start, a stop and a move without a fault
)

// The names of the kinds of faults.
const (
	AgentKilled      = "agent killed"
	AgentStopped     = "agent stopped"
	AgentStill       = "agent stands still"
	AgentStillLong   = "agent stands still for long"
	ReflectorKilled  = "reflector killed"
	ReflectorStopped = "reflector stopped"
	ReflectorStill   = "reflector stands still"
	ReflectorsKilled = "all reflectors killed"
	DaemonKilled     = "routing daemon of a node killed"
	NodeCut          = "node cut off"
	NodesApart       = "two nodes apart"
	RegistryKilled   = "registry killed"
	RegistryStill    = "registry stands still"
	LibvirtKilled    = "libvirtd killed"
	LibvirtStopped   = "libvirtd restarted"
	LXDKilled        = "lxd killed"
	LXDStopped       = "lxd restarted"
	RulesetFlushed   = "nft ruleset flushed"
	TableDeleted     = "nft table deleted"
	RulesTaken       = "routing rules taken"
	RouteTaken       = "route of a guest taken"
	PortDown         = "port set down"
	PortStripped     = "addresses of a port taken"
)

// FaultKinds are all kinds of faults.
var FaultKinds = []FaultKind{
	{AgentKilled, 60, resumed, true, killed},
	{AgentStopped, 6, resumed, true, (*choice).agent},
	{AgentStill, 6, resumed, true, during(500*time.Millisecond, 5*time.Second, (*choice).anyAgent)},
	{AgentStillLong, 2, reconciled, false, during(12*time.Second, 20*time.Second, (*choice).anyAgent)},
	{ReflectorKilled, 6, resumed, true, during(0, 3*time.Second, (*choice).reflector)},
	{ReflectorStopped, 3, resumed, true, during(0, 3*time.Second, (*choice).reflector)},
	{ReflectorStill, 3, resumed, true, during(time.Second, 6*time.Second, (*choice).reflector)},
	{ReflectorsKilled, 2, resumed, true, during(0, 3*time.Second, (*choice).reflectors)},
	{DaemonKilled, 4, resumed, true, during(0, 2*time.Second, (*choice).daemon)},
	{NodeCut, 6, reconciled, false, during(500*time.Millisecond, 14*time.Second, (*choice).node)},
	{NodesApart, 6, reconciled, true, during(time.Second, 14*time.Second, (*choice).pair)},
	{RegistryKilled, 5, reconciled, true, during(500*time.Millisecond, 8*time.Second, (*choice).registry)},
	{RegistryStill, 5, reconciled, true, during(500*time.Millisecond, 8*time.Second, (*choice).registry)},
	{LibvirtKilled, 4, resumed, true, during(0, 2*time.Second, source(Domain))},
	{LibvirtStopped, 2, resumed, true, source(Domain)},
	{LXDKilled, 3, resumed, true, during(0, 2*time.Second, source(Instance))},
	{LXDStopped, 2, resumed, true, source(Instance)},
	{RulesetFlushed, 5, repaired, true, (*choice).node},
	{TableDeleted, 3, repaired, true, (*choice).node},
	{RulesTaken, 4, repaired, true, (*choice).node},
	{RouteTaken, 5, repaired, false, (*choice).port},
	{PortDown, 3, repaired, false, (*choice).port},
	{PortStripped, 3, repaired, false, (*choice).port},
}

// KindOf returns the kind of that name.
func KindOf(name string) FaultKind {
	i := slices.IndexFunc(FaultKinds, func(k FaultKind) bool { return k.Name == name })
	if i < 0 {
		return FaultKind{Name: name}
	}
	return FaultKinds[i]
}

// choice is a choice of faults for one episode. No two of them are about the same process,
// link or port.
type choice struct {
	rnd   *rand.Rand
	world World
	about Episode
	taken map[string]bool
}

// take returns one of the names that no other fault is about, as what; "": there is none.
func (c *choice) take(what string, names []string) string {
	var free []string
	for _, name := range names {
		if !c.taken[what+name] {
			free = append(free, name)
		}
	}
	if len(free) == 0 {
		return ""
	}
	name := free[c.rnd.IntN(len(free))]
	c.taken[what+name] = true
	return name
}

// near returns the names, and those of the episode's own nodes three times more: a fault
// is to meet what is done.
func (c *choice) near(names []string) []string {
	all := slices.Clone(names)
	for _, name := range names {
		if c.about.on(c.world, name, "") {
			all = append(all, name, name, name)
		}
	}
	return all
}

func (c *choice) mortal() []string {
	return slices.DeleteFunc(slices.Clone(c.world.Nodes), func(n string) bool { return n == c.world.Witness })
}

func (c *choice) agent(f *Fault) bool {
	f.At = c.take("agent ", c.near(c.mortal()))
	return f.At != ""
}

func (c *choice) anyAgent(f *Fault) bool {
	f.At = c.take("agent ", c.near(c.world.Nodes))
	return f.At != ""
}

// killed chooses an agent, when it is killed, and how often: at a moment, or at a line of
// its log.
func killed(c *choice, f *Fault) bool {
	f.Times = 1 + c.rnd.IntN(max(1, c.world.Deaths))
	if c.rnd.IntN(2) == 0 {
		f.Steps = 1 + c.rnd.IntN(30)
	}
	f.For = upTo(c.rnd, 0, 2*time.Second)
	return c.agent(f)
}

func (c *choice) reflector(f *Fault) bool {
	if c.taken["reflectors "] {
		return false
	}
	f.At = c.take("reflector ", c.world.Reflectors)
	c.taken["reflectors "] = true
	return f.At != ""
}

func (c *choice) reflectors(*Fault) bool {
	if c.taken["reflectors "] {
		return false
	}
	c.taken["reflectors "] = true
	return true
}

func (c *choice) daemon(f *Fault) bool {
	var nodes []string
	for _, n := range c.world.Nodes {
		if c.world.Daemons[n] != "" {
			nodes = append(nodes, n)
		}
	}
	f.At = c.take("daemon ", nodes)
	return f.At != ""
}

func (c *choice) node(f *Fault) bool {
	f.At = c.take("network of ", c.near(c.world.Nodes))
	return f.At != ""
}

func (c *choice) pair(f *Fault) bool {
	f.At = c.take("network of ", c.near(c.world.Nodes))
	f.Other = c.take("network of ", c.world.Nodes)
	return f.At != "" && f.Other != ""
}

func (c *choice) registry(f *Fault) bool {
	if c.world.Members == 0 || c.taken["registry "] {
		return false
	}
	c.taken["registry "] = true
	return true
}

// source chooses a node's hypervisor. LXD, if it ends while it does something, leaves halves of
// instances.
func source(kind Kind) func(*choice, *Fault) bool {
	return func(c *choice, f *Fault) bool {
		var nodes []string
		for _, n := range c.world.Nodes {
			if slices.Contains(c.world.Sources[n], kind) && !(kind == Instance && c.about.on(c.world, n, kind)) {
				nodes = append(nodes, n)
			}
		}
		f.At = c.take(string(kind)+"s of ", c.near(nodes))
		return f.At != ""
	}
}

// port chooses the port of a guest that runs and stays.
func (c *choice) port(f *Fault) bool {
	var names []string
	for _, g := range c.world.Running() {
		if c.about.Of(g.Name).Act == "" {
			names = append(names, g.Name)
		}
	}
	f.Guest = c.take("port of ", names)
	f.At = c.world.Guest(f.Guest).On
	return f.Guest != ""
}

// during gives a fault a length between two others.
func during(least, most time.Duration, fill func(*choice, *Fault) bool) func(*choice, *Fault) bool {
	return func(c *choice, f *Fault) bool {
		f.For = upTo(c.rnd, least, most)
		return fill(c, f)
	}
}

func upTo(rnd *rand.Rand, least, most time.Duration) time.Duration {
	return (least + time.Duration(rnd.Int64N(int64(most-least)))).Round(time.Millisecond)
}
