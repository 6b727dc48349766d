package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Case is what all parties say of an address.
type Case struct {
	Address  netip.Addr
	Cluster  *fabric.Cluster
	Registry *Registry        // nil: the node that is asked has none
	Findings []fabric.Finding // of the nodes that answer
	Silent   []Silence        // the other nodes
}

// Registry is what the registry says of an address.
type Registry struct {
	Shared      bool                // all nodes have it; otherwise the findings have what each knows
	Allocations []fabric.Allocation // with Shared; beside an Error, what was known before
	Error       string              // why it does not answer; empty: it does
}

// Silence is why a node does not say what it knows.
type Silence struct{ Node, Why string }

// Lines explains an address: its pool, its allocation, the steps on the node that has
// it, its owner, and everything that disagrees.
func (c Case) Lines() []fabric.Step {
	at := c.main()
	lines := []fabric.Step{c.pool(at)}
	lines = append(lines, c.allocations(at)...)
	if at == nil {
		lines = append(lines, c.nobody())
	} else {
		lines = append(lines, at.Steps...)
		lines = append(lines, owner(at))
	}
	for _, disagree := range []func(*fabric.Finding) []string{c.guests, c.registry, c.kernels, c.announcements, c.reflectors} {
		for _, t := range disagree(at) {
			lines = append(lines, fabric.Step{Step: fabric.Disagreement, Text: t})
		}
	}
	for _, f := range c.Findings {
		for _, t := range f.Flaws {
			lines = append(lines, fabric.Step{Step: "node " + f.Node, Text: t, Node: f.Node})
		}
	}
	for _, s := range c.Silent {
		t := s.Why + "; what it has is not known"
		lines = append(lines, fabric.Step{Step: "node " + s.Node, Good: at != nil, Text: t})
	}
	return lines
}

// main gives the finding of the node where the guest of the address is: where it is
// announced rather than where it is about to be or was, and of several the one with the
// latest claim; nil: no guest has the address.
func (c Case) main() (at *fabric.Finding) {
	rank := func(g *fabric.FoundGuest) int {
		switch {
		case g.State == fabric.Live && g.Lost == "":
			return 2
		case g.State == fabric.Live:
			return 1
		}
		return 0
	}
	for i := range c.Findings {
		f := &c.Findings[i]
		if f.Guest == nil {
			continue
		}
		if at == nil || cmp.Or(rank(f.Guest)-rank(at.Guest), cmp.Compare(f.Guest.Epoch, at.Guest.Epoch)) > 0 {
			at = f
		}
	}
	return at
}

// pool says whether a guest may have the address.
func (c Case) pool(at *fabric.Finding) fabric.Step {
	pool, in := c.Cluster.PoolOf(c.Address)
	routed := at != nil && at.Guest.Routed
	switch {
	case in && !pool.Contains(c.Address):
		return fabric.Step{Step: "pool", Text: fmt.Sprintf("pool %s excludes it; no guest may have it", pool.Name)}
	case in:
		t := fmt.Sprintf("%s (%s)", pool.Name, pool.Extent())
		if r, reserved := pool.Reserved(c.Address); reserved {
			t += ", reserved by the cluster file" + note(r.Note)
		}
		return fabric.Step{Step: "pool", Good: true, Text: t}
	case routed:
		return fabric.Step{Step: "pool", Good: true, Text: "none: it is in a prefix that is routed to a guest"}
	}
	return fabric.Step{Step: "pool", Text: fmt.Sprintf("it is in no pool of cluster %s; no guest may have it", c.Cluster.Name)}
}

// allocations says what the registry, or each node's own, has of the address.
func (c Case) allocations(at *fabric.Finding) (steps []fabric.Step) {
	if c.Registry == nil {
		return nil
	}
	if c.Registry.Error != "" {
		steps = append(steps, fabric.Step{Step: "registry", Text: c.Registry.Error})
	}
	add := func(node string, all []fabric.Allocation) {
		for _, a := range all {
			steps = append(steps, fabric.Step{Step: "allocation", Good: a.Flaw == "", Text: allocationText(a), Node: node, Allocation: &a})
		}
	}
	if c.Registry.Shared {
		add("", c.Registry.Allocations)
	} else {
		for _, f := range c.Findings {
			add(f.Node, f.Allocations)
		}
	}
	if len(steps) == 0 && at == nil {
		steps = append(steps, fabric.Step{Step: "allocation", Good: true, Text: "none: it is nobody's"})
	}
	return steps
}

