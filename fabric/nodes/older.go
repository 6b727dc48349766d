package nodes

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// olderFor is how long an agent is taken for an older one, which may be upgraded.
const olderFor = time.Minute

// unknownField is how an agent refuses a notice that knows no identities of
// guests. It would else hear of no claim before it is upgraded, as it reads no
// key that it does not know.
const unknownField = `(json: unknown field "identity")`

// isOlder reports whether a node's agent has lately refused a notice with an identity.
func (n *Nodes) isOlder(node string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.older[node]) < olderFor
}

// olderRefuses reports whether an older agent refuses a notice for what it does
// not know of it, and remembers that.
func (n *Nodes) olderRefuses(node string, err error) bool {
	if err == nil || !disagrees(err) || !strings.Contains(err.Error(), unknownField) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.older[node] = time.Now()
	return true
}

// askOlder asks what an older agent understands.
func (n *Nodes) askOlder(ctx context.Context, node string, notice fabric.Notice) (fabric.Answer, error) {
	if notice.Kind == fabric.Acquiring {
		return fabric.Answer{}, fmt.Errorf("node %s: its agent is an older one, which cannot say who holds an address; upgrade it", node)
	}
	notice.Identity, notice.Acquired = "", time.Time{}
	return n.question(ctx, node, notice)
}
