package histories

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/etcd"
)

// clientVariable has the settings of a process that is a client.
const clientVariable = "VMFABRIC_HISTORY_CLIENT"

func TestMain(m *testing.M) {
	if settings := os.Getenv(clientVariable); settings != "" {
		os.Exit(client(settings))
	}
	os.Exit(m.Run())
}

// settings are those of a client.
type settings struct {
	Number    int
	Workers   int
	Seed      uint64
	Endpoints []string
	FromCache bool // a mutant: it answers from its copy what a guest has by it
	Looks     bool // it does nothing but look what is there, when it knows
}

// The addresses that the clients fight for, and how many guests do.
const guests = 9

var (
	pool  = fabric.Pool{Name: "few4", Prefix: netip.MustParsePrefix("203.0.113.8/29"), Exclude: hosts("203.0.113.8", "203.0.113.15"), Quarantine: 2 * time.Second}
	named = hosts("203.0.113.9", "203.0.113.12", "2001:db8:100::a", "2001:db8:100::b", "2001:db8:100::c")
	// places are all addresses that a guest can have.
	places = append(hosts("203.0.113.9", "203.0.113.10", "203.0.113.11", "203.0.113.12", "203.0.113.13", "203.0.113.14"), named[2:]...)
)

func hosts(addresses ...string) (ps []netip.Prefix) {
	for _, a := range addresses {
		ps = append(ps, fabric.HostPrefix(netip.MustParseAddr(a)))
	}
	return ps
}

