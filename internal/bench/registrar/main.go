// Command registrar is what agents of a cluster do with their registry in etcd, without
// the agents: the bench runs it. It says what it measured in lines of JSON.
//
//	registrar know ENDPOINTS            one registry: it learns all, and lists it when the input ends
//	registrar crowd ENDPOINTS N         N nodes: each lists all, keeps nothing, and watches
//	registrar copies ENDPOINTS N        N registries as agents have them, each with its copy
//	registrar change ENDPOINTS N EVERY  one registry: N changes, one in a time
//	registrar fill ENDPOINTS N          N addresses for the others
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/internal/backoff"
	"github.com/vmfabric/vmfabric/internal/paging"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "registrar:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("say what to do, and the endpoints")
	}
	endpoints, numbers := strings.Split(args[1], ","), []int{}
	for _, a := range args[2:] {
		n, err := strconv.Atoi(a)
		if err != nil {
			return err
		}
		numbers = append(numbers, n)
	}
	switch {
	case args[0] == "know":
		return know(ctx, endpoints)
	case args[0] == "crowd" && len(numbers) == 1:
		return crowd(ctx, endpoints, numbers[0])
	case args[0] == "copies" && len(numbers) == 1:
		return copies(ctx, endpoints, numbers[0])
	case args[0] == "change" && len(numbers) == 2:
		return change(ctx, endpoints, numbers[0], time.Duration(numbers[1])*time.Millisecond)
	case args[0] == "fill" && len(numbers) == 1:
		return fill(ctx, endpoints, numbers[0])
	}
	return fmt.Errorf("%v: no such thing to do", args)
}

// say writes a line of JSON.
func say(v any) {
	b, _ := json.Marshal(v)
	fmt.Println(string(b))
}

func cluster(endpoints []string) *fabric.Cluster {
	c := fabric.Cluster{
		Name: "bench", Pools: []fabric.Pool{
			{Name: "public4", Prefix: netip.MustParsePrefix("10.64.0.0/14"), Quarantine: time.Minute},
			{Name: "public6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Quarantine: time.Minute},
		},
		Registry: fabric.RegistryConfig{Etcd: &fabric.EtcdConfig{Endpoints: endpoints}},
	}.WithDefaults()
	return &c
}

func client(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: 3 * time.Second, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 2 * time.Second})
}

// with runs a registry while do does something with it.
func with(ctx context.Context, endpoints []string, do func(*etcd.Registry) error) error {
	r, err := etcd.New(cluster(endpoints))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	err = do(r)
	cancel()
	return errors.Join(err, <-ended)
}

// Known is what a node knows, and what that takes.
type Known struct {
	Addresses int
	Took      time.Duration
	Heap      uint64 // that is reachable, in bytes
}

func know(ctx context.Context, endpoints []string) error {
	began := time.Now()
	return with(ctx, endpoints, func(r *etcd.Registry) error {
		if _, err := r.Allocations(ctx, fabric.AllocationFilter{Guest: "of nobody"}); err != nil {
			return err
		}
		took := time.Since(began)
		said := func(n int, took time.Duration) {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			say(Known{n, took, m.HeapAlloc})
		}
		said(0, took)
		_, _ = io.Copy(io.Discard, os.Stdin)
		began = time.Now()
		all, err := r.Allocations(ctx, fabric.AllocationFilter{})
		if err != nil {
			return err
		}
		said(len(all), time.Since(began))
		<-ctx.Done()
		return nil
	})
}

// Crowd is what a crowd of nodes did.
type Crowd struct {
	Nodes  int
	Took   time.Duration // until all had listed and watched
	First  time.Duration // until the first had
	Events int64
	Bytes  int64  // that were listed
	Heap   uint64 // that is reachable, in bytes, once all had
}

