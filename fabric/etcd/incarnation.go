package etcd

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Incarnation is one life of a registry: from its beginning, or from the operator's
// adoption of what was restored, to the next adoption. Revisions of etcd are to be
// compared inside of one alone.
type Incarnation struct {
	Number int64  `json:"number"` // grows with each adoption; the first is 1
	ID     string `json:"id"`     // random: registries with the same numbers differ
	Base   int64  `json:"base"`   // etcd's revision before it
}

// next makes the incarnation after all that are known to have been.
func next(number, base int64) Incarnation {
	return Incarnation{Number: number + 1, ID: randomID(), Base: base}
}

// randomID makes a name that nothing else has.
func randomID() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

// mark is what a node writes into a registry that was restored or replaced, so that no
// node gives addresses by it.
type mark struct {
	Node   string `json:"node"`
	Saw    string `json:"saw"`
	Number int64  `json:"number"` // the highest incarnation that it knew
}

func (k keys) incarnation() string { return k.root + "meta/incarnation" }
func (k keys) restored() string    { return k.root + "meta/restored" }
func (k keys) recording() string   { return k.root + "meta/recording" }

// about reports whether a key is about the registry itself.
func (k keys) about(key string) bool { return strings.HasPrefix(key, k.root+"meta/") }

// last names the key that each write of this node puts; empty: a node without a name.
func (k keys) last() string {
	if k.node == "" {
		return ""
	}
	return k.root + "node/" + k.node + "/last"
}

// view is what one answer of etcd says about the registry itself.
type view struct {
	cluster string // etcd's id of itself
	rev     int64  // of the answer

	is        Incarnation
	isRev     int64 // zero: there is none
	restored  mark
	markRev   int64 // zero: no node says that it was restored
	recording bool  // it was adopted a moment ago: the nodes record what their guests have
	last      int64 // the revision of this node's last write; zero: there is none
	lastID    string
	flaw      error // what cannot be read
	later     bool  // because it is of a later version
}

// views lists the reads of which the answers make a view.
func (k keys) views() []clientv3.Op {
	ops := []clientv3.Op{clientv3.OpGet(k.root+"meta/", clientv3.WithPrefix())}
	if k.last() != "" {
		ops = append(ops, clientv3.OpGet(k.last()))
	}
	return ops
}

// view reads the keys of an answer that are about the registry itself.
func (k keys) view(h *etcdserverpb.ResponseHeader, kvs []*mvccpb.KeyValue) view {
	v := view{cluster: clusterID(h), rev: h.Revision}
	for _, kv := range kvs {
		switch string(kv.Key) {
		case k.incarnation():
			v.isRev = kv.ModRevision
			v.is = read(&v, kv, func(e entry) *Incarnation { return e.Incarnation })
		case k.restored():
			v.markRev = kv.ModRevision
			v.restored = read(&v, kv, func(e entry) *mark { return e.Restored })
		case k.recording():
			v.recording = true
		case k.last():
			v.last, v.lastID = kv.ModRevision, writeOf(kv.Value)
		}
	}
	return v
}

// viewOf makes a view of the answers to the first reads of a transaction, [keys.views].
func (k keys) viewOf(h *etcdserverpb.ResponseHeader, answers []*etcdserverpb.ResponseOp) view {
	var kvs []*mvccpb.KeyValue
	for _, answer := range answers[:min(len(answers), len(k.views()))] {
		kvs = append(kvs, answer.GetResponseRange().GetKvs()...)
	}
	return k.view(h, kvs)
}

func read[T any](v *view, kv *mvccpb.KeyValue, of func(entry) *T) (is T) {
	var e entry
	err := json.Unmarshal(kv.Value, &e)
	switch {
	case e.Format > format:
		v.flaw, v.later = laterVersion(string(kv.Key), e.Format), true
	case err != nil || of(e) == nil:
		v.flaw = fmt.Errorf("key %s is damaged; adopt the registry", kv.Key)
	default:
		is = *of(e)
	}
	return is
}

func clusterID(h *etcdserverpb.ResponseHeader) string { return strconv.FormatUint(h.ClusterId, 16) }

// guard is what a transaction depends on beside the keys of its decision: that the
// registry is the one that the node knows, and that nobody doubts it.
type guard struct {
	keys keys
	asked
	number int64 // of the incarnation
	isRev  int64 // of its key
}

// ifs lists the comparisons.
func (g guard) ifs() []clientv3.Cmp {
	all := []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(g.keys.incarnation()), "=", g.isRev),
		clientv3.Compare(clientv3.CreateRevision(g.keys.restored()), "=", 0),
	}
	if g.keys.last() != "" && g.wrote > 0 { // what was written by now may be later
		all = append(all, clientv3.Compare(clientv3.ModRevision(g.keys.last()), ">", g.wrote-1))
	}
	return all
}