// allocationText says for people what a registry has of an address.
func allocationText(a fabric.Allocation) string {
	since := a.Since.Format(time.DateTime)
	what := ""
	if !a.Prefix.IsSingleIP() {
		what = fmt.Sprintf("%s, ", a.Prefix)
	}
	if a.Flaw != "" {
		return what + a.Flaw
	}
	switch a.State {
	case fabric.Reserved:
		return fmt.Sprintf("%sreserved since %s%s", what, since, note(a.Note))
	case fabric.Quarantined:
		return fmt.Sprintf("%sgiven back by guest %s (%s) on %s, rests until %s", what, a.VM, a.Guest, since, a.Until.Format(time.DateTime))
	}
	by := "named by its description"
	switch {
	case a.Dynamic && a.Pool == "":
		by = "given by a pool that is not in the cluster file any more"
	case a.Dynamic:
		by = "given by pool " + a.Pool
	}
	return fmt.Sprintf("%sguest %s (%s) on %s%s, since %s, %s%s", what, a.VM, a.Guest, a.Node, epoch(a.Epoch), since, by, note(a.Note))
}

// epoch adds an epoch to the name of a node; zero: none is known.
func epoch(e uint64) string {
	if e == 0 {
		return ""
	}
	return fmt.Sprintf(", epoch %d", e)
}

func note(n string) string {
	if n == "" {
		return ""
	}
	return " (" + n + ")"
}

// nobody is the step that is missing when no guest has the address.
func (c Case) nobody() fabric.Step {
	t := fmt.Sprintf("no guest of the cluster has %s", c.Address)
	for _, a := range c.all() {
		if a.State == fabric.Allocated && a.Flaw == "" {
			t = fmt.Sprintf("guest %s, whose it is, runs nowhere; start it", a.VM)
		}
	}
	switch len(c.Silent) {
	case 0:
	case 1:
		t += fmt.Sprintf("; node %s may have it, and does not say", c.Silent[0].Node)
	default:
		t += fmt.Sprintf("; %d nodes may have it, and do not say", len(c.Silent))
	}
	return fabric.Step{Step: "guest", Text: t}
}

// owner says whose the address is.
func owner(at *fabric.Finding) fabric.Step {
	g := at.Guest
	t := fmt.Sprintf("guest %s (%s) on %s%s", g.VM, g.Guest, at.Node, epoch(g.Epoch))
	if !g.Acquired.IsZero() {
		t += ", has had it since " + g.Acquired.Format(time.DateTime)
	}
	return fabric.Step{Step: "owner", Good: true, Text: t, Node: at.Node}
}

// all lists what any registry has of the address.
func (c Case) all() []fabric.Allocation {
	if c.Registry == nil {
		return nil
	}
	if c.Registry.Shared {
		return c.Registry.Allocations
	}
	var all []fabric.Allocation
	for _, f := range c.Findings {
		all = append(all, f.Allocations...)
	}
	return all
}

// of names a guest and its node.
func of(f *fabric.Finding) string {
	return fmt.Sprintf("guest %s (%s) on %s", f.Guest.VM, f.Guest.Guest, f.Node)
}

// guests lists the nodes that have the address beside the main one.
func (c Case) guests(at *fabric.Finding) (texts []string) {
	for i := range c.Findings {
		f := &c.Findings[i]
		if f.Guest == nil || f == at {
			continue
		}
		switch g := f.Guest; {
		case g.Guest != at.Guest.Guest:
			texts = append(texts, fmt.Sprintf("%s has it too, beside %s; stop one of the two, or give it another address", of(f), of(at)))
		case g.Moving || at.Guest.Moving || g.State != fabric.Live:
		case g.Lost != "":
			texts = append(texts, fmt.Sprintf("%s has it too, and gave way to %s; stop it on one of the two", of(f), g.Lost))
		default:
			texts = append(texts, fmt.Sprintf("%s is live there and on %s; stop it on one of the two", of(f), at.Node))
		}
	}
	return texts
}

// registry lists where the registry and the guest that has the address differ.
func (c Case) registry(at *fabric.Finding) (texts []string) {
	if c.Registry == nil || at == nil || c.Registry.Shared && c.Registry.Error != "" {
		return nil
	}
	known, asked := c.Registry.Allocations, true
	if !c.Registry.Shared {
		known, asked = at.Allocations, at.OwnRegistry
	}
	if asked && len(known) == 0 {
		texts = append(texts, fmt.Sprintf("%s has it, and the registry has no allocation of it; its agent makes one within a minute, if nothing is in the way", of(at)))
	}
	for _, a := range known {
		texts = append(texts, differs(a, at)...)
	}
	if c.Registry.Shared {
		return texts
	}
	for i := range c.Findings {
		for _, a := range c.Findings[i].Allocations {
			if f := &c.Findings[i]; f != at && a.State == fabric.Allocated && a.Guest != at.Guest.Guest {
				texts = append(texts, fmt.Sprintf("the registry of %s has it for guest %s (%s), and %s has it; release it there, or give one of the two another address", f.Node, a.VM, a.Guest, of(at)))
			}
		}
	}
	return texts
}