// crowd has n nodes with connections of their own, which begin when the input ends.
func crowd(ctx context.Context, endpoints []string, n int) error {
	clients := make([]*clientv3.Client, n)
	for i := range clients {
		var err error
		if clients[i], err = client(endpoints); err != nil {
			return err
		}
		defer clients[i].Close()
	}
	say(Crowd{Nodes: n})
	_, _ = io.Copy(io.Discard, os.Stdin)
	var (
		began  = time.Now()
		ready  = make(chan time.Duration, n)
		events atomic.Int64
		bytes  atomic.Int64
		all    sync.WaitGroup
	)
	for _, c := range clients {
		all.Go(func() {
			for ctx.Err() == nil {
				watches(ctx, c, &events, &bytes, func() { ready <- time.Since(began) })
			}
		})
	}
	var took []time.Duration
	for range n {
		select {
		case d := <-ready:
			took = append(took, d)
		case <-ctx.Done():
			all.Wait()
			return nil
		}
	}
	say(Crowd{Nodes: n, Took: slices.Max(took), First: slices.Min(took), Bytes: bytes.Load()})
	<-ctx.Done()
	all.Wait()
	say(Crowd{Nodes: n, Events: events.Load()})
	return nil
}

// copies has n registries, each with its own connection, copy and watch, which begin when
// the input ends.
func copies(ctx context.Context, endpoints []string, n int) error {
	debug.SetGCPercent(25) // the copies of many nodes are to fit into one machine
	say(Crowd{Nodes: n})
	_, _ = io.Copy(io.Discard, os.Stdin)
	began, ready, ended := time.Now(), make(chan time.Duration, n), make(chan error, n)
	for range n {
		go func() {
			ended <- with(ctx, endpoints, func(r *etcd.Registry) error {
				for ctx.Err() == nil {
					if _, err := r.Allocations(ctx, fabric.AllocationFilter{Guest: "of nobody"}); err == nil {
						ready <- time.Since(began)
						<-ctx.Done()
						return nil
					}
					backoff.Sleep(ctx, 100*time.Millisecond)
				}
				return nil
			})
		}()
	}
	var took []time.Duration
	for len(took) < n && ctx.Err() == nil {
		select {
		case d := <-ready:
			took = append(took, d)
		case <-ctx.Done():
		}
	}
	if ctx.Err() == nil {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		say(Crowd{Nodes: n, Took: slices.Max(took), First: slices.Min(took), Heap: m.HeapAlloc})
	}
	var err error
	for range n {
		err = errors.Join(err, <-ended)
	}
	say(Crowd{Nodes: n})
	return err
}

const root = "/vmfabric/bench/"

// dense is where the keys of the pools begin, as a node knows it.
var dense = []string{root + "addr/0a4000", root + "addr/20010db8010000"}

// lists reads all keys as a node does, and gives the revision of what it read. What comes
// too late is asked for again.
func lists(ctx context.Context, c *clientv3.Client, bytes *atomic.Int64) (rev int64) {
	for rev == 0 && ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		if now, err := c.Get(one, root, clientv3.WithCountOnly()); err == nil {
			rev = now.Header.Revision
		}
		cancel()
	}
	walk, pace := paging.New(root, dense), paging.Pace{}
	for from, end, more := walk.Page(); more && ctx.Err() == nil; from, end, more = walk.Page() {
		if !backoff.Sleep(ctx, pace.Rest(rand.Float64())) {
			break
		}
		one, cancel := context.WithTimeout(ctx, time.Minute)
		began := time.Now()
		got, err := c.Get(one, from, clientv3.WithRange(end), clientv3.WithLimit(int64(pace.Size())), clientv3.WithRev(rev), clientv3.WithSerializable())
		cancel()
		if err != nil {
			pace.Took(time.Since(began), 0)
			backoff.Sleep(ctx, 100*time.Millisecond)
			continue
		}
		pace.Took(time.Since(began), len(got.Kvs))
		var first, last string
		for i, kv := range got.Kvs {
			bytes.Add(int64(len(kv.Key) + len(kv.Value)))
			if last = string(kv.Key); i == 0 {
				first = last
			}
		}
		walk.Read(first, last, len(got.Kvs), got.More, pace.Size())
	}
	return rev
}

