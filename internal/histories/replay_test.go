package histories

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// version is what etcd had of an address from a revision on.
type version struct {
	rev  int64
	seen int64              // when that was known here at the latest
	is   *fabric.Allocation // nil: it was free
}

// ownership is what etcd had of a guest's owner from a revision on.
type ownership struct {
	rev, seen int64
	is        fabric.Owner // zero: there was none
	over      []uint64     // the epochs of the owners that it may have ended
	told      bool         // the operation that did it was answered
}

// past is etcd's own history: of the addresses by place, and of the guests by number.
type past struct {
	places [][]version
	owners [][]ownership
}

// replay is etcd's own history of the addresses. Each member tells it, so that it is
// known soon, whichever of them fails.
type replay struct {
	client *clientv3.Client
	root   string
	known  atomic.Int64 // the revision up to which all is known

	mu     sync.Mutex
	all    past
	broken error
}

// startReplay follows etcd from a host until the test ends.
func startReplay(t *testing.T, host *core.Host, endpoints []string) *replay {
	t.Helper()
	connect := func(endpoints ...string) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{
			Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: 3 * time.Second, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
			DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return host.Dial(ctx, "tcp", address) })},
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	made := cluster(endpoints)
	r := &replay{client: connect(endpoints...), root: made.Registry.Etcd.Prefix + "/" + made.Name + "/", all: past{make([][]version, len(places)), make([][]ownership, guests+1)}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, endpoint := range endpoints {
		member := connect(endpoint)
		running.Go(func() { r.follow(ctx, member) })
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

func (r *replay) follow(ctx context.Context, member *clientv3.Client) {
	for ctx.Err() == nil {
		one, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		for answer := range member.Watch(one, "", clientv3.WithPrefix(), clientv3.WithRev(r.known.Load()+1)) {
			if known := r.known.Load(); answer.CompactRevision > known+1 {
				r.fail(fmt.Errorf("etcd has forgotten what was not seen: it is compacted at %d, seen up to %d", answer.CompactRevision, known))
			}
			if answer.Err() != nil {
				break
			}
			r.take(answer.Events)
		}
		cancel()
	}
}

func (r *replay) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = cmp.Or(r.broken, err)
}

func (r *replay) take(events []*clientv3.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, known := now(), r.known.Load() // another member was faster
	for _, e := range events {
		if e.Kv.ModRevision <= known {
			continue
		}
		var value struct {
			Allocation *fabric.Allocation
			Owner      fabric.Owner
		}
		if e.Type == clientv3.EventTypePut && strings.HasPrefix(string(e.Kv.Key), r.root) && len(e.Kv.Value) > 0 {
			if err := json.Unmarshal(e.Kv.Value, &value); err != nil {
				r.broken = cmp.Or(r.broken, fmt.Errorf("%s at %d: %s", e.Kv.Key, e.Kv.ModRevision, e.Kv.Value))
			}
		}
		if p, ok := addressOf(strings.TrimPrefix(string(e.Kv.Key), r.root+"addr/")); ok && place(p) >= 0 {
			v := version{rev: e.Kv.ModRevision, seen: at, is: value.Allocation}
			if v.is != nil {
				v.is.Node, v.is.Epoch = "", 0
			}
			r.all.places[place(p)] = append(r.all.places[place(p)], v)
		}
		if g := guestOf(fabric.Identity(strings.ReplaceAll(strings.TrimPrefix(string(e.Kv.Key), r.root+"guest/"), "%20", " "))); g > 0 && g <= guests {
			r.all.owners[g] = append(r.all.owners[g], ownership{rev: e.Kv.ModRevision, seen: at, is: value.Owner})
		}
		r.known.Store(max(r.known.Load(), e.Kv.ModRevision))
	}
}

// addressOf reads the end of the key of an address, such as cb00710a/32.
func addressOf(key string) (netip.Prefix, bool) {
	digits, length, ok := strings.Cut(key, "/")
	b, err := hex.DecodeString(digits)
	a, is := netip.AddrFromSlice(b)
	bits, err2 := strconv.Atoi(length)
	return netip.PrefixFrom(a, bits), ok && is && err == nil && err2 == nil
}

// ends waits until all is known that has been written, and returns what came after a
// revision.
func (r *replay) ends(t *testing.T, ctx context.Context, after int64) past {
	t.Helper()
	last, err := r.client.Put(ctx, r.root+"last", "")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.broken != nil || r.known.Load() >= last.Header.Revision
	}, time.Minute, 10*time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	require.NoError(t, r.broken)
	all := past{make([][]version, len(places)), make([][]ownership, guests+1)}
	for n, versions := range r.all.places {
		all.places[n] = slices.DeleteFunc(slices.Clone(versions), func(v version) bool { return v.rev <= after })
	}
	for g, owners := range r.all.owners {
		all.owners[g] = slices.DeleteFunc(slices.Clone(owners), func(o ownership) bool { return o.rev <= after })
	}
	return all
}

