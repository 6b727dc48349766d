package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/signal"
)

const (
	// tryTime is how long one call may take. The next one meets another member. An
	// agent waits for 5 s for all of them and for the reason.
	tryTime = 1200 * time.Millisecond
	tries   = 3
	// mostDecisions bounds how often a request is decided anew because others were
	// faster. Each time another one got what it wanted.
	mostDecisions = 100
)

// Registry is a [fabric.Registry] in etcd. Run it: until then, and afterwards, all
// methods wait for their context.
type Registry struct {
	conf   *fabric.EtcdConfig
	cache  *cache
	past   past
	own    own
	prober *prober
	tls    *tls.Config

	client  atomic.Pointer[clientv3.Client]
	running chan struct{} // closed when there is a client
	lists   lists
	begun   *pages        // that the last reading has not brought to its end
	renew   signal.Signal // the registry is another one from now on, or not to be trusted
	adopted func()        // is called when it is another one

	watching  atomic.Bool            // the copy is followed
	away      atomic.Pointer[string] // why nothing answers, as of the last look
	listed    atomic.Int64           // counts the lists
	lookAgain signal.Signal
}

var _ fabric.Registry = (*Registry)(nil)

// Option changes how a [Registry] is made.
type Option func(*Registry)

// WithMemory lets a node recognise after its agent's restart that etcd was restored
// from a backup, or replaced: m keeps what it saw, and each write leaves its mark in the
// key of the node.
func WithMemory(node string, m Memory) Option {
	return func(r *Registry) { r.cache.keys.node, r.past.memory = node, m }
}

// WithAdopted has f called when the operator has adopted an etcd that was restored or
// replaced. It may lack what guests have that run: record that again. f returns soon.
func WithAdopted(f func()) Option { return func(r *Registry) { r.adopted = f } }

// New makes the registry of a cluster that has [fabric.RegistryConfig.Etcd]. It
// connects to nothing. The error names what is wrong with the certificates.
func New(cluster *fabric.Cluster, opts ...Option) (*Registry, error) {
	conf := cluster.Registry.Etcd
	if conf == nil {
		return nil, errors.New("registry: the cluster names no etcd; name its members under registry.etcd.endpoints")
	}
	secure, err := tlsOf(conf)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r := &Registry{
		conf: conf, cache: newCache(cluster), tls: secure, prober: newProber(conf.Endpoints, secure),
		running: make(chan struct{}), lists: lists{asked: signal.New()}, lookAgain: signal.New(),
		renew: signal.New(), adopted: func() {},
	}
	r.past.cache = r.cache
	for _, set := range opts {
		set(r)
	}
	r.past.remember()
	r.own.recall()
	r.cache.damage.had = r.own.has
	return r, nil
}

// Reconfigure has the registry go by other pools from now on. Addresses that guests have
// stay theirs. The name of the cluster, and where the etcd is, stay.
func (r *Registry) Reconfigure(c fabric.Cluster) { r.cache.cluster.Store(&c) }

