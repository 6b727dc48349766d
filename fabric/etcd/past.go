package etcd

import (
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

// refuses has the codes of the errors of etcd that say that it does not do it.
var refuses = map[codes.Code]bool{codes.PermissionDenied: true, codes.InvalidArgument: true, codes.Unauthenticated: true}

// past is what etcd's answers said before: an etcd that was restored from a backup knows
// less, and would give addresses away that guests have.
type past struct {
	mu      sync.Mutex
	cluster uint64
	rev     int64
	bad     error
}

func (p *past) highest() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rev
}

// broken says why no answer is trusted any more; nil: they are.
func (p *past) broken() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bad
}

// check looks at an answer to a question that was asked when before was the highest
// revision. It must be an answer that a majority of etcd stands by.
func (p *past) check(h *etcdserverpb.ResponseHeader, before int64) error {
	const wayOut = "see that it has what the guests have, then restart the agent on every node"
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.bad != nil:
	case p.cluster != 0 && h.ClusterId != p.cluster:
		p.bad = fmt.Errorf("registry: etcd is another one than before (cluster id %x, was %x), so no addresses are given: its members were made anew, or the endpoints are not members of one etcd; %s", h.ClusterId, p.cluster, wayOut)
	case h.Revision < before:
		p.bad = fmt.Errorf("registry: etcd is older than it was (revision %d, was %d), so no addresses are given: it was restored from a backup; %s", h.Revision, before, wayOut)
	}
	p.cluster, p.rev = h.ClusterId, max(p.rev, h.Revision)
	return p.bad
}
