package etcd

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/paging"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// A page may take at least leastPageTime, and the longer the more came too late. When all
// nodes of a large cluster start at once, their pages take seconds each; if every node gave
// up soon and asked again, etcd would work for nobody.
const (
	leastPageTime = 4 * tryTime
	mostPageTime  = 2 * time.Minute
)

// manyKeys is from when on what was read is worth being given back at once.
const manyKeys = 5000

// fewChanges is up to which revision etcd has so few keys that no care is needed: a change
// makes a few.
const fewChanges = 2000

// lists are the readings of all keys: one at a time, each for all who asked before it
// began. One that has begun does not end with those who wait for it, since it can take
// minutes, and what was read would be read again. It is safe for concurrent use.
type lists struct {
	asked signal.Signal

	mu        sync.Mutex
	now, next *reading // nil: none
}

// reading is one reading of all keys.
type reading struct {
	ended chan struct{} // closed at its end
	err   error         // of its end
	began time.Time
}

// later gives a reading that has not begun.
func (l *lists) later() *reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		l.next = &reading{ended: make(chan struct{})}
		l.asked.Send()
	}
	return l.next
}

// running gives the reading that has begun; nil: none has.
func (l *lists) running() *reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// begin begins the next reading; nil: nobody waits for one.
func (l *lists) begin() *reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now, l.next = l.next, nil
	if l.now != nil {
		l.now.began = time.Now()
	}
	return l.now
}

// end tells all who wait for a reading how it ended.
func (l *lists) end(one *reading, err error) {
	l.mu.Lock()
	l.now = nil
	l.mu.Unlock()
	one.err = err
	close(one.ended)
}

// list waits until all keys were read that there are now.
func (r *Registry) list(ctx context.Context) error { return r.await(ctx, r.lists.later()) }

// know waits until all keys were read, as they are now or were a while ago. If that takes
// long, it does not wait: a guest that has its addresses is to start at once.
func (r *Registry) know(ctx context.Context) error {
	if since, still := r.stillReads(); still {
		return fmt.Errorf("registry: %s", cmp.Or(r.reason(), since))
	}
	if one := r.lists.running(); one != nil {
		// After an error it may be too early: etcd did not answer when it began.
		if err := r.await(ctx, one); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return r.list(ctx)
}

// stillReads says since when the first list of all keys is read, if that takes long.
func (r *Registry) stillReads() (text string, still bool) {
	one := r.lists.running()
	if one == nil || r.cache.revision() > 0 || time.Since(one.began) < leastPageTime {
		return "", false
	}
	return fmt.Sprintf("what it has is read since %s, and not read as a whole yet, because etcd is busy; until then no pool gives addresses here", one.began.Format(time.TimeOnly)), true
}

func (r *Registry) await(ctx context.Context, one *reading) error {
	select {
	case <-one.ended:
		return one.err
	case <-ctx.Done():
		return r.tooLate(ctx)
	}
}

// readLists reads all keys whenever somebody waits for that, until ctx ends.
func (r *Registry) readLists(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.lists.asked:
		}
		one := r.lists.begin()
		if one == nil {
			continue
		}
		err := r.read(ctx)
		if err == nil {
			r.past.save()
			r.listed.Add(1)
		}
		r.lists.end(one, err)
	}
}

