package histories

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var (
	long   = flag.Int("histories", 0, "make so many long histories under all faults")
	length = flag.Duration("length", 60*time.Second, "how long each of them is")
	from   = flag.Uint64("from", 0, "the first seed; 0: a fresh one")
)

const (
	members = 3
	clients = 4
	workers = 3 // of each client
)

// world is an etcd of three members, and clients, each on a host of its own.
type world struct {
	t           *testing.T
	lab         *core.Lab
	etcd        *labtest.Etcd
	etcdHosts   []*core.Host
	clientHosts []*core.Host
	replay      *replay
	running     []*core.Daemon
	started     int      // clients
	logs        []string // of clients that have ended
	settings    settings
	begun       int64 // the revision at which a history began

	rnd      *rand.Rand
	least    time.Duration // that a fault lasts
	inOrder  bool          // the faults come in their order
	happened map[string]int
	full     []window // when etcd's database was full
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, lab: labtest.New(t), rnd: rand.New(rand.NewPCG(seed, 0)), happened: map[string]int{}, running: make([]*core.Daemon, clients)}
	add := func(name string, n byte) *core.Host {
		h, err := w.lab.AddReflector(name, core.Underlay4(n), core.Underlay6(n))
		require.NoError(t, err)
		return h
	}
	for n := range byte(members) {
		w.etcdHosts = append(w.etcdHosts, add(fmt.Sprintf("m%d", n), 11+n))
	}
	for n := range byte(clients) {
		w.clientHosts = append(w.clientHosts, add(fmt.Sprintf("c%d", n), 21+n))
	}
	w.etcd = labtest.NewEtcd(t, labtest.EtcdOptions{Hosts: w.etcdHosts, Args: []string{"--quota-backend-bytes", "48000000", "--heartbeat-interval", "50", "--election-timeout", "500"}})
	w.replay = startReplay(t, add("observer", 31), w.etcd.Endpoints)
	w.settings = settings{Workers: workers, Seed: seed, Endpoints: w.etcd.Endpoints}
	return w
}

// startClient starts client n, or starts it anew, when it is another one.
func (w *world) startClient(n int) { w.running[n] = w.start(w.clientHosts[n], w.settings) }

func (w *world) start(h *core.Host, s settings) *core.Daemon {
	w.t.Helper()
	w.started++
	s.Number = w.started
	text, err := json.Marshal(s)
	require.NoError(w.t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), clientVariable+"="+string(text))
	d, err := h.StartDaemon(fmt.Sprintf("client%d", w.started), cmd)
	require.NoError(w.t, err)
	w.logs = append(w.logs, d.LogPath())
	return d
}

// history has the clients work while things fail, for a time, and until they have done
// so much. It returns what they did. At last a node that begins anew looks what is there.
func (w *world) history(length time.Duration, operations int, of []fault) []call {
	w.t.Helper()
	w.logs, w.full, w.happened = nil, nil, map[string]int{}
	w.tries(w.t.Context(), "begin", func(ctx context.Context) error {
		begun, err := w.replay.client.Delete(ctx, w.replay.root, clientv3.WithPrefix())
		if err == nil {
			w.begun = begun.Header.Revision
		}
		return err
	})
	for n := range clients {
		w.startClient(n)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), length+patience)
	defer cancel()
	end := time.Now().Add(length)
	w.fail(ctx, of, func() bool { return time.Now().After(end) && w.done() >= operations })
	w.waits(w.t.Context(), w.least/2)
	for _, d := range w.running {
		require.NoError(w.t, d.Signal(syscall.SIGTERM))
	}
	for _, d := range w.running {
		require.NoError(w.t, d.Stop())
	}
	looks := w.settings
	looks.Looks = true
	require.NoError(w.t, w.start(w.clientHosts[0], looks).Wait())
	return w.read()
}

// patience is how long a busy machine may take for what a quiet one does in no time.
const patience = time.Minute

// done counts the operations of a history so far.
func (w *world) done() (n int) {
	for _, log := range w.logs {
		text, _ := os.ReadFile(log)
		n += bytes.Count(text, []byte(`"Kind":""`))
	}
	return n
}

// read reads what all clients of a history did.
func (w *world) read() (calls []call) {
	for _, log := range w.logs {
		text, err := os.ReadFile(log)
		require.NoError(w.t, err)
		these, others := parse(strings.Split(string(text), "\n"))
		for _, line := range others {
			assert.Contains(w.t, line, `{"ID":`, "only a client that was killed may leave half a line")
		}
		calls = append(calls, these...)
	}
	return calls
}

// verdict is what is known of a history.
type verdict struct {
	did     map[string]int // operations by kind, and how they ended
	unknown int            // operations whose answer was lost
	done    int            // what those did all the same
	oldest  time.Duration  // the age of the oldest list
	ordered porcupine.CheckResult
	flaws   []string
}

// checkedFor bounds how long the checker may think.
const checkedFor = time.Minute