// mono gives a time of the wall clock by the machine's monotonic one.
func mono(t time.Time) int64 { return now() - int64(time.Since(t)) }

// removal is the end of what an address had: it was given back, or its quarantine ended.
type removal struct {
	place     int
	rev, seen int64
	was       fabric.Allocation
	kept      bool // it is quarantined now
	told      bool // the operation that did it was answered
}

// written is what one transaction wrote.
type written struct {
	rev, seen int64
	gave      []fabric.Allocation
	ended     []*removal
	told      bool // the operation that did it was answered, and gave what is in it
}

// transactions puts the versions together by their revision.
func transactions(all [][]version) (txns []*written) {
	by := map[int64]*written{}
	for n, versions := range all {
		var was *fabric.Allocation
		for _, v := range versions {
			w := by[v.rev]
			if w == nil {
				w = &written{rev: v.rev, seen: v.seen}
				by[v.rev] = w
			}
			switch {
			case v.is != nil && v.is.State == fabric.Allocated:
				w.gave = append(w.gave, *v.is)
			case was != nil:
				w.ended = append(w.ended, &removal{place: n, rev: v.rev, seen: v.seen, was: *was, kept: v.is != nil})
			}
			was = v.is
		}
	}
	return slices.SortedFunc(maps.Values(by), func(a, b *written) int { return cmp.Compare(a.rev, b.rev) })
}

// resolved are the operations of a history with what they did, as far as anybody can know.
type resolved struct {
	ops     []op
	unknown int      // operations whose answer was lost
	done    int      // what those did all the same
	flaws   []string // what etcd has that nobody asked for
	full    []window // when etcd had no space
}

// op is an operation as the model gets it.
type op struct {
	call, back int64
	in         asked
	out        answered
	lost       bool     // its answer was lost
	wrote      *written // what is known that it wrote
}

// resolve finds out by etcd's history what the operations did that nobody was told of.
func resolve(calls []call, all past, full []window) *resolved {
	r := &resolved{full: full}
	txns := transactions(all.places)
	acquired := r.acquisitions(all.owners)
	date(calls, txns, acquired)
	for _, c := range calls {
		switch {
		case c.Kind == list:
		case c.unknown():
			r.unknown++
		case c.Kind == acquire:
			r.owned(c, acquired[c.Guest])
		default:
			r.known(c, txns)
		}
	}
	for _, w := range txns {
		for _, a := range w.gave {
			if !w.told {
				r.gift(w, a, calls)
			}
		}
		var open []*removal
		for _, x := range w.ended {
			if !x.told && len(w.gave) == 0 { // else it follows from what was given
				open = append(open, x)
			}
		}
		if len(open) > 0 {
			r.end(w, open, calls)
		}
	}
	for g, owners := range acquired {
		for _, o := range owners {
			if !o.told {
				r.add(&written{rev: o.rev, seen: o.seen}, calls, op{out: answered{owner: o.is}}, fmt.Sprintf("guest %d was acquired by %s (epoch %d)", g, o.is.Node, o.is.Epoch), func(c call) bool {
					return c.Kind == acquire && c.Guest == g && nodeName(c.ID/1_000_000) == o.is.Node && slices.Contains(o.over, c.Over)
				})
			}
		}
	}
	r.narrow()
	return r
}