// read reads all keys, and begins the first incarnation where there is none.
func (r *Registry) read(ctx context.Context) error {
	for range tries {
		all, header, a, err := r.readAll(ctx)
		if errors.Is(err, rpctypes.ErrCompacted) {
			continue // what was being read is forgotten
		}
		if err != nil {
			return err
		}
		rev := header.Revision
		is := r.judge(r.cache.keys.view(header, all), a, func() { r.cache.load(all, rev) })
		if len(all) > manyKeys {
			// What was read is garbage several times as large as what is kept of it. It
			// would stay with the process for minutes.
			all = nil
			runtime.GC() // what gRPC keeps in pools goes with the second collection
			debug.FreeOSMemory()
		}
		if is == unfounded {
			err = r.begin(ctx, rev)
		} else if is != outdated {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("registry: others changed what it is all the time; try again")
}

// pages are all keys as they were at one revision, while they are read.
type pages struct {
	header *etcdserverpb.ResponseHeader // of the answer that says the revision
	asked  asked                        // what was known when it was asked for
	walk   *paging.Walk
	pace   paging.Pace
	late   int // counts the pages that came too late
	all    []*mvccpb.KeyValue
}

// readAll reads all keys, as they are at one revision. header is that of the answer which
// says the revision, and a what was known when it was asked for. An agent that knows
// nothing yet goes on with what an earlier attempt has read: it is older, and better than
// to ask for it again.
func (r *Registry) readAll(ctx context.Context) (all []*mvccpb.KeyValue, header *etcdserverpb.ResponseHeader, a asked, err error) {
	p, err := r.beginPages(ctx)
	if err != nil {
		return nil, nil, p.asked, err
	}
	if was := r.begun; was != nil && r.cache.revision() == 0 && was.goesOn(p) {
		p = was
	}
	r.begun = nil
	for {
		from, end, more := p.walk.Page()
		if !more {
			return p.all, p.header, p.asked, nil
		}
		page, err := r.page(ctx, from, end, p)
		if err != nil {
			if r.cache.revision() == 0 && !errors.Is(err, rpctypes.ErrCompacted) {
				r.begun = p
			}
			return nil, nil, p.asked, err
		}
		p.take(page)
	}
}

// beginPages asks the leader which revision there is.
func (r *Registry) beginPages(ctx context.Context) (*pages, error) {
	root := r.cache.keys.root
	p := &pages{}
	err := r.call(ctx, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		p.asked = r.past.ask()
		now, err := c.Get(ctx, root, clientv3.WithCountOnly())
		if err != nil {
			return nil, err
		}
		p.header = now.Header
		return nil, nil // it is judged as a whole
	})
	if err != nil {
		return p, err
	}
	var dense []string
	if p.header.Revision > fewChanges {
		dense = r.cache.dense()
	}
	p.walk = paging.New(root, dense)
	return p, nil
}

// goesOn reports whether the pages can be of the same etcd as those that are about to
// begin: one that was restored has a lower revision, or began its terms anew.
func (p *pages) goesOn(now *pages) bool {
	was, is := p.header, now.header
	return p.asked.life == now.asked.life && was.ClusterId == is.ClusterId && was.Revision <= is.Revision && was.RaftTerm <= is.RaftTerm
}

// take takes the keys of a page.
func (p *pages) take(page *clientv3.GetResponse) {
	var first, last string
	n := len(page.Kvs)
	if n > 0 {
		first, last = string(page.Kvs[0].Key), string(page.Kvs[n-1].Key)
	}
	p.all = append(p.all, page.Kvs...)
	p.walk.Read(first, last, n, page.More, p.pace.Size())
}

// page reads the keys of a range, as they were at a revision. Each member has them, and
// need not ask the leader; one that is behind does. A page may take longer than a call.
func (r *Registry) page(ctx context.Context, from, end string, p *pages) (page *clientv3.GetResponse, err error) {
	options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(int64(p.pace.Size())), clientv3.WithRev(p.header.Revision)}
	anyMember := append(options[:len(options):len(options)], clientv3.WithSerializable())
	err = r.call(ctx, func(_ context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		if !backoff.Sleep(ctx, p.pace.Rest(rand.Float64())) {
			return nil, ctx.Err()
		}
		one, cancel := context.WithTimeout(ctx, pageTime(p.late))
		defer cancel()
		began := time.Now()
		if page, err = c.Get(one, from, anyMember...); errors.Is(err, rpctypes.ErrFutureRev) {
			page, err = c.Get(one, from, options...)
		}
		late := err != nil && one.Err() != nil && ctx.Err() == nil
		switch {
		case late:
			p.late++
			p.pace.Took(time.Since(began), 0)
		case err == nil:
			p.pace.Took(time.Since(began), len(page.Kvs))
		}
		if err == nil && page.Header.ClusterId != p.header.ClusterId {
			err = errors.New("the endpoints are members of several etcds; name those of one")
		}
		return nil, err
	})
	return page, err
}

// pageTime gives how long a page may take after so many that came too late.
func pageTime(late int) time.Duration { return min(leastPageTime<<min(late, 10), mostPageTime) }

// dense lists where in the list of all keys many can begin: with the pools. Its keys have so
// few digits that a page from there on has a few hundred addresses, if the pool is full.
func (c *cache) dense() (keys []string) {
	const digit, page = 4, 8 // in bits
	for _, pool := range c.cluster.Load().Pools {
		for _, b := range pool.Blocks() {
			if b.Addr().BitLen()-b.Bits() > page {
				all := hex.EncodeToString(b.Addr().AsSlice())
				keys = append(keys, c.keys.root+"addr/"+all[:(b.Bits()+digit-1)/digit+page/digit])
			}
		}
	}
	return keys
}