// watches lists and watches as a node does, until something fails.
func watches(ctx context.Context, c *clientv3.Client, events, bytes *atomic.Int64, ready func()) {
	rev := lists(ctx, c, bytes)
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	go func() {
		for tick := time.NewTicker(3 * time.Second); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				one, cancel := context.WithTimeout(ctx, time.Second)
				_, _ = c.Get(one, root+"prefixes", clientv3.WithKeysOnly())
				cancel()
			}
		}
	}()
	for answer := range c.Watch(ctx, root, clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithCreatedNotify()) {
		if answer.Err() != nil {
			return
		}
		if answer.Created {
			ready()
			ready = func() {}
		}
		events.Add(int64(len(answer.Events)))
	}
}

// Changed is what changes took, in nanoseconds, in the order in which they were made.
type Changed struct {
	Allocate, Release, Put []time.Duration
	Failed                 int
	CPU                    time.Duration // of this process
}

func change(ctx context.Context, endpoints []string, n int, every time.Duration) error {
	c, err := client(endpoints)
	if err != nil {
		return err
	}
	defer c.Close()
	return with(ctx, endpoints, func(r *etcd.Registry) error {
		if _, err := r.Allocations(ctx, fabric.AllocationFilter{Guest: "of nobody"}); err != nil {
			return err
		}
		say(Known{})
		var is Changed
		before := cpu()
		tick := time.NewTicker(every)
		defer tick.Stop()
		timed := func(into *[]time.Duration, do func(context.Context) error) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			began := time.Now()
			err := do(ctx)
			*into = append(*into, time.Since(began))
			return err
		}
		for i := range n {
			guest := fabric.Identity(fmt.Sprintf("libvirt change-%d-%d", os.Getpid(), i/2))
			_ = timed(&is.Put, func(ctx context.Context) error {
				_, err := c.Put(ctx, "bench", strings.Repeat("x", 300))
				return err
			})
			var err error
			if i%2 == 0 {
				err = timed(&is.Allocate, func(ctx context.Context) error {
					_, err := r.Allocate(ctx, fabric.AllocationRequest{Guest: guest, VM: "change", Node: "node1", Wants: []fabric.Want{{Pool: "public4"}}})
					return err
				})
			} else {
				err = timed(&is.Release, func(ctx context.Context) error {
					_, err := r.Release(ctx, fabric.ReleaseRequest{Guest: guest, Now: true})
					return err
				})
			}
			if err != nil {
				is.Failed++
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		is.CPU = cpu() - before
		say(is)
		return nil
	})
}

// cpu gives the processor time of this process.
func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fill allocates addresses for n/2 guests, one of each family.
func fill(ctx context.Context, endpoints []string, n int) error {
	err := with(ctx, endpoints, func(r *etcd.Registry) error { return fillBy(ctx, r, n/2) })
	if err == nil {
		say(Known{Addresses: n})
	}
	return err
}

// fillBy allocates for so many guests, some at a time.
func fillBy(ctx context.Context, r *etcd.Registry, guests int) error {
	var all sync.WaitGroup
	var failed atomic.Pointer[error]
	next := atomic.Int64{}
	for range 32 {
		all.Go(func() {
			for i := next.Add(1); i <= int64(guests) && ctx.Err() == nil && failed.Load() == nil; i = next.Add(1) {
				asks := fabric.AllocationRequest{
					Guest: fabric.Identity(fmt.Sprintf("libvirt aaaaaaaa-0000-4000-8000-%012d", i)), VM: fmt.Sprintf("guest%06d", i), Node: fmt.Sprintf("node%d", i%1000),
					Wants: []fabric.Want{{Pool: "public4"}, {N: 1, Pool: "public6"}},
				}
				_, err := r.Allocate(ctx, asks)
				for again := 0; err != nil && again < 10; again++ { // a busy machine
					_, err = r.Allocate(ctx, asks)
				}
				if err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return ctx.Err()
}