// judge checks a history. A caller that forgets takes what was not answered for what was
// not done.
func (w *world) judge(calls []call, forgets bool) (v verdict) {
	w.t.Helper()
	versions := w.replay.ends(w.t, labtest.Soon(w.t), w.begun)
	r := resolve(calls, versions, w.full)
	v = verdict{did: map[string]int{}, unknown: r.unknown, done: r.done, flaws: r.flaws}
	var ops []porcupine.Operation
	for n, o := range r.ops {
		if o.lost && forgets {
			continue
		}
		o.in.full = slices.ContainsFunc(w.full, func(f window) bool { return o.call <= f.to && f.from <= o.back })
		ops = append(ops, porcupine.Operation{ClientId: n, Input: o.in, Call: o.call, Output: o.out, Return: o.back})
	}
	v.ordered = porcupine.CheckOperationsTimeout(model, ops, checkedFor)
	if v.ordered != porcupine.Ok && !forgets {
		w.t.Log(story(ops))
	}
	var late []string
	v.oldest, late = lists(calls, versions.places)
	v.flaws = append(v.flaws, late...)
	for _, c := range calls {
		v.did[c.Kind]++
		if c.answer.Refused != "" {
			v.did[string(c.answer.Refused)]++
		}
	}
	return v
}

// story tells where a history stops to be that of one registry.
func story(ops []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(model, ops, checkedFor/6)
	var longest []int
	for _, order := range info.PartialLinearizations()[0] {
		if len(order) > len(longest) {
			longest = order
		}
	}
	is, done := state{}, map[int]bool{}
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d operations have an order, the last of them:\n", len(longest), len(ops))
	line := func(n int) {
		o := ops[n]
		fmt.Fprintf(&b, "  %v to %v: %s\n", time.Duration(o.Call), time.Duration(o.Return), describe(o.Input.(asked), o.Output.(answered)))
	}
	for i, n := range longest {
		_, is = is.step(ops[n].Input.(asked), ops[n].Output.(answered))
		done[n] = true
		if i >= len(longest)-12 {
			line(n)
		}
	}
	fmt.Fprintf(&b, "then there is:\n%sand none of these comes next:\n", is)
	left := []int{}
	for n := range ops {
		if !done[n] {
			left = append(left, n)
		}
	}
	slices.SortFunc(left, func(i, j int) int { return cmp.Compare(ops[i].Return, ops[j].Return) })
	for _, n := range left[:min(len(left), 8)] {
		line(n)
	}
	return b.String()
}

// holds checks a history that must be right.
func (w *world) holds(calls []call) verdict {
	w.t.Helper()
	v := w.judge(calls, false)
	w.t.Logf("%d operations %v; %d without an answer, of which %d were done; the oldest list was of %v before; faults %v",
		len(calls), v.did, v.unknown, v.done, v.oldest.Round(time.Millisecond), w.happened)
	assert.Empty(w.t, v.flaws)
	require.Equal(w.t, porcupine.Ok, v.ordered, "the history is linearizable")
	return v
}

// TestHistories: what clients are answered under faults is as from one registry that does
// one thing after the other, and what is not is found.
func TestHistories(t *testing.T) {
	w := newWorld(t, 1)
	w.least, w.inOrder = time.Second, true
	calls := w.history(6*time.Second, 600, faultsNamed(t, "the leader is killed", "a node is cut off with one member", "an agent is killed"))
	v := w.holds(calls)
	assert.Positive(t, v.done, "operations that were done and not answered")
	assert.Positive(t, v.did[string(fabric.PoolFull)])
	assert.Positive(t, v.did[string(fabric.AddressHeld)])
	assert.NotEqual(t, porcupine.Ok, w.judge(calls, true).ordered, "that an error means that nothing was done")

	w.settings.FromCache = true
	assert.NotEqual(t, porcupine.Ok, w.judge(w.history(4*time.Second, 1500, nil), false).ordered, "a registry that answers from its copy")
}

// TestLongHistories: the same under all faults, as often as one is told.
func TestLongHistories(t *testing.T) {
	if *long == 0 {
		t.Skip("by hand: make histories")
	}
	seed := *from
	if seed == 0 {
		seed = uint64(time.Now().Unix())
	}
	all, did, faulty := verdict{did: map[string]int{}}, 0, map[string]int{}
	for n := range *long {
		t.Run(fmt.Sprintf("seed %d", seed+uint64(n)), func(t *testing.T) {
			w := newWorld(t, seed+uint64(n))
			w.least = 2 * time.Second
			calls := w.history(*length, 0, faults)
			v := w.holds(calls)
			did += len(calls)
			all.unknown += v.unknown
			all.done += v.done
			all.oldest = max(all.oldest, v.oldest)
			for what, n := range v.did {
				all.did[what] += n
			}
			for name, n := range w.happened {
				faulty[name] += n
			}
		})
	}
	t.Logf("in all %d operations %v; %d without an answer, of which %d were done; the oldest list was of %v before; faults %v", did, all.did, all.unknown, all.done, all.oldest, faulty)
}
