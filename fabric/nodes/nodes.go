package nodes

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Config has what [New] needs.
type Config struct {
	Cluster fabric.Cluster
	Node    fabric.Node  // this node, with the addresses to listen on and to call from
	Logger  *slog.Logger // nil: no log
}

// Nodes talks to the agents of the other nodes. It is safe for concurrent use.
type Nodes struct {
	cluster fabric.Cluster
	self    fabric.Node
	port    uint16
	key     key
	keyFrom string
	log     *slog.Logger
	tally   *tally
	refused atomic.Uint64

	directory *directory // the nodes, and their addresses
	peers     *peers     // the nodes that this one calls
	visitors  *visitors  // the open connections from other nodes
	troubles  *troubles
}

var (
	_ fabric.Nodes     = (*Nodes)(nil)
	_ fabric.Diagnoser = (*Nodes)(nil)
)

// New makes this node's end. It opens no socket: [Nodes.Serve] listens, and
// [Nodes.Ask] calls. Ask works without Serve, too.
func New(c Config) *Nodes {
	log := cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	n := &Nodes{
		cluster: c.Cluster, self: c.Node, port: cmp.Or(c.Cluster.AgentPort, fabric.DefaultAgentPort), log: log,
		tally: &tally{log: log, kinds: map[string]*tallied{}}, peers: newPeers(log),
		visitors: &visitors{known: map[netip.Addr][]visitor{}}, troubles: &troubles{log: log, all: map[string]trouble{}},
	}
	n.key, n.keyFrom = keyOf(&c.Cluster)
	n.directory = newDirectory(c, n.key != nil, log)
	return n
}

// Reconfigure has this end go by other nodes, pools and machines from now on. The name of
// the cluster, its key and the port of the agents stay, and so do this node's addresses.
func (n *Nodes) Reconfigure(c fabric.Cluster) {
	for _, name := range n.directory.reconfigure(c) {
		n.troubles.settle("to " + name)
	}
	n.peers.look.Send() // greet those that are new
}

// Names implements [fabric.Nodes]: the cluster's other nodes in the order of its
// file, then the other nodes that called, by name.
func (n *Nodes) Names() []string { return n.directory.names() }

// Ask implements [fabric.Nodes]. If the connection of earlier questions is broken,
// for example by a restart of the other agent, Ask asks once more on a new one. So
// the other agent may answer one question twice. An older agent gets the parts of a
// notice that it knows.
func (n *Nodes) Ask(ctx context.Context, node string, notice fabric.Notice) (fabric.Answer, error) {
	if err := notice.Validate(); err != nil {
		return fabric.Answer{}, err
	}
	to, err := n.directory.node(node)
	if err != nil {
		return fabric.Answer{}, err
	}
	return n.say(ctx, to, &notice)
}

// request returns the body of a question; without a notice, of a greeting.
func (n *Nodes) request(to string, notice *fabric.Notice) ([]byte, error) {
	return encode(request{
		V: Version, To: to, Nonce: rand.Text(),
		From: sender{n.self.Name, n.self.Address, n.self.Address6}, Notice: notice,
	})
}

// say asks or greets a node, and notes whether it answers.
func (n *Nodes) say(ctx context.Context, to fabric.Node, notice *fabric.Notice) (fabric.Answer, error) {
	body, err := n.request(to.Name, notice)
	if err != nil {
		return fabric.Answer{}, fmt.Errorf("node %s: %w", to.Name, err)
	}
	began := time.Now()
	answer, err := n.exchange(ctx, to, body, notice)
	_, older := errors.AsType[*olderError](err)
	switch {
	case err == nil:
		n.troubles.settle("to " + to.Name)
		n.peers.answered(to.Name)
		return answer, nil
	case older:
		n.peers.answered(to.Name)
		return fabric.Answer{}, fmt.Errorf("node %s: %w", to.Name, err)
	case ctx.Err() != nil:
		n.doubt(to.Name)
		return fabric.Answer{}, fmt.Errorf("node %s: no answer before the question was given up (%w)", to.Name, context.Cause(ctx))
	}
	explained := fmt.Errorf("node %s%w", to.Name, n.explain(err, to, time.Since(began)))
	switch {
	case disagrees(err):
		n.troubles.note("to "+to.Name, explained.Error(), memory)
		n.peers.disagreed(to.Name)
	case !absent(err) && !errors.Is(err, errNoFamily):
		n.peers.unanswered(to.Name, explained)
	}
	return fabric.Answer{}, explained
}