func cluster(endpoints []string) *fabric.Cluster {
	c := fabric.Cluster{
		Name: "histories", Pools: []fabric.Pool{pool, {Name: "many6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), Quarantine: pool.Quarantine}},
		Registry: fabric.RegistryConfig{Etcd: &fabric.EtcdConfig{Endpoints: endpoints}},
	}.WithDefaults()
	return &c
}

// The kinds of operations.
const (
	allocate = "allocate" // an address of the pool, or the one that is named
	release  = "release"  // all that a guest has, or an address
	acquire  = "acquire"  // a guest, for the worker, as if that was a node
	list     = "list"
	look     = "look" // a list of a node that begins anew
)

// entry is a line of a client's log: first the call, then the answer.
type entry struct {
	ID   int    // of the operation
	At   int64  // by the machine's monotonic clock, in nanoseconds
	Kind string // empty: this is the answer

	Guest  int          `json:",omitempty"` // zero: the address counts
	VM     string       `json:",omitempty"` // no two clients have a name in common
	Prefix netip.Prefix `json:",omitzero"`
	Now    bool         `json:",omitempty"`
	Over   uint64       `json:",omitempty"`

	Got     []fabric.Allocation `json:",omitempty"`
	Refused fabric.Reason       `json:",omitempty"`
	Holder  int                 `json:",omitempty"`
	Owner   *fabric.Owner       `json:",omitempty"` // of an acquisition, also of one that was refused
	Error   string              `json:",omitempty"` // nobody knows what has happened
}

func guest(n int) fabric.Identity { return fabric.Identity("libvirt " + strconv.Itoa(n)) }

// guestOf gives the number of a guest; zero: there is none.
func guestOf(id fabric.Identity) (n int) {
	_, _ = fmt.Sscanf(string(id), "libvirt %d", &n)
	return n
}

func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// registry is what a client does its operations with.
type registry interface {
	Allocate(context.Context, fabric.AllocationRequest) ([]fabric.Allocation, error)
	Release(context.Context, fabric.ReleaseRequest) ([]fabric.Allocation, error)
	Acquire(context.Context, fabric.AcquireRequest) (fabric.Owner, error)
	Allocations(context.Context, fabric.AllocationFilter) ([]fabric.Allocation, error)
}

// fromCache is a registry that answers without a transaction what it knows already.
type fromCache struct{ *etcd.Registry }

func (r fromCache) Allocate(ctx context.Context, a fabric.AllocationRequest) ([]fabric.Allocation, error) {
	if all, err := r.Allocations(ctx, fabric.AllocationFilter{}); err == nil {
		for _, is := range all {
			if is.State == fabric.Allocated && is.Guest == a.Guest && a.Wants[0].Answers(is) {
				return []fabric.Allocation{is}, nil
			}
		}
	}
	return r.Registry.Allocate(ctx, a)
}

// client is a process as an agent is one. It logs to its standard output until SIGTERM.
func client(text string) int {
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	r, err := etcd.New(cluster(s.Endpoints))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, end := context.WithCancel(context.Background())
	asked, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var works registry = r
	if s.FromCache {
		works = fromCache{r}
	}
	if s.Looks {
		s.Workers = 0
		(&worker{registry: works, number: s.Number * 100}).look(asked)
	}
	var working sync.WaitGroup
	for n := range s.Workers {
		w := worker{registry: works, number: s.Number*100 + n, rnd: rand.New(rand.NewPCG(s.Seed, uint64(s.Number*100+n))), vms: map[int]string{}, epochs: map[int]uint64{}}
		working.Go(func() { w.work(asked, ctx) })
	}
	working.Wait()
	end()
	if err := <-ended; err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// worker does one operation after the other.
type worker struct {
	registry
	number int
	rnd    *rand.Rand
	done   int
	names  int
	vms    map[int]string // the name that it calls a guest next; missing: a new one
	epochs map[int]uint64 // of the owner of a guest, as it knows
}

func (w *worker) work(asked, ctx context.Context) {
	for asked.Err() == nil {
		w.one(ctx)
		select {
		case <-asked.Done():
		case <-time.After(time.Duration(w.rnd.IntN(12)) * time.Millisecond):
		}
	}
}

// look lists what is there, as soon as that can be known.
func (w *worker) look(ctx context.Context) {
	for ctx.Err() == nil {
		w.done++
		is := entry{ID: w.number*1_000_000 + w.done, At: now(), Kind: look}
		got, err := w.Allocations(ctx, fabric.AllocationFilter{})
		if err == nil {
			say(is)
			say(entry{ID: is.ID, At: now(), Got: plain(got)})
			return
		}
	}
}

// one does an operation and logs it.
func (w *worker) one(ctx context.Context) {
	w.done++
	is := w.choose()
	is.ID, is.At = w.number*1_000_000+w.done, now()
	say(is)
	patience := 5 * time.Second // of an agent
	if is.Kind != list && w.rnd.IntN(10) == 0 {
		patience = time.Duration(w.rnd.IntN(8000)) * time.Microsecond // it was killed, or had no more patience
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer := w.does(ctx, is)
	// A name with which something was written is used once more at most, and none
	// whose fate is not known: so a value tells which operation wrote it.
	switch _, again := w.vms[is.Guest]; {
	case is.Kind != allocate || answer.Refused != "":
	case answer.Error == "" && !again:
		w.vms[is.Guest] = is.VM
	default:
		delete(w.vms, is.Guest)
	}
	if answer.Owner != nil {
		w.epochs[is.Guest] = answer.Owner.Epoch
	}
	say(answer)
}

// does does an operation and returns the answer.
func (w *worker) does(ctx context.Context, is entry) entry {
	var err error
	answer := entry{ID: is.ID}
	switch is.Kind {
	case allocate:
		answer.Got, err = w.Allocate(ctx, is.allocation())
	case release:
		r := fabric.ReleaseRequest{Prefix: is.Prefix, Now: is.Now}
		if is.Guest != 0 {
			r.Guest = guest(is.Guest)
		}
		answer.Got, err = w.Release(ctx, r)
	case acquire:
		var owner fabric.Owner
		if owner, err = w.Acquire(ctx, fabric.AcquireRequest{Guest: guest(is.Guest), VM: "guest", Node: nodeName(w.number), Over: is.Over}); err == nil {
			answer.Owner = &owner
		}
	case list:
		answer.Got, err = w.Allocations(ctx, fabric.AllocationFilter{})
	}
	answer.At, answer.Got = now(), plain(answer.Got)
	var (
		bad   *fabric.AllocationError
		owned *fabric.OwnerError
		none  *fabric.RefusedError
	)
	switch {
	case errors.As(err, &bad):
		answer.Refused, answer.Holder = bad.Reason, guestOf(bad.Holder.Guest)
	case errors.As(err, &owned):
		answer.Refused, answer.Owner = notOver, &owned.Owner
	case errors.As(err, &none):
		answer.Refused = none.Reason
	case err != nil:
		answer.Error = err.Error()
	}
	return answer
}

// notOver is that the owner is not the one that an acquisition was to end.
const notOver fabric.Reason = "another owner"

func nodeName(worker int) string { return fmt.Sprintf("w%d", worker) }

// plain gives allocations without their owners, which are kept apart.
func plain(all []fabric.Allocation) []fabric.Allocation {
	for i := range all {
		all[i].Node, all[i].Epoch = "", 0
	}
	return all
}

func (w *worker) choose() entry {
	is := entry{Guest: 1 + w.rnd.IntN(guests)}
	switch n := w.rnd.IntN(100); {
	case n < 55:
		is.Kind, is.VM = allocate, w.vms[is.Guest]
		if is.VM == "" {
			w.names++
			is.VM = fmt.Sprintf("%d-%d", w.number, w.names)
		}
		if n < 15 {
			is.Prefix = named[w.rnd.IntN(len(named))]
		}
	case n < 70:
		is.Kind, is.Over = acquire, w.epochs[is.Guest]
	case n < 88:
		is.Kind, is.Now = release, w.rnd.IntN(2) == 0
	case n < 94:
		is = entry{Kind: release, Prefix: places[w.rnd.IntN(len(places))], Now: w.rnd.IntN(2) == 0}
	default:
		is = entry{Kind: list}
	}
	return is
}

func (e entry) allocation() fabric.AllocationRequest {
	want := fabric.Want{Pool: pool.Name}
	if e.Prefix.IsValid() {
		want = fabric.Want{Prefix: e.Prefix}
	}
	return fabric.AllocationRequest{Guest: guest(e.Guest), VM: e.VM, Node: "node1", Wants: []fabric.Want{want}}
}

// say writes a line at once: what a killed process asked is known.
func say(e entry) {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.Write(append(b, '\n'))
}

// call is an operation with its answer.
type call struct {
	entry        // as it was asked
	answer entry // zero: there was none
}

// unknown reports whether nobody was told what the operation did.
func (c call) unknown() bool { return c.answer.ID == 0 || c.answer.Error != "" }

// parse reads the log of a client.
func parse(lines []string) (calls []call, others []string) {
	at := map[int]int{}
	for _, line := range lines {
		var e entry
		if json.Unmarshal([]byte(line), &e) != nil {
			if line != "" {
				others = append(others, line)
			}
			continue
		}
		if e.Kind == "" {
			calls[at[e.ID]].answer = e
			continue
		}
		at[e.ID] = len(calls)
		calls = append(calls, call{entry: e})
	}
	return calls, others
}

// place gives the number of an address.
func place(p netip.Prefix) int { return slices.Index(places, p) }
