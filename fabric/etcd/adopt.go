package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
)

// recordTime is how long after an adoption, in seconds, the nodes have time to record what
// their guests have, before addresses are given from the pools. It is the lease of a key:
// no clock of a node's says when it is over.
const recordTime = 60

// errRecording refuses what would take an address that a guest may run with.
var errRecording = fmt.Errorf("registry: it was adopted a moment ago, and the nodes record in it what their guests have; addresses are given again within %d s", recordTime)

// judge has an answer about the registry itself judged, and starts what follows.
func (r *Registry) judge(v view, a asked, take func()) verdict {
	is, _ := r.past.judge(v, a, take)
	r.judged(is)
	if is == doubted {
		r.lookAgain.Send() // it leaves the mark
	}
	return is
}

// judged saves a verdict, and starts what follows.
func (r *Registry) judged(is verdict) {
	switch is {
	case renewed:
		r.past.save()
		r.renew.Send()
		r.adopted()
	case doubted:
		r.past.save()
		r.renew.Send() // what the watch says is of another registry
	}
}

// inspect judges what a look has seen. In a registry that was restored or replaced it
// leaves a mark, so that the other nodes hear of it.
func (r *Registry) inspect(ctx context.Context, client *clientv3.Client, v view, a asked) {
	is, m := r.past.judge(v, a, func() {})
	r.judged(is)
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	k := r.cache.keys
	// The endpoints may be of several etcds: the mark is for the one that was seen.
	ifs := append(v.same(k), clientv3.Compare(clientv3.ModRevision(k.restored()), "=", v.markRev))
	_, _ = client.Txn(ctx).If(ifs...).Then(clientv3.OpPut(k.restored(), entry{Format: format, Restored: m}.encode())).Commit() // the next look tries again
}

// same lists the comparisons that hold in the registry that was seen.
func (v view) same(k keys) []clientv3.Cmp {
	all := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k.incarnation()), "=", v.isRev)}
	if k.last() != "" {
		all = append(all, clientv3.Compare(clientv3.ModRevision(k.last()), "=", v.last))
	}
	return all
}

// begin writes the first incarnation, if no other node is faster.
func (r *Registry) begin(ctx context.Context, rev int64) error {
	k, first := r.cache.keys, next(0, rev)
	return r.call(ctx, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		answer, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(k.incarnation()), "=", 0), clientv3.Compare(clientv3.CreateRevision(k.restored()), "=", 0)).
			Then(clientv3.OpPut(k.incarnation(), entry{Format: format, Incarnation: &first}.encode())).Commit()
		if err != nil {
			return nil, err
		}
		return answer.Header, nil
	})
}

// Adopt says what a registry has that was restored or replaced, and, if really is set,
// that it is the right one from now on: a new incarnation begins, all nodes trust it, and
// record what their guests have that run. A registry that is trusted stays as it is.
func (r *Registry) Adopt(ctx context.Context, really bool) (fabric.Adoption, error) {
	for range tries {
		found, v, err := r.survey(ctx)
		if v.later {
			return found, fmt.Errorf("registry: %w", v.flaw)
		}
		if err != nil || found.Doubt == "" || !really {
			return found, err
		}
		if found.Adopted, err = r.succeed(ctx, v, next(found.Next-1, v.rev)); err != nil {
			return found, err
		}
		if found.Adopted {
			r.past.trust()
			_ = r.read(ctx) // a look does it, too
			return found, nil
		}
	}
	return fabric.Adoption{}, errors.New("registry: others changed what it is all the time; try again")
}

// succeed has an incarnation follow the one that was seen. It reports whether that is still
// there, and no other mark.
func (r *Registry) succeed(ctx context.Context, v view, is Incarnation) (done bool, err error) {
	k, id, lease := r.cache.keys, randomID(), clientv3.LeaseID(0)
	err = r.reach(ctx, func(ctx context.Context, c *clientv3.Client) error {
		if lease == 0 {
			granted, err := c.Grant(ctx, recordTime)
			if err != nil {
				return err
			}
			lease = granted.ID
		}
		ifs := append(v.same(k), clientv3.Compare(clientv3.ModRevision(k.restored()), "=", v.markRev))
		answer, err := c.Txn(ctx).If(ifs...).Then(
			clientv3.OpPut(k.incarnation(), entry{Format: format, Write: id, Incarnation: &is}.encode()),
			clientv3.OpPut(k.recording(), entry{Format: format, Write: id}.encode(), clientv3.WithLease(lease)),
			clientv3.OpDelete(k.restored()),
		).Else(clientv3.OpGet(k.incarnation())).Commit()
		if err != nil {
			return err
		}
		done = answer.Succeeded
		for _, kv := range answer.Responses[0].GetResponseRange().GetKvs() { // by an earlier try
			done = done || writeOf(kv.Value) == id
		}
		return nil
	})
	return done, err
}

// survey reads what a registry has, trusted or not.
func (r *Registry) survey(ctx context.Context) (found fabric.Adoption, v view, err error) {
	var all *clientv3.GetResponse
	a := r.past.ask()
	err = r.reach(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		all, err = c.Get(ctx, r.cache.keys.root, clientv3.WithPrefix())
		return err
	})
	if err != nil {
		return found, v, err
	}
	v = r.cache.keys.view(all.Header, all.Kvs)
	if is := r.judge(v, a, func() {}); is == unfounded || is == outdated {
		return found, v, errors.New("registry: it has just begun; try again")
	}
	there := newCache(r.cache.cluster.Load())
	there.load(all.Kvs, v.rev)
	found.Incarnation = v.is.Number
	found.Allocations, _ = there.list(fabric.AllocationFilter{})
	found.Addresses = len(found.Allocations)
	found.Next = max(v.is.Number, v.restored.Number, r.past.incarnation()) + 1
	if broken := r.past.broken(); broken != nil {
		found.Doubt = broken.Error()
	}
	return found, v, nil
}

// Doubted reports whether the registry waits for its adoption: the first that Diagnose
// says is why.
func (r *Registry) Doubted() bool { return r.past.broken() != nil }