// acquisitions gives the changes of the guests' owners to others. Their epochs grow,
// also over times without an owner.
func (r *resolved) acquisitions(all [][]ownership) [][]*ownership {
	acquired := make([][]*ownership, len(all))
	for g, owners := range all {
		var was fabric.Owner
		highest, before := uint64(0), uint64(0)
		for _, o := range owners {
			o.over, before = []uint64{before, was.Epoch}, o.is.Epoch
			// A full etcd forgets the owner of a guest that gives a part back, and the nodes
			// do not.
			if o.is == (fabric.Owner{}) || o.is == was {
				continue
			}
			if o.is.Epoch <= highest {
				r.flaws = append(r.flaws, fmt.Sprintf("revision %d: guest %d has the owner %v after one with epoch %d", o.rev, g, o.is, highest))
			}
			highest, was = max(highest, o.is.Epoch), o.is
			acquired[g] = append(acquired[g], &o)
		}
	}
	return acquired
}

// date has what was written be seen no later than somebody was told of it, or of what was
// written later. On a busy machine etcd's own history comes late: a call that came
// afterwards could pass for the one that did it.
func date(calls []call, txns []*written, acquired [][]*ownership) {
	seen := map[int64][]*int64{}
	gave, ended, owned := map[life]int64{}, map[life]int64{}, map[fabric.Owner]int64{} // the revisions
	note := func(of map[life]int64, a fabric.Allocation, rev int64) {
		if _, earlier := of[lifeOf(a)]; !earlier {
			of[lifeOf(a)] = rev
		}
	}
	for _, w := range txns {
		seen[w.rev] = append(seen[w.rev], &w.seen)
		for _, a := range w.gave {
			note(gave, a, w.rev)
		}
		for _, x := range w.ended {
			note(ended, x.was, w.rev)
		}
	}
	for _, owners := range acquired {
		for _, o := range owners {
			seen[o.rev], owned[o.is] = append(seen[o.rev], &o.seen), o.rev
		}
	}
	told := map[int64]int64{}
	for _, c := range calls {
		if c.unknown() || c.answer.Refused != "" {
			continue
		}
		of := map[string]map[life]int64{allocate: gave, release: ended}[c.Kind]
		revs := []int64{}
		for _, a := range c.answer.Got {
			revs = append(revs, of[lifeOf(a)])
		}
		if c.answer.Owner != nil {
			revs = append(revs, owned[*c.answer.Owner])
		}
		for _, rev := range revs {
			if at, is := told[rev]; !is || c.answer.At < at {
				told[rev] = c.answer.At
			}
		}
	}
	last := int64(math.MaxInt64)
	for _, rev := range slices.Backward(slices.Sorted(maps.Keys(seen))) {
		if at, is := told[rev]; is {
			last = min(last, at)
		}
		for _, at := range seen[rev] {
			last = min(last, *at)
		}
		for _, at := range seen[rev] {
			*at = last
		}
	}
}

// life is one life of an address: what it had from one change to the next.
type life struct {
	prefix netip.Prefix
	state  fabric.AllocationState
	since  int64
}

func lifeOf(a fabric.Allocation) life { return life{a.Prefix, a.State, a.Since.UnixNano()} }

// owned adds an acquisition that was answered, and finds what it wrote.
func (r *resolved) owned(c call, acquired []*ownership) {
	o := op{call: c.At, back: c.answer.At, in: c.asked(), out: c.answered()}
	for _, a := range acquired {
		if c.answer.Refused == "" && !a.told && a.is == *c.answer.Owner && a.seen >= c.At {
			a.told, o.wrote = true, &written{rev: a.rev, seen: a.seen}
			break
		}
	}
	r.ops = append(r.ops, o)
}

// narrow has each operation that wrote something happen no later than that was seen, and
// after the calls of those that wrote before it. That leaves the checker less to try.
func (r *resolved) narrow() {
	var wrote []*op
	for i := range r.ops {
		if r.ops[i].wrote != nil {
			wrote = append(wrote, &r.ops[i])
		}
	}
	slices.SortStableFunc(wrote, func(a, b *op) int { return cmp.Compare(a.wrote.rev, b.wrote.rev) })
	last := int64(0)
	for _, o := range wrote {
		last = max(last, o.call)
		o.call, o.back = last, min(o.back, o.wrote.seen)
		if o.call > o.back {
			r.flaws = append(r.flaws, fmt.Sprintf("revision %d was written before it was asked for: %s", o.wrote.rev, describe(o.in, o.out)))
			o.back = o.call
		}
	}
}

// same reports whether two values are of one life of an address.
func same(a, b fabric.Allocation) bool { return lifeOf(a) == lifeOf(b) }