// differs says how an allocation differs from the guest that has the address.
func differs(a fabric.Allocation, at *fabric.Finding) []string {
	g := at.Guest
	runs := g.State == fabric.Live && g.Lost == "" && !g.Moving
	earlier := a.Epoch >= fabric.RegistryEpoch && a.Epoch < g.Epoch // that of one node counts its own
	switch {
	case a.Flaw != "": // a step says so
		return nil
	case a.State == fabric.Reserved:
		return []string{fmt.Sprintf("it is reserved%s, and %s has it; end the reservation, or give the guest another address", note(a.Note), of(at))}
	case a.State == fabric.Quarantined:
		return []string{fmt.Sprintf("guest %s (%s) gave it back, so that it rests until %s, and %s has it; stop and start that guest", a.VM, a.Guest, a.Until.Format(time.DateTime), of(at))}
	case a.Guest != g.Guest:
		return []string{fmt.Sprintf("the registry has it for guest %s (%s) on %s, and %s has it; give one of the two another address", a.VM, a.Guest, a.Node, of(at))}
	case runs && (a.Node != at.Node || earlier):
		return []string{fmt.Sprintf("by the registry guest %s is on %s%s, and it runs on %s%s; the agent there records that within a minute, if nothing is in the way", a.VM, a.Node, epoch(a.Epoch), at.Node, epoch(g.Epoch))}
	}
	return nil
}

// kernels lists where a node's kernel and what it wants differ.
func (c Case) kernels(*fabric.Finding) (texts []string) {
	for _, f := range c.Findings {
		for _, p := range f.Ports {
			if f.Guest == nil || p.VM != f.Guest.VM {
				texts = append(texts, fmt.Sprintf("the kernel of %s has it on port %s of guest %s, and no such guest there has it; restart the agent there", f.Node, p.Port, p.VM))
			}
		}
		if g := f.Guest; g != nil && g.State == fabric.Live && !g.Moving && len(f.Flaws) == 0 && !slices.ContainsFunc(f.Ports, func(p fabric.FoundPort) bool { return p.VM == g.VM }) {
			texts = append(texts, fmt.Sprintf("guest %s on %s has it, and no port of its kernel; see what its agent says", g.VM, f.Node))
		}
	}
	return texts
}

// announcements lists the nodes that announce the address and have no guest for it.
func (c Case) announcements(at *fabric.Finding) (texts []string) {
	for _, f := range c.Findings {
		to := ""
		if len(f.Sent) > 0 {
			to = " to " + strings.Join(f.Sent, ", ")
		}
		switch {
		case !f.Announced:
		case f.Guest == nil:
			texts = append(texts, fmt.Sprintf("%s announces it%s, and has no guest with it%s; restart the agent there", f.Node, to, nowhere(at)))
		case f.Guest.State != fabric.Live && !f.Guest.Moving:
			texts = append(texts, fmt.Sprintf("%s announces it%s, and guest %s does not run there; restart the agent there", f.Node, to, f.Guest.VM))
		}
	}
	return texts
}

// nowhere adds that no other node has the address.
func nowhere(at *fabric.Finding) string {
	if at == nil {
		return ", nor has another node that answers"
	}
	return ""
}

// reflectors lists the routes of reflectors that lead to where no guest has the address.
func (c Case) reflectors(at *fabric.Finding) (texts []string) {
	for _, f := range c.Findings {
		for _, r := range f.Routes {
			texts = append(texts, c.leads(r, at))
		}
	}
	slices.Sort(texts)
	return slices.DeleteFunc(slices.Compact(texts), func(t string) bool { return t == "" })
}

// leads says what is wrong with a route of a reflector; empty: nothing, or it is said
// by the node that announces it.
func (c Case) leads(r fabric.FoundRoute, at *fabric.Finding) string {
	if r.Node == "" {
		return fmt.Sprintf("%s has a route to it via %s, which is no node of the cluster; see what announces it there", r.Reflector, r.Via)
	}
	if i := slices.IndexFunc(c.Silent, func(s Silence) bool { return s.Node == r.Node }); i >= 0 {
		return fmt.Sprintf("%s has a route to it via %s, whose agent does not say whether it has it; see whether it runs there", r.Reflector, r.Node)
	}
	i := slices.IndexFunc(c.Findings, func(f fabric.Finding) bool { return f.Node == r.Node })
	switch {
	case i < 0:
		return fmt.Sprintf("%s has a route to it via %s, which was not asked; see what announces it there", r.Reflector, r.Node)
	case c.Findings[i].Guest == nil && !c.Findings[i].Announced:
		return fmt.Sprintf("%s has a route to it via %s, which has no guest with it%s, and announces it to nobody; see the sessions of %[1]s", r.Reflector, r.Node, nowhere(at))
	}
	return ""
}
