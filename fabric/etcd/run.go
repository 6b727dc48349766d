package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

const (
	lookEvery  = 3 * time.Second // whether etcd answers
	lookAway   = time.Second     // the same while it does not
	probeEvery = 20              // how many looks until each member is asked
	saveEvery  = 4               // how many looks until what was seen is kept: an agent after this one begins with that
)

// Run connects to etcd and keeps the copy of its keys up to date until ctx ends. Call it
// once. An etcd that does not answer is no error: Diagnose has it.
func (r *Registry) Run(ctx context.Context) error {
	client, err := connect(ctx, r.conf, r.tls)
	if err != nil {
		return err
	}
	r.client.Store(client)
	close(r.running)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { r.readLists(ctx); return nil })
	tasks.Go(func() error { r.follow(ctx, client); return nil })
	tasks.Go(func() error { r.look(ctx, client); return nil })
	err = tasks.Wait()
	r.watching.Store(false)
	r.past.save()
	r.own.keep(r.cache)
	if closed := client.Close(); !errors.Is(closed, context.Canceled) {
		err = errors.Join(err, closed)
	}
	return err
}

// connect makes a client. It waits for no member.
func connect(ctx context.Context, conf *fabric.EtcdConfig, secure *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Context: ctx, Endpoints: conf.Endpoints, TLS: secure, DialTimeout: 3 * time.Second,
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		Logger: zap.NewNop(), // its words are about calls; Diagnose has what people need
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			// By itself it would wait for minutes after a long outage.
			Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		})},
	})
}

// follow keeps the cache up to date by a watch, and begins anew when that ends.
func (r *Registry) follow(ctx context.Context, client *clientv3.Client) {
	wait := backoff.Backoff{First: 50 * time.Millisecond, Most: 2 * time.Second}
	known := false // the cache has all up to a revision from which a watch can go on
	for {
		if r.past.broken() == nil && (known || r.list(ctx) == nil) {
			r.watching.Store(true) // from here on, what the cache lacks is on its way
			var began bool
			if began, known = r.watch(ctx, client); began {
				wait.Reset()
			}
		}
		r.watching.Store(false)
		if r.past.broken() != nil { // look finds out when that is over
			known = false
			select {
			case <-r.renew:
			case <-ctx.Done():
			}
		}
		if !wait.Wait(ctx) {
			return
		}
	}
}

// watch feeds the cache until the watch ends, or the registry is another one. It reports
// whether it began, and whether another watch can go on where it ended: the member had no
// leader. All nodes see that at the same moment, and are not to read all keys for it.
// While no member answers, it waits for one.
func (r *Registry) watch(ctx context.Context, client *clientv3.Client) (began, goesOn bool) {
	// A member that is cut off from the others ends the watch.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// What follows the revision is delivered in order, and the events of one revision
	// together. The revision of an answer without events says nothing: members before
	// 3.4.25 send it too early.
	events := client.Watch(ctx, r.cache.keys.root, clientv3.WithPrefix(), clientv3.WithRev(r.cache.revision()+1), clientv3.WithCreatedNotify())
	for {
		var answer clientv3.WatchResponse
		var open bool
		select {
		case <-r.renew:
			return began, false
		case answer, open = <-events:
		}
		if !open || answer.Err() != nil { // also that the revision is compacted: the list comes first then
			return began, open && errors.Is(answer.Err(), rpctypes.ErrNoLeader)
		}
		began = true
		changes := make([]change, len(answer.Events))
		for i, e := range answer.Events {
			changes[i] = change{key: string(e.Kv.Key), value: e.Kv.Value, absent: e.Type == clientv3.EventTypeDelete, rev: e.Kv.ModRevision}
		}
		r.cache.watched(changes)
		if slices.ContainsFunc(changes, func(c change) bool { return r.cache.keys.about(c.key) }) {
			r.lookAgain.Send()
		}
	}
}

// look asks regularly whether etcd answers, and whether it is the one it was. A watch
// is silent if not.
func (r *Registry) look(ctx context.Context, client *clientv3.Client) {
	next := time.NewTimer(0)
	defer next.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-r.lookAgain:
		case <-next.C:
		}
		asked := r.past.ask()
		answer, err := r.askViews(ctx, client)
		wait := lookEvery
		switch was := r.away.Load(); {
		case err == nil:
			r.inspect(ctx, client, r.cache.keys.viewOf(answer.Header, answer.Responses), asked)
			if was != nil {
				// The watch may take a moment. A list that takes longer is not waited for, since
				// etcd answers; an error is found again.
				soon, cancel := context.WithTimeout(ctx, leastPageTime)
				_ = r.list(soon)
				cancel()
			}
			r.away.Store(nil)
			if n%saveEvery == 0 {
				r.past.save()
				r.own.keep(r.cache)
			}
			if n%probeEvery == 0 || r.prober.faulty() || r.prober.due.Swap(false) {
				r.prober.look(ctx, client, 0)
			}
			r.avoid(client)
		case ctx.Err() != nil:
			return
		case final(err):
			why := strings.TrimPrefix(refusal(err, r.cache.keys.root).Error(), "registry: ")
			r.away.Store(&why)
		default:
			why := r.prober.reason(ctx, client, err)
			r.away.Store(&why)
			r.avoid(client)
			wait = lookAway
		}
		next.Reset(wait)
	}
}

// askViews reads what is about the registry itself. If another server than etcd answers, it
// asks the next endpoint.
func (r *Registry) askViews(ctx context.Context, client *clientv3.Client) (answer *clientv3.TxnResponse, err error) {
	for range r.prober.endpoints {
		one, cancel := context.WithTimeout(ctx, tryTime)
		answer, err = client.Txn(one).Then(r.cache.keys.views()...).Commit()
		cancel()
		if !strange(err) {
			break
		}
		r.prober.due.Store(true)
	}
	return answer, err
}

// avoid has the client call no endpoint at which another server than etcd was found: every
// call, and the watch, would meet it in turn.
func (r *Registry) avoid(client *clientv3.Client) {
	if is := r.prober.members(); !slices.Equal(is, client.Endpoints()) {
		client.SetEndpoints(is...)
	}
}

// Diagnose says why etcd does not answer, which members of it do not, and which keys
// cannot be read.
func (r *Registry) Diagnose(context.Context) []string {
	var texts []string
	if err := r.past.broken(); err != nil {
		texts = append(texts, err.Error())
	}
	why := r.reason()
	if why != "" {
		texts = append(texts, "registry: "+why)
	}
	if text, still := r.stillReads(); still && why == "" {
		texts = append(texts, "registry: "+text)
	}
	for _, text := range slices.Concat(r.past.problems(), r.own.problems(), r.prober.problems(time.Now(), why == ""), r.cache.problems()) {
		texts = append(texts, "registry: "+text)
	}
	return texts
}