// known adds an operation that was answered, and finds what it wrote.
func (r *resolved) known(c call, txns []*written) {
	o := op{call: c.At, back: c.answer.At, in: c.asked(), out: c.answered()}
	for _, a := range c.answer.Got {
		for _, w := range txns {
			before := w.seen < c.At // it was written before the call
			if c.Kind == allocate && !before && !w.told && len(w.gave) > 0 && w.gave[0].VM == c.VM && same(w.gave[0], a) {
				w.told, o.wrote = true, w
				break
			}
			i := slices.IndexFunc(w.ended, func(x *removal) bool { return c.Kind == release && same(x.was, a) })
			if i < 0 {
				continue
			}
			if x := w.ended[i]; before || x.told || len(w.gave) > 0 || c.Now && x.kept {
				// Another one did it: an allocation if the transaction gave something, a release
				// with quarantine if it left one. This one found the address free after the
				// answer to its first try was lost, and cannot know by whom.
				o.out.ended, o.out.kept = o.out.ended.with(x.place, false), o.out.kept.with(x.place, false)
			} else {
				x.told, o.wrote = true, w
				o.out.kept = o.out.kept.with(x.place, x.kept)
			}
			break
		}
	}
	r.ops = append(r.ops, o)
}

// gift adds what an operation gave that was not told so: it had no answer, or did it
// twice, because the answer to its first try was lost and others undid that.
func (r *resolved) gift(w *written, a fabric.Allocation, calls []call) {
	r.add(w, calls, op{out: answered{place: place(a.Prefix)}}, fmt.Sprintf("%s was given to %s", a.Prefix, a.VM), func(c call) bool {
		return c.Kind == allocate && c.VM == a.VM
	})
}

// end adds a transaction that ended what addresses had, and of which nobody was told.
func (r *resolved) end(w *written, open []*removal, calls []call) {
	x := open[0]
	if until := mono(x.was.Until); x.was.State == fabric.Quarantined && !x.kept && w.seen >= until {
		r.ops = append(r.ops, op{call: until, back: w.seen, in: asked{kind: expires, place: x.place}, wrote: w})
		return
	}
	// While etcd was full, what was given back had no quarantine.
	spared := !x.kept && slices.ContainsFunc(r.full, func(f window) bool { return f.from <= w.seen && w.seen <= f.to })
	o := op{}
	for _, x := range open {
		o.out.ended = o.out.ended.with(x.place, true)
		o.out.kept = o.out.kept.with(x.place, x.kept)
	}
	r.add(w, calls, o, fmt.Sprintf("%s of guest %d, %s until %s, was given back %v before that", x.was.Prefix, guestOf(x.was.Guest), x.was.State, x.was.Until, time.Duration(mono(x.was.Until)-w.seen)), func(c call) bool {
		switch {
		case c.Kind != release || x.kept == c.Now && !(spared && !c.Now):
			return false
		case c.Guest != 0:
			return guest(c.Guest) == x.was.Guest && x.was.State == fabric.Allocated
		}
		return c.Prefix == x.was.Prefix && (x.was.State == fabric.Allocated || c.Now)
	})
}

// afterwards is how long after its call an operation that was not answered may happen.
const afterwards = 20 * time.Second

// add adds what one of the operations did that can have done it: of those that were not
// answered the one that was called first, which leaves the most orders. One that was
// answered did it with an earlier try, whose answer was lost, and did more afterwards.
func (r *resolved) add(w *written, calls []call, o op, what string, fits func(call) bool) {
	by := call{}
	for _, c := range calls {
		if !fits(c) || c.At > w.seen || c.unknown() && c.At < w.seen-int64(afterwards) {
			continue
		}
		switch {
		case by.ID == 0, c.unknown() && !by.unknown(), c.unknown() && c.At < by.At, !c.unknown() && !by.unknown() && c.answer.At > by.answer.At:
			by = c
		}
	}
	if by.ID == 0 {
		r.flaws = append(r.flaws, fmt.Sprintf("revision %d, seen at %d: %s, and nobody asked for it", w.rev, w.seen, what))
		return
	}
	r.done++
	o.call, o.back, o.in, o.lost, o.wrote = by.At, w.seen, by.asked(), true, w
	if !by.unknown() {
		o.back = min(o.back, by.answer.At)
	}
	r.ops = append(r.ops, o)
}
