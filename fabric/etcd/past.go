package etcd

import (
	"cmp"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"

	"github.com/vmfabric/vmfabric/fabric"
)

// refuses has the codes of the errors of etcd that say that it does not do it.
var refuses = map[codes.Code]bool{codes.PermissionDenied: true, codes.InvalidArgument: true, codes.Unauthenticated: true}

// Seen is what a node remembers of its registry. By it a node recognises one that was
// restored from a backup, or replaced: it knows less, and would give addresses away
// that guests have.
type Seen struct {
	Root        string      `json:"root,omitempty"` // the beginning of the registry's keys; empty: an earlier agent kept it
	Cluster     string      `json:"cluster"`        // etcd's id of itself
	Incarnation Incarnation `json:"incarnation"`
	Revision    int64       `json:"revision"`        // the highest that it saw
	Wrote       int64       `json:"wrote,omitempty"` // the revision of its own last write
	Epoch       uint64      `json:"epoch,omitempty"` // the highest of all owners
	Doubt       string      `json:"doubt,omitempty"` // what it saw of a registry that is not the one it was
}

// Memory keeps what a node has seen, while its agent does not run.
type Memory interface {
	// Get reads what was put last; found is false if nothing was.
	Get(v any) (found bool, err error)
	// Put is safe from the agent's end when it returns, and soon from the machine's.
	Put(v any) error
}

// past is what etcd's answers said before. It is safe for concurrent use.
type past struct {
	cache  *cache // of the registry that it is the past of
	memory Memory // nil: none

	mu     sync.Mutex
	seen   Seen
	isRev  int64  // of the incarnation's key
	life   int    // counts the incarnations that this process knew
	marked string // why another node doubts it, or it cannot be read
	unread error  // why what was seen before is not known

	saving sync.Mutex
	saved  Seen
	unkept error // why what was seen is not kept
}

// asked is what was known when a question was asked.
type asked struct {
	life  int
	rev   int64 // the highest that was seen
	wrote int64 // that of this node's last write
}

// remember reads what this node saw before.
func (p *past) remember() {
	if p.memory == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.memory.Get(&p.seen); err != nil {
		p.seen = Seen{}
		p.unread = fmt.Errorf("registry: what this node saw of etcd before cannot be read, so that it could not tell a restored one, and no addresses are given: %w; or adopt the registry", err)
	}
	// What is below other keys proves nothing about the registry that was seen. Nothing is kept
	// of it, so that a prefix that is corrected leaves no doubt behind.
	if was, is := p.seen.Root, p.cache.keys.root; was != "" && was != is {
		p.unread = fmt.Errorf("registry: its keys are below %s by the cluster file, and this node knows those below %s, so no addresses are given; correct the prefix, or, if the registry was moved, adopt it", is, was)
		p.seen = Seen{Epoch: p.seen.Epoch}
	}
	p.saved = p.seen
}

func (p *past) ask() asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return asked{p.life, p.seen.Revision, p.seen.Wrote}
}

// guard gives what a transaction depends on that is decided from now on.
func (p *past) guard() guard {
	p.mu.Lock()
	defer p.mu.Unlock()
	return guard{p.cache.keys, asked{p.life, p.seen.Revision, p.seen.Wrote}, p.seen.Incarnation.Number, p.isRev}
}

// incarnation gives the number of the incarnation, which grows with each adoption; zero:
// it is not known yet.
func (p *past) incarnation() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.Incarnation.Number
}

// identity gives the name of the incarnation; empty: it is not known yet.
func (p *past) identity() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.Incarnation.ID
}

const wayOut = "adopt it once it has what the guests have"

// broken says why no answer is trusted any more; nil: they are.
func (p *past) broken() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.unread != nil:
		return p.unread
	case p.seen.Doubt != "":
		return fmt.Errorf("registry: etcd %s, so no addresses are given; %s", p.seen.Doubt, wayOut)
	case p.marked != "":
		return errors.New("registry: " + p.marked)
	}
	return nil
}

// check looks at the header of an answer. It must be an answer that a majority of etcd
// stands by.
func (p *past) check(h *etcdserverpb.ResponseHeader, a asked) error {
	if h != nil {
		p.mu.Lock()
		if a.life == p.life {
			p.doubt(p.seen.other(view{cluster: clusterID(h), rev: h.Revision}, a))
			p.seen.Cluster, p.seen.Revision = cmp.Or(p.seen.Cluster, clusterID(h)), max(p.seen.Revision, h.Revision)
		}
		p.mu.Unlock()
	}
	return p.broken()
}

// doubt notes why the registry is not the one that it was, once.
func (p *past) doubt(saw string) { p.seen.Doubt = cmp.Or(p.seen.Doubt, saw) }

// other says why what a node sees is not the etcd that it has seen; empty: it can be.
func (s Seen) other(v view, a asked) string {
	switch {
	case s.Incarnation.Number == 0:
	case v.cluster != s.Cluster:
		return fmt.Sprintf("is another one than before (cluster id %s, was %s): its members were made anew, or the endpoints are not members of one etcd", v.cluster, s.Cluster)
	case v.rev < a.rev:
		return fmt.Sprintf("is older than it was (revision %d, was %d): it was restored from a backup", v.rev, a.rev)
	}
	return ""
}