// exchange asks on an idle connection, or else on a new one. It greets, but does
// not ask, a node that never answered and on which no agent listened a moment ago
// (refusedLately). It greets an older agent only by connecting to it. Its errors are
// raw.
func (n *Nodes) exchange(ctx context.Context, to fabric.Node, body []byte, notice *fabric.Notice) (fabric.Answer, error) {
	greeting := notice == nil
	slots := n.peers.slots(to.Name)
	wait := time.NewTimer(patience)
	defer wait.Stop()
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-wait.C:
		return fabric.Answer{}, os.ErrDeadlineExceeded
	case <-ctx.Done():
		return fabric.Answer{}, ctx.Err()
	}
	if c := n.peers.take(to); c != nil && (!greeting || !c.hello.older()) {
		answer, err := n.ask(ctx, to.Name, c, body, notice)
		if !lost(err) {
			return answer, err
		}
		n.peers.drop(to.Name) // the other idle ones broke for the same reason
	} else if c != nil {
		c.Close()
	}
	if !greeting {
		if err := n.peers.refusedLately(to.Name); err != nil {
			return fabric.Answer{}, err
		}
	}
	c, err := n.dial(ctx, to)
	if err != nil {
		return fabric.Answer{}, err
	}
	if greeting && c.hello.older() {
		n.peers.keep(to.Name, c)
		return fabric.Answer{}, nil
	}
	return n.ask(ctx, to.Name, c, body, notice)
}

// ask asks on a connection, and keeps it for the next question unless there was an
// error.
func (n *Nodes) ask(ctx context.Context, to string, c *conn, body []byte, notice *fabric.Notice) (fabric.Answer, error) {
	if notice != nil {
		told, err := c.hello.understood(*notice)
		if err == nil && c.hello.older() {
			body, err = n.request(c.hello.Node, &told)
		}
		if err != nil {
			n.peers.keep(to, c)
			return fabric.Answer{}, err
		}
	}
	answer, err := c.ask(ctx, n, body)
	if err != nil {
		c.Close()
		return answer, err
	}
	n.peers.keep(to, c)
	return answer, nil
}

// explain words an error of exchange, which took the time most, so that it can
// follow the node's name.
func (n *Nodes) explain(err error, to fabric.Node, most time.Duration) error {
	at := fmt.Sprintf("%s, port %d", addresses(to), n.port)
	switch {
	case disagrees(err):
		return fmt.Errorf(": %w", err)
	case errors.Is(err, errNoFamily):
		return fmt.Errorf(": %w; give both an address of one family", err)
	case errors.Is(err, errNoWord):
		return fmt.Errorf(" (%s): it %w: it takes none of this node's addresses (%s) for a node's, has too many connections, or stops; name this node in its cluster file, or give the cluster a key_file and have the network of these addresses under underlay", at, err, addresses(n.self))
	case refused(err):
		return fmt.Errorf(" (%s): no agent listens there (%w); start it there", at, err)
	case absent(err):
		return fmt.Errorf(": cannot be called from %s (%w); give this machine the address, or correct it in the cluster file", addresses(n.self), err)
	case timeout(err):
		return fmt.Errorf(" (%s): no answer within %v; see whether it and its agent are up, that no packet filter on either node drops TCP port %d (ufw status, firewall-cmd --list-all, nft list ruleset), and that no router is between", at, max(most, 0).Round(10*time.Millisecond), n.port)
	case unreachable(err):
		return fmt.Errorf(" (%s): %w; see whether the machine is up and on this network, and that no packet filter on either node rejects TCP port %d (ufw status, firewall-cmd --list-all, nft list ruleset)", at, errnoOf(err), n.port)
	case lost(err):
		return fmt.Errorf(" (%s): its agent went away before it answered (%w); see its log: journalctl -u vmfabric", at, err)
	}
	return fmt.Errorf(" (%s): %w", at, err)
}

// addresses lists a node's addresses for people.
func addresses(node fabric.Node) string {
	switch {
	case !node.Address.IsValid():
		return node.Address6.String()
	case !node.Address6.IsValid():
		return node.Address.String()
	}
	return node.Address.String() + " and " + node.Address6.String()
}
