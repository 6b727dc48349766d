package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Nodes is the [fabric.Nodes] of one node of a cluster whose agents talk in memory.
// When a notice arrives, before the answer, the journal gets "node1 tells node2
// claimed web". That is also the name of the effect, for all nodes of the cluster
// together.
type Nodes struct {
	*Trouble
	self    fabric.Node
	network *network

	// Guarded by network.mu.
	callers []string // nodes that called, and that the cluster does not name
	serving *serving
}

var _ fabric.Nodes = (*Nodes)(nil)

// network connects the agents of a cluster.
type network struct {
	Trouble
	journal *Journal
	named   []string

	mu  sync.Mutex
	all map[string]*Nodes
	cut map[[2]string]bool // pairs of names, in order
}

// serving is a Serve that has not ended.
type serving struct {
	ctx    context.Context
	answer func(context.Context, fabric.Node, fabric.Notice) fabric.Answer
	under  sync.WaitGroup // questions under way
}

// NewNodes makes the ends of a cluster's agents, by the names of their nodes.
// Others reach an end while its Serve runs.
func NewNodes(j *Journal, nodes ...fabric.Node) map[string]*Nodes {
	w := &network{journal: j, all: map[string]*Nodes{}, cut: map[[2]string]bool{}}
	ends := map[string]*Nodes{}
	for _, n := range nodes {
		w.named = append(w.named, n.Name)
		ends[n.Name] = w.add(n)
	}
	return ends
}

func (w *network) add(n fabric.Node) *Nodes {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[n.Name] = &Nodes{Trouble: &w.Trouble, self: n, network: w}
	return w.all[n.Name]
}

// Join makes the end of one more node, which the others' cluster file does not
// name. They know it once it has asked them something.
func (n *Nodes) Join(node fabric.Node) *Nodes { return n.network.add(node) }

// Cut cuts this node and another off from each other, or connects them again.
func (n *Nodes) Cut(other string, cut bool) {
	n.network.mu.Lock()
	defer n.network.mu.Unlock()
	n.network.cut[pair(n.self.Name, other)] = cut
}

func pair(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// Names implements [fabric.Nodes].
func (n *Nodes) Names() []string {
	n.network.mu.Lock()
	defer n.network.mu.Unlock()
	names := slices.Concat(n.network.named, n.callers)
	return slices.DeleteFunc(names, func(name string) bool { return name == n.self.Name })
}

// Ask implements [fabric.Nodes].
func (n *Nodes) Ask(ctx context.Context, node string, notice fabric.Notice) (fabric.Answer, error) {
	if err := notice.Validate(); err != nil {
		return fabric.Answer{}, err
	}
	if !slices.Contains(n.Names(), node) {
		return fabric.Answer{}, fmt.Errorf("node %q is not another one of the cluster", node)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	effect := fmt.Sprintf("%s tells %s %s %s", n.self.Name, node, notice.Kind, notice.VM)
	if err := n.before(ctx, effect); err != nil {
		return fabric.Answer{}, err
	}
	told, err := copied(notice)
	if err != nil {
		return fabric.Answer{}, err
	}
	s, err := n.network.reach(n, node)
	if err != nil {
		return fabric.Answer{}, fmt.Errorf("node %s: %w", node, err)
	}
	n.network.journal.add(effect)
	answers := make(chan fabric.Answer, 1)
	go func() {
		defer s.under.Done()
		answers <- s.answer(s.ctx, n.self, told)
	}()
	select {
	case a := <-answers:
		return a, nil
	case <-ctx.Done():
		return fabric.Answer{}, fmt.Errorf("node %s: no answer: %w", node, ctx.Err())
	}
}

// reach finds the Serve of a node, with one more question under way there.
func (w *network) reach(from *Nodes, to string) (*serving, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	other := w.all[to]
	switch {
	case w.cut[pair(from.self.Name, to)]:
		return nil, errors.New("cut off")
	case other.serving == nil || other.serving.ctx.Err() != nil:
		return nil, errors.New("no agent listens there")
	}
	if name := from.self.Name; !slices.Contains(w.named, name) && !slices.Contains(other.callers, name) {
		other.callers = append(other.callers, name)
		slices.Sort(other.callers)
	}
	other.serving.under.Add(1)
	return other.serving, nil
}

// copied returns a notice as it arrives through a wire.
func copied(n fabric.Notice) (told fabric.Notice, err error) {
	b, err := json.Marshal(n)
	if err == nil {
		err = json.Unmarshal(b, &told)
	}
	return told, err
}

// Serve implements [fabric.Nodes].
func (n *Nodes) Serve(ctx context.Context, answer func(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer) error {
	s := &serving{ctx: ctx, answer: answer}
	n.network.mu.Lock()
	n.serving = s
	n.network.mu.Unlock()
	<-ctx.Done()
	n.network.mu.Lock()
	if n.serving == s {
		n.serving = nil
	}
	n.network.mu.Unlock()
	s.under.Wait()
	return nil
}