// lost says what of the registry that a node has seen is not there any more.
func (s Seen) lost(v view, a asked) string {
	switch was := s.Incarnation; {
	case was.Number == 0 || v.flaw != nil:
	case v.isRev == 0:
		return fmt.Sprintf("has no registry any more (incarnation %d is gone): its members were made anew, or its keys were removed", was.Number)
	case v.is != was:
		return fmt.Sprintf("has another registry than before (incarnation %d %.8s, was %d %.8s): it was restored from a backup, or replaced", v.is.Number, v.is.ID, was.Number, was.ID)
	case v.last < a.wrote:
		return fmt.Sprintf("lacks what this node wrote last (at revision %d, it has %d): it was restored from a backup", a.wrote, v.last)
	}
	return ""
}

// verdict is what a node does about the registry that it saw.
type verdict int

const (
	trusted   verdict = iota + 1
	doubted           // it is not the one that it was
	renewed           // it was adopted: all that was known is of another one
	unfounded         // it is empty: nobody has begun its first incarnation
	outdated          // the answer is of the registry before
)

// highest gives an epoch that no owner had exceeded when the registry was last seen: the
// registry gives the next one by its revision, unless a caller needs a higher one.
func (p *past) highest() uint64 {
	owned := p.cache.highest()
	p.mu.Lock()
	defer p.mu.Unlock()
	by := uint64(0)
	if n := p.seen.Incarnation.Number; n > 0 {
		by = uint64(n)*fabric.RegistryEpoch + uint64(p.seen.Revision)
	}
	return max(owned, p.seen.Epoch, by)
}

// judge looks at an answer about the registry itself. If it trusts the registry, it has
// the answer taken before it judges another. For a registry in which it sees by itself
// that it is not the one that it was, it gives the mark that is missing there.
func (p *past) judge(v view, a asked, take func()) (verdict, *mark) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.life != p.life {
		return outdated, nil
	}
	p.marked = ""
	switch {
	case v.flaw != nil:
		p.marked = v.flaw.Error() + "; no addresses are given until then"
	case v.markRev > 0:
		p.marked = fmt.Sprintf("node %s says that etcd %s, so no addresses are given; %s", v.restored.Node, v.restored.Saw, wayOut)
	}
	known := p.seen.Incarnation
	switch {
	case p.unread != nil:
		return doubted, nil
	case known.Number == 0 && v.isRev == 0 && p.marked == "":
		return unfounded, nil
	case known.Number > 0 && v.is.Number > known.Number && p.marked == "":
		p.accept(v)
		take()
		return renewed, nil
	}
	saw := ""
	if v.is.Number <= known.Number {
		saw = cmp.Or(p.seen.other(v, a), p.seen.lost(v, a))
	}
	p.doubt(saw)
	if p.seen.Doubt != "" || p.marked != "" {
		m := mark{Node: p.cache.keys.node, Saw: saw, Number: known.Number}
		if saw == "" || v.markRev > 0 && v.restored.Number >= known.Number {
			return doubted, nil
		}
		return doubted, &m
	}
	if known.Number == 0 {
		p.life++ // what was asked before may be answered by an etcd that had no registry yet
	}
	p.isRev = v.isRev
	p.seen = Seen{Root: p.cache.keys.root, Cluster: v.cluster, Incarnation: v.is, Revision: max(p.seen.Revision, v.rev), Wrote: max(p.seen.Wrote, v.last), Epoch: p.seen.Epoch}
	take()
	return trusted, nil
}

// trust has what could not be read of the past forgotten.
func (p *past) trust() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unread = nil
}

// accept has p be the past of the registry that was seen, as it is.
func (p *past) accept(v view) {
	p.life++
	p.isRev, p.unread, p.marked = v.isRev, nil, ""
	p.seen = Seen{Root: p.cache.keys.root, Cluster: v.cluster, Incarnation: v.is, Revision: v.rev, Wrote: v.last, Epoch: p.seen.Epoch}
	p.cache.reset()
}

// wrote notes a write of this node, before anybody relies on it.
func (p *past) wrote(g guard, rev int64) {
	p.mu.Lock()
	if g.life == p.life {
		p.seen.Wrote = max(p.seen.Wrote, rev)
	}
	p.mu.Unlock()
	p.save()
}

// save keeps what was seen.
func (p *past) save() {
	if p.memory == nil {
		return
	}
	p.saving.Lock()
	defer p.saving.Unlock()
	owned := p.cache.highest()
	p.mu.Lock()
	p.seen.Epoch = max(p.seen.Epoch, owned)
	is, known := p.seen, p.unread == nil
	p.mu.Unlock()
	if !known || is == p.saved {
		return
	}
	if p.unkept = p.memory.Put(is); p.unkept == nil {
		p.saved = is
	}
}

// problems says why a restored registry may not be recognised later.
func (p *past) problems() (texts []string) {
	p.saving.Lock()
	defer p.saving.Unlock()
	if p.unkept != nil {
		texts = append(texts, fmt.Sprintf("what this node saw of etcd is not kept, so that it cannot tell a restored one after the agent's next start: %v", p.unkept))
	}
	return texts
}
