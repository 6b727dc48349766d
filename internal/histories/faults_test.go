package histories

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fault is something that fails for a while. It is over when do returns.
type fault struct {
	name string
	do   func(*world, context.Context)
}

var faults = []fault{
	{"the leader is killed", func(w *world, ctx context.Context) { w.kills(ctx, w.leader()) }},
	{"a member is killed", func(w *world, ctx context.Context) { w.kills(ctx, w.rnd.IntN(members)) }},
	{"two members are killed", func(w *world, ctx context.Context) {
		first := w.rnd.IntN(members)
		w.kills(ctx, first, (first+1)%members)
	}},
	{"the leader stands still", func(w *world, ctx context.Context) { w.pauses(ctx, w.leader()) }},
	{"a member stands still", func(w *world, ctx context.Context) { w.pauses(ctx, w.rnd.IntN(members)) }},
	{"the leader's link is dead", func(w *world, ctx context.Context) { w.splits(ctx, w.etcdHosts[w.leader()].Name()) }},
	{"a node is cut off with one member", func(w *world, ctx context.Context) {
		w.splits(ctx, w.etcdHosts[w.rnd.IntN(members)].Name(), w.clientHosts[w.rnd.IntN(clients)].Name())
	}},
	{"the watch of a node that is cut off is compacted", (*world).compactsUnderTheWatch},
	{"the database is full", (*world).fills},
	{"an agent is killed", func(w *world, ctx context.Context) {
		n := w.rnd.IntN(clients)
		require.NoError(w.t, w.running[n].Kill())
		w.startClient(n)
	}},
	{"an agent stands still", func(w *world, ctx context.Context) {
		n := w.rnd.IntN(clients)
		require.NoError(w.t, w.running[n].Signal(syscall.SIGSTOP))
		w.waits(ctx, w.length())
		require.NoError(w.t, w.running[n].Signal(syscall.SIGCONT))
	}},
}

// faultsNamed gives faults by their names.
func faultsNamed(t *testing.T, names ...string) (found []fault) {
	for _, name := range names {
		for _, f := range faults {
			if f.name == name {
				found = append(found, f)
			}
		}
	}
	require.Len(t, found, len(names))
	return found
}

// length is how long a fault lasts.
func (w *world) length() time.Duration { return w.least + rand.N(w.least) }

func (w *world) waits(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// leader gives the leading member, or any if none leads.
func (w *world) leader() int { return max(0, w.etcd.Leader()) }

func (w *world) kills(ctx context.Context, all ...int) {
	for _, n := range all {
		w.etcd.Kill(n)
	}
	w.waits(ctx, w.length()/2)
	for _, n := range all {
		w.etcd.Start(n)
	}
	for _, n := range all {
		w.etcd.Ready(n)
	}
}

func (w *world) pauses(ctx context.Context, n int) {
	w.etcd.Pause(n)
	w.waits(ctx, w.length())
	w.etcd.Continue(n)
}

// splits cuts hosts off from the others, together.
func (w *world) splits(ctx context.Context, names ...string) {
	for _, name := range names {
		require.NoError(w.t, w.lab.Split(w.lab.Host(name)))
	}
	w.waits(ctx, w.length())
	w.joins(names...)
}

func (w *world) joins(names ...string) {
	for _, name := range names {
		require.NoError(w.t, w.lab.Reconnect(w.lab.Host(name)))
	}
}

// compactsUnderTheWatch has etcd forget what a node has not heard yet.
func (w *world) compactsUnderTheWatch(ctx context.Context) {
	name := w.clientHosts[w.rnd.IntN(clients)].Name()
	require.NoError(w.t, w.lab.Split(w.lab.Host(name)))
	w.waits(ctx, w.length())
	w.compact(ctx)
	w.joins(name)
}

// compact has etcd forget what is known here.
func (w *world) compact(ctx context.Context) {
	w.tries(ctx, "compact", func(ctx context.Context) error {
		_, err := w.replay.client.Compact(ctx, w.replay.known.Load(), clientv3.WithCompactPhysical())
		if err != nil && strings.Contains(err.Error(), "has been compacted") {
			err = nil // by an earlier try
		}
		return err
	})
}

// tries does something with etcd until it succeeds.
func (w *world) tries(ctx context.Context, what string, do func(context.Context) error) {
	w.t.Helper()
	var err error
	for range 60 {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		err = do(one)
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		w.waits(ctx, 100*time.Millisecond)
	}
	require.NoError(w.t, err, what)
}

// fills fills etcd's database, and makes room again.
func (w *world) fills(ctx context.Context) {
	began := now()
	c := w.replay.client
	for n := range 100 {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.Put(one, fmt.Sprintf("other/%d", n), strings.Repeat("x", 1_000_000))
		cancel()
		if err != nil && strings.Contains(err.Error(), "space exceeded") {
			break
		}
	}
	w.waits(ctx, w.length())
	var gone int64
	w.tries(ctx, "delete", func(ctx context.Context) error {
		is, err := c.Delete(ctx, "other/", clientv3.WithPrefix())
		if err == nil {
			gone = is.Header.Revision
		}
		return err
	})
	require.Eventually(w.t, func() bool { return w.replay.known.Load() >= gone }, time.Minute, 10*time.Millisecond)
	w.compact(ctx)
	for _, endpoint := range w.etcd.Endpoints {
		w.tries(ctx, "defragment", func(ctx context.Context) error {
			_, err := c.Defragment(ctx, endpoint)
			return err
		})
	}
	w.tries(ctx, "disarm", func(ctx context.Context) error {
		_, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		return err
	})
	w.full = append(w.full, window{began, now()})
}

// window is a time by the machine's clock.
type window struct{ from, to int64 }

// fail makes faults one after the other, each as often as the others, until that was
// enough, or ctx ends.
func (w *world) fail(ctx context.Context, of []fault, enough func() bool) {
	of = slices.Clone(of)
	for n := 0; ; n++ {
		w.waits(ctx, w.least/2)
		if ctx.Err() != nil || enough() {
			return
		}
		if len(of) == 0 {
			continue
		}
		if n%len(of) == 0 && !w.inOrder {
			w.rnd.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		}
		next := of[n%len(of)]
		w.t.Logf("%v: %s", time.Duration(now()), next.name)
		next.do(w, w.t.Context()) // to its end
		w.happened[next.name]++
	}
}
