package etcd

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
)

// blocksOf lists the prefixes of the pools that a refused request asks, if they are full;
// nil: something else is wrong with it.
func (r *Registry) blocksOf(of request, refusal error) (blocks []netip.Prefix) {
	full, is := errors.AsType[*fabric.AllocationError](refusal)
	if !is || full.Reason != fabric.PoolFull || of.allocate == nil {
		return nil
	}
	for _, pool := range r.cache.cluster.Load().Pools {
		if slices.ContainsFunc(of.allocate.Wants, func(w fabric.Want) bool {
			return w.Pool == pool.Name || w.Pool == fabric.AutoPool && w.V6 == pool.Is6()
		}) {
			blocks = append(blocks, pool.Blocks()...)
		}
	}
	return blocks
}

// mostConfirmed is how many keys of a pool are compared before all are read.
const mostConfirmed = 5000

// confirms asks etcd whether the copy has what may make pools full: all keys of some
// prefixes, and of what is around them. It takes nothing from the answer: the copy would
// have addresses of a later time than their guests. It reports false also of large pools
// and of a registry that is not to be trusted.
func (r *Registry) confirms(ctx context.Context, blocks []netip.Prefix) (bool, error) {
	ops := r.cache.keys.views()
	views := len(ops)
	for _, b := range blocks {
		first, end := r.cache.keys.inside(b)
		ops = append(ops, clientv3.OpGet(first, clientv3.WithRange(end), clientv3.WithLimit(mostConfirmed), clientv3.WithKeysOnly()))
	}
	around := r.cache.around(blocks)
	for _, key := range around {
		ops = append(ops, clientv3.OpGet(key, clientv3.WithKeysOnly()))
	}
	if len(blocks) == 0 || len(ops) > maxKeys {
		return false, nil
	}
	var asked asked
	var answer *clientv3.TxnResponse
	err := r.call(ctx, func(ctx context.Context, c *clientv3.Client) (_ *etcdserverpb.ResponseHeader, err error) {
		asked = r.past.ask()
		if answer, err = c.Txn(ctx).Then(ops...).Commit(); err != nil {
			return nil, err
		}
		return answer.Header, nil
	})
	if err != nil {
		return false, err
	}
	there := map[string]int64{}
	for _, page := range answer.Responses[views:] {
		if page.GetResponseRange().GetMore() {
			return false, nil
		}
		for _, kv := range page.GetResponseRange().GetKvs() {
			there[string(kv.Key)] = kv.ModRevision
		}
	}
	same := false
	is := r.judge(r.cache.keys.viewOf(answer.Header, answer.Responses), asked, func() { same = r.cache.has(blocks, around, there) })
	return is == trusted && same, nil
}

// around lists the keys of prefixes around some others, of the lengths that are in use.
func (c *cache) around(blocks []netip.Prefix) (keys []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blocks {
		for bits := range b.Bits() {
			if p := netip.PrefixFrom(b.Addr(), bits).Masked(); c.lengths[lengthOf(p)] || c.table.HasLength(p) {
				keys = append(keys, c.keys.address(p))
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// has reports whether the copy has these revisions of keys, and no other keys inside of
// some prefixes or of a list.
func (c *cache) has(blocks []netip.Prefix, others []string, there map[string]int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, rev := range there {
		if c.revs.of(key) != rev {
			return false
		}
	}
	for _, b := range blocks {
		for _, a := range c.table.Select(fabric.AllocationFilter{Prefix: b}) {
			if key := c.keys.address(a.Prefix); a.Prefix.Bits() >= b.Bits() && there[key] == 0 {
				return false
			}
		}
	}
	return !slices.ContainsFunc(others, func(key string) bool { return c.revs.of(key) != there[key] })
}