func tlsOf(conf *fabric.EtcdConfig) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if conf.CA != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(conf.CA)) {
			return nil, errors.New("the file of the authority (ca_file) has no certificate; name one that has")
		}
	}
	if conf.Cert != "" {
		pair, err := tls.X509KeyPair([]byte(conf.Cert), []byte(conf.Key))
		if err != nil {
			return nil, fmt.Errorf("this node's certificate and its key do not fit (%w); name two files that were made together", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Shared implements [fabric.Registry]: all nodes of the cluster have the registry.
func (r *Registry) Shared() bool { return true }

// Identity says which registry this is: its keys, and, once it was read, its present life.
func (r *Registry) Identity() fabric.RegistryIdentity {
	return fabric.RegistryIdentity{Name: "etcd, keys below " + r.cache.keys.root, ID: r.past.identity()}
}

// Epoch gives the highest epoch that any guest had by the registry when this node, with its
// memory, last saw it. It needs no etcd.
func (r *Registry) Epoch() uint64 { return r.past.highest() }

// Allocate implements [fabric.Registry].
func (r *Registry) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	p, err := r.decide(ctx, request{allocate: &a})
	if err != nil {
		if !errors.Is(err, fabric.ErrRefused) {
			r.own.note(a)
		}
		return nil, err
	}
	return p.answer, nil
}

// Release implements [fabric.Registry]. While etcd's database is full, what is released
// has no quarantine. If the answer to a release without one is lost, the node cannot know
// whether it was itself that ended what is gone, and says that it was.
func (r *Registry) Release(ctx context.Context, of fabric.ReleaseRequest) ([]fabric.Allocation, error) {
	p, err := r.decide(ctx, request{release: &of})
	if err != nil {
		return nil, err
	}
	return p.answer, nil
}

// Acquire implements [fabric.Registry]. An epoch is above the revision of etcd before it,
// so that those of a guest which was gone in between grow, too.
func (r *Registry) Acquire(ctx context.Context, a fabric.AcquireRequest) (fabric.Owner, error) {
	p, err := r.decide(ctx, request{acquire: &a})
	if err != nil {
		return fabric.Owner{}, err
	}
	return p.owner, nil
}

// Allocations implements [fabric.Registry]. The list can be a few seconds old. If etcd
// does not answer, it is what was known last, with an error: all addresses, or those of
// this node's guests if it has not answered yet.
func (r *Registry) Allocations(ctx context.Context, f fabric.AllocationFilter) ([]fabric.Allocation, error) {
	err := ctx.Err()
	switch {
	case err != nil:
	case r.cache.revision() == 0:
		err = r.know(ctx)
	case !r.watching.Load() || r.away.Load() != nil:
		err = r.list(ctx)
	}
	all, known := r.cache.list(f)
	if !known {
		all = r.own.list(f)
		known = len(all) > 0
	}
	switch {
	case err == nil:
		err = r.past.broken()
	case known:
		err = fmt.Errorf("%w; the addresses are those that were known before", err)
	}
	return all, err
}

// freshness says what of the copy is known to be as it was after a request came.
type freshness int

const (
	pools      freshness = iota + 1 // what may make its pools full
	everything                      // all keys
)

// freshen has the copy confirmed if it says that pools are full, and else reads all keys.
func (r *Registry) freshen(ctx context.Context, full []netip.Prefix) (freshness, error) {
	if same, err := r.confirms(ctx, full); same || err != nil {
		return pools, err
	}
	return everything, r.list(ctx)
}

// decide decides a request and carries the plan out, and does so anew while others change
// what it depends on.
func (r *Registry) decide(ctx context.Context, asked request) (*plan, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := r.past.broken(); err != nil {
		return nil, err
	}
	if r.cache.revision() == 0 {
		if err := r.know(ctx); err != nil {
			return nil, err
		}
	}
	var fresh freshness
	w := writer{r: r, leases: map[int64]clientv3.LeaseID{}}
	for range mostDecisions {
		guard := r.past.guard() // before the decision: of the same registry as what it is made of
		asked.incarnation = guard.number
		var full []netip.Prefix                                    // of the pools, if that is why it is refused
		p, err := r.cache.decide(asked, time.Now().UTC().Round(0)) // as it is read again
		if err == nil {
			var done, narrow bool
			p.guard = guard
			if done, narrow, err = w.write(ctx, p); err != nil {
				return nil, err
			}
			if done {
				return p, nil
			}
			if narrow {
				continue
			}
		} else if full = r.blocksOf(asked, err); fresh == everything || fresh == pools && full != nil {
			return nil, err // the refusal is of what is, not of what was
		}
		if fresh, err = r.freshen(ctx, full); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("registry: others changed the same addresses all the time; try again")
}

// writer carries the plans of one request out.
type writer struct {
	r      *Registry
	leases map[int64]clientv3.LeaseID // by lifetime
	full   bool                       // etcd takes nothing new
}

// write carries a plan out, if nothing that it depends on has changed. Otherwise narrow
// says that the cache has what changed.
func (w *writer) write(ctx context.Context, p *plan) (done, narrow bool, err error) {
	if len(p.revs)+len(p.wide) > maxKeys || len(p.change.Put)+len(p.change.Delete)+len(p.guests) > maxKeys {
		return false, false, fmt.Errorf("registry: %d addresses are too many for one request, which may have %d; give the guest fewer, or release them one by one", len(p.revs), maxKeys-3)
	}
	// A lease of an earlier decision would end too early: its time has begun.
	clear(w.leases)
	if err := w.grant(ctx, p.leases()); err != nil {
		return false, false, err
	}
	o := p.operation(randomID(), w.leases, w.full)
	var answer *clientv3.TxnResponse
	unsure := false // whether an earlier try happened
	err = w.r.call(ctx, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		var err error
		if answer, err = c.Txn(ctx).If(o.ifs...).Then(o.then...).Else(o.reads...).Commit(); err != nil {
			unsure = unsure || !final(err) && !strange(err)
			return nil, err
		}
		return answer.Header, nil
	})
	if err != nil {
		return false, false, err
	}
	if answer.Succeeded {
		if o.signs {
			w.r.past.wrote(p.guard, answer.Header.Revision)
		}
		w.r.cache.learn(o.written(answer.Header.Revision))
		return true, false, nil
	}
	v := p.keys.viewOf(answer.Header, answer.Responses)
	is := w.r.judge(v, p.guard.asked, func() {})
	if is == doubted {
		return false, false, w.r.past.broken()
	}
	if p.picks && v.recording {
		return false, false, errRecording
	}
	read := o.read(answer)
	if unsure && (v.lastID == o.id || o.happened(read)) {
		return true, false, w.r.list(ctx)
	}
	if is != trusted || !p.narrow(read) {
		return false, false, nil
	}
	w.r.cache.learn(read)
	return false, true, nil
}

// grant makes leases of these lifetimes. A lease that no key gets ends by itself.
func (w *writer) grant(ctx context.Context, ttls []int64) error {
	for _, ttl := range ttls {
		if w.leases[ttl] != 0 || w.full {
			continue
		}
		err := w.r.call(ctx, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
			lease, err := c.Grant(ctx, ttl)
			if err != nil {
				return nil, err
			}
			w.leases[ttl] = lease.ID
			return lease.ResponseHeader, nil
		})
		if errors.Is(err, rpctypes.ErrNoSpace) {
			w.full = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

// call does something with the registry, at most tries times: f is the same each time. An
// error does not say that nothing has happened.
func (r *Registry) call(ctx context.Context, f func(context.Context, *clientv3.Client) (*etcdserverpb.ResponseHeader, error)) error {
	var header *etcdserverpb.ResponseHeader
	var before asked
	err := r.reach(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		before = r.past.ask()
		header, err = f(ctx, c)
		return err
	})
	if err != nil {
		header = nil
	}
	broken := r.past.check(header, before)
	if broken != nil {
		r.lookAgain.Send() // it may have been adopted
		return broken
	}
	return err
}

// reach is call for an etcd that is not to be trusted.
func (r *Registry) reach(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	select {
	case <-r.running:
	case <-ctx.Done():
		return fmt.Errorf("registry: the connection to etcd has not begun: %w", ctx.Err())
	}
	client := r.client.Load()
	wait := backoff.Backoff{First: 50 * time.Millisecond, Most: 200 * time.Millisecond}
	for n := 1; ; n++ {
		one, cancel := context.WithTimeout(ctx, tryTime)
		err := f(one, client)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return r.tooLate(ctx)
		case final(err):
			if errors.Is(err, rpctypes.ErrNoSpace) {
				r.prober.due.Store(true)
				r.lookAgain.Send()
			}
			return refusal(err, r.cache.keys.root)
		case strange(err) && n < tries+len(r.prober.endpoints): // the next one may meet etcd
			r.prober.due.Store(true)
			r.lookAgain.Send()
		case n >= tries || r.away.Load() != nil:
			r.lookAgain.Send()
			return fmt.Errorf("registry: %s", r.prober.reason(ctx, client, err))
		}
		if !wait.Wait(ctx) {
			return r.tooLate(ctx)
		}
	}
}

// tooLate is the error of a call whose context has ended.
func (r *Registry) tooLate(ctx context.Context) error {
	return fmt.Errorf("registry: %s: %w", cmp.Or(r.reason(), "etcd did not answer"), ctx.Err())
}

// reason says why nothing answers; empty: it did when it was tried last.
func (r *Registry) reason() string {
	if why := r.away.Load(); why != nil {
		return *why
	}
	return ""
}

// final reports the errors of etcd after which nothing has happened and nothing will.
func final(err error) bool {
	var e rpctypes.EtcdError
	return errors.Is(err, rpctypes.ErrNoSpace) || errors.Is(err, rpctypes.ErrCompacted) || errors.As(err, &e) && refuses[e.Code()]
}

// refusal says for people why etcd refuses a call.
func refusal(err error, root string) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("registry: etcd's database is full; compact and defragment it, and end the alarm (etcdctl alarm disarm): %w", err)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("registry: etcd does not let this node's user read and write %s; grant it that: %w", root, err)
	}
	return fmt.Errorf("registry: etcd refuses it: %w", err)
}
