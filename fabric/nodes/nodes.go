package nodes

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// An answer is waited for so long, from the call on. The notice about a guest
// with thousands of prefixes has more time, by its bytes.
const (
	patience = time.Second
	slowest  = 1 << 20 // bytes a second
)

// Config is what [New] needs.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node  // this one, with the addresses to listen on and to call from
	Logger  *slog.Logger // silent when nil
}

// Nodes talks to the agents of the other nodes. It is safe for concurrent use.
type Nodes struct {
	cluster fabric.Cluster
	self    fabric.Node
	port    uint16
	key     key
	ranges  []netip.Prefix // where nodes call from
	log     *slog.Logger

	mu       sync.Mutex
	callers  map[string]caller // who called, by name
	peers    map[string]*peer  // whom we called, by name
	troubles map[string]trouble
	conns    map[netip.Addr]int   // that are open, by who called
	closed   bool                 // no connection is to be kept
	older    map[string]time.Time // nodes whose agents know no identities, and when that was found out
}

var (
	_ fabric.Nodes     = (*Nodes)(nil)
	_ fabric.Diagnoser = (*Nodes)(nil)
)

// New makes the node's end. It opens nothing: [Nodes.Serve] listens, and
// [Nodes.Ask] calls, which works without Serve too.
func New(c Config) *Nodes {
	return &Nodes{
		cluster: c.Cluster, self: c.Node, port: cmp.Or(c.Cluster.AgentPort, fabric.DefaultAgentPort),
		key: keyOf(&c.Cluster), ranges: c.Cluster.NodeRanges(), log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		callers: map[string]caller{}, peers: map[string]*peer{}, troubles: map[string]trouble{}, conns: map[netip.Addr]int{}, older: map[string]time.Time{},
	}
}

// Names implements [fabric.Nodes]: the cluster's other nodes in the order of
// its file, then those that called, by name.
func (n *Nodes) Names() []string {
	var names []string
	for _, node := range n.cluster.Nodes {
		if node.Name != n.self.Name {
			names = append(names, node.Name)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(n.callers)) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// node gives what is known of a node, in the words of its last call where it
// called.
func (n *Nodes) node(name string) (fabric.Node, error) {
	if name == n.self.Name {
		return fabric.Node{}, fmt.Errorf("node %s is this one; ask another", name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if c, called := n.callers[name]; called {
		return c.node, nil
	}
	return n.cluster.Node(name)
}

// Ask implements [fabric.Nodes]. Where the connection of earlier questions is
// broken, as after a restart of the other agent, it asks once more on a new one;
// so one question may be answered twice. An agent of before is told what it
// understands, and cannot be asked about [fabric.Acquiring].
func (n *Nodes) Ask(ctx context.Context, node string, notice fabric.Notice) (fabric.Answer, error) {
	if !n.isOlder(node) {
		answer, err := n.question(ctx, node, notice)
		if !n.olderRefuses(node, err) {
			return answer, err
		}
	}
	return n.askOlder(ctx, node, notice)
}

// question is Ask of an agent that may refuse what it does not know.
func (n *Nodes) question(ctx context.Context, node string, notice fabric.Notice) (fabric.Answer, error) {
	if err := notice.Validate(); err != nil {
		return fabric.Answer{}, err
	}
	to, err := n.node(node)
	if err != nil {
		return fabric.Answer{}, err
	}
	body, err := encode(request{
		V: Version, To: to.Name, Nonce: rand.Text(),
		From: sender{n.self.Name, n.self.Address, n.self.Address6}, Notice: notice,
	})
	if err != nil {
		return fabric.Answer{}, fmt.Errorf("node %s: %w", node, err)
	}
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, patience+time.Duration(len(body))*time.Second/slowest)
	defer cancel()
	answer, err := n.exchange(bounded, to, body)
	switch {
	case err == nil:
		n.settle("to " + node)
		return answer, nil
	case ctx.Err() != nil:
		return fabric.Answer{}, fmt.Errorf("node %s: no answer before the question was given up (%w)", node, context.Cause(ctx))
	}
	end, _ := bounded.Deadline()
	err = fmt.Errorf("node %s%w", node, n.explain(err, to, end.Sub(began)))
	if disagrees(err) && !n.olderRefuses(node, err) {
		n.note("to "+node, err.Error(), memory)
	}
	return fabric.Answer{}, err
}

// exchange asks on a connection that is there, or else on a new one. Its errors
// are raw.
func (n *Nodes) exchange(ctx context.Context, to fabric.Node, body []byte) (fabric.Answer, error) {
	p := n.peer(to.Name)
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return fabric.Answer{}, ctx.Err()
	}
	if c := n.take(p, to); c != nil {
		answer, err := n.ask(ctx, p, c, body)
		if !lost(err) {
			return answer, err
		}
		n.drop(p) // the others broke for the same reason
	}
	c, err := n.dial(ctx, to)
	if err != nil {
		return fabric.Answer{}, err
	}
	return n.ask(ctx, p, c, body)
}

// ask asks on a connection, and keeps it for the next question where that went
// well.
func (n *Nodes) ask(ctx context.Context, p *peer, c *conn, body []byte) (fabric.Answer, error) {
	answer, err := c.ask(ctx, n.key, body)
	if err != nil {
		c.Close()
		return answer, err
	}
	n.keep(p, c)
	return answer, nil
}

// explain puts an error of exchange, which had so much time, into words that
// follow the node's name.
func (n *Nodes) explain(err error, to fabric.Node, most time.Duration) error {
	at := fmt.Sprintf("%s, port %d", addresses(to), n.port)
	switch {
	case disagrees(err):
		return fmt.Errorf(": %w", err)
	case errors.Is(err, errNoFamily):
		return fmt.Errorf(": %w; give both an address of one family", err)
	case errors.Is(err, errNoWord):
		return fmt.Errorf(" (%s): it %w: it takes none of this node's addresses (%s) for a node's, has too many connections, or stops; add the network of these addresses to underlay in its cluster file", at, err, addresses(n.self))
	case refused(err):
		return fmt.Errorf(" (%s): no agent listens there (%w); start it: systemctl start vmfabric", at, err)
	case absent(err):
		return fmt.Errorf(": cannot be called from %s (%w); give this machine the address, or correct it in the cluster file", addresses(n.self), err)
	case timeout(err):
		return fmt.Errorf(" (%s): no answer within %v; see whether it and its agent are up, and that neither a router nor a firewall is between", at, max(most, 0).Round(10*time.Millisecond))
	case lost(err):
		return fmt.Errorf(" (%s): its agent went away before it answered (%w); see its log: journalctl -u vmfabric", at, err)
	}
	return fmt.Errorf(" (%s): %w", at, err)
}

// addresses lists where a node is, for people.
func addresses(node fabric.Node) string {
	switch {
	case !node.Address.IsValid():
		return node.Address6.String()
	case !node.Address6.IsValid():
		return node.Address.String()
	}
	return node.Address.String() + " and " + node.Address6.String()
}
