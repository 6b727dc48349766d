package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// NodesControls has the functions that the suite of [fabric.Nodes] needs beside the
// ends.
type NodesControls struct {
	// Join makes the end of one more node on the same network, which is in nobody's
	// cluster file.
	Join func(t *testing.T, name string) (fabric.Node, fabric.Nodes)
	// Cut cuts two agents off from each other until heal is called.
	Cut func(t *testing.T, a, b string) (heal func())
}

// NodeNames are the nodes of the cluster that the suite of [Nodes] needs.
var NodeNames = []string{"node1", "node2", "node3"}

// Nodes runs the laws of [fabric.Nodes] as subtests. Each call of start makes an
// end for each of the cluster's nodes, which are [NodeNames]. None serves yet; they
// live until its t ends.
func Nodes(t *testing.T, start func(t *testing.T) ([]fabric.Node, map[string]fabric.Nodes, NodesControls)) {
	for _, law := range []struct {
		name string
		hold func(*testing.T, agents)
	}{
		{"names are those of the others", nodesNames},
		{"notices and answers come through unchanged", nodesUnchanged},
		{"a guest of the largest size", nodesLargest},
		{"who is not there is an error, in bounded time", nodesSilent},
		{"who is not of the cluster is an error", nodesUnknown},
		{"what is no notice is told to nobody", nodesRefuse},
		{"a slow answer is an error and holds up no other", nodesSlow},
		{"many at the same time", nodesConcurrent},
		{"the end of the context is the end of waiting", nodesContext},
		{"Serve ends with its context, and can be called again", nodesRestart},
		{"a new node is known once it called", nodesNewcomer},
		{"who is cut off is an error, and back is back", nodesCut},
	} {
		t.Run(law.name, func(t *testing.T) {
			nodes, ends, controls := start(t)
			require.Len(t, nodes, len(NodeNames))
			law.hold(t, agents{nodes, ends, controls})
		})
	}
}

type agents struct {
	nodes []fabric.Node
	ends  map[string]fabric.Nodes
	NodesControls
}

type answering func(ctx context.Context, from fabric.Node, n fabric.Notice) fabric.Answer

func holds(context.Context, fabric.Node, fabric.Notice) fabric.Answer {
	return fabric.Answer{Held: true}
}

// serve makes an agent answer until the test ends, or stop is called.
func serve(t *testing.T, end fabric.Nodes, answer answering) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- end.Serve(ctx, answer) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			assert.NoError(t, err, "Serve")
		case <-time.After(patience):
			assert.Fail(t, "Serve does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// reached waits until a node answers.
func reached(t *testing.T, from fabric.Nodes, to string) {
	t.Helper()
	eventually(t, to+" answers", func() bool {
		_, err := from.Ask(t.Context(), to, claim("reached"))
		return err == nil
	})
}

// patientAsk asks until a node answers, as agents do: Ask itself gives a silent node up after
// some seconds, which is how long a busy machine may need.
func patientAsk(t *testing.T, from fabric.Nodes, to string, n fabric.Notice) (said fabric.Answer, err error) {
	for end := time.Now().Add(5 * patience); time.Now().Before(end); {
		if said, err = from.Ask(t.Context(), to, n); err == nil {
			return said, nil
		}
	}
	return said, err
}

func claim(vm string) fabric.Notice {
	return fabric.Notice{Kind: fabric.Claimed, VM: vm, Prefixes: both, Epoch: 7}
}

func nodesNames(t *testing.T, a agents) {
	require.Equal(t, []string{"node2", "node3"}, a.ends["node1"].Names())
	require.Equal(t, []string{"node1", "node3"}, a.ends["node2"].Names())
}

// notices returns one notice of each kind.
func notices() []fabric.Notice {
	at := time.Date(2026, 11, 22, 12, 3, 4, 567890123, time.UTC)
	move := &fabric.Move{
		VM: "web", UUID: "6b9c1c3e-7b0a-4b61-9c59-0d6f8a3f2d11", Prefixes: both, From: "node1", To: "node2", Outcome: "moved",
		Learned: at, Stopped: at.Add(time.Second), Diverted: at.Add(time.Minute), Resent: 12, ResentAt: at, Seen: map[string]time.Time{"rr1": at, "rr2": at}, Withdrawn: at,
	}
	routed := prefixes("203.0.113.10/32", "198.51.100.0/29", "2001:db8:100::10/128", "2001:db8:200::/64")
	return []fabric.Notice{
		{Kind: fabric.Arriving, VM: "web", UUID: move.UUID, Prefixes: routed},
		{Kind: fabric.Arrived, VM: "мой <сервер> & \"quoted\"", Prefixes: both[:1]},
		{Kind: fabric.Cancelled, VM: "web", Prefixes: both[1:]},
		{Kind: fabric.Claimed, VM: "web", Prefixes: both, Epoch: 1<<64 - 1, Identity: "libvirt " + fabric.Identity(move.UUID), Acquired: at},
		{Kind: fabric.Released, VM: "web", Prefixes: both, Epoch: 3, Move: move},
		{Kind: fabric.Acquiring, VM: "мой <сервер>", Prefixes: routed, Identity: "attached мой <сервер>"},
		{Kind: fabric.Describing, VM: "web", Prefixes: both, Identity: "lxd default/web"},
		{Kind: fabric.Forgotten, VM: "web", Prefixes: both, Identity: "lxd default/web"},
		{Kind: fabric.Listing},
		{Kind: fabric.Listing, VM: "мой <сервер>"},
		{Kind: fabric.Explaining, Prefixes: both[:1]},
		{Kind: fabric.Explaining, Prefixes: both[1:]},
		{Kind: fabric.Comparing, Registry: &fabric.RegistryIdentity{Name: "etcd, keys below /vmfabric/msk1/", ID: "85cfdd81"}},
	}
}

func nodesUnchanged(t *testing.T, a agents) {
	type told struct {
		from   fabric.Node
		notice fabric.Notice
	}
	got := make(chan told, 100)
	answer := fabric.Answer{
		Held: true, Epoch: 1<<64 - 1, VM: "мой <сервер>", Identity: "lxd default/web",
		Acquired: time.Date(2026, 11, 22, 12, 3, 4, 567890123, time.UTC), Prefix: both[1],
		Guests: []fabric.GuestEntry{{
			VM:     fabric.VM{Name: "мой <сервер>", NICs: []fabric.NIC{{Addresses: []netip.Addr{both[0].Addr(), both[1].Addr()}, Dynamic: 1, Kind: fabric.Veth}}},
			States: []fabric.State{fabric.Live}, Since: time.Date(2026, 11, 22, 12, 3, 4, 0, time.UTC), Trouble: "no <tap>",
		}}, More: true, Registry: &fabric.RegistryIdentity{Name: "etcd <below>", ID: "85cfdd81"},
		Finding: &fabric.Finding{
			Node: "node2", Guest: &fabric.FoundGuest{VM: "web", Guest: "lxd default/web", State: fabric.Wired, Epoch: 7},
			Ports: []fabric.FoundPort{{Port: "web_net0", VM: "web"}}, Announced: true, Sent: []string{"rr1"},
			Routes: []fabric.FoundRoute{{Reflector: "rr1", Via: both[1].Addr()}}, Steps: []fabric.Step{{Step: "guest", Good: true, Text: "web"}},
		},
	}
	for _, name := range []string{"node2", "node3"} {
		serve(t, a.ends[name], func(_ context.Context, from fabric.Node, n fabric.Notice) fabric.Answer {
			if n.VM != "reached" {
				got <- told{from, n}
			}
			return answer
		})
		reached(t, a.ends["node1"], name)
		for _, n := range notices() {
			said, err := a.ends["node1"].Ask(t.Context(), name, n)
			require.NoError(t, err)
			require.Equal(t, answer, said)
			require.Equal(t, told{a.nodes[0], n}, <-got)
		}
	}
}

func nodesLargest(t *testing.T, a agents) {
	n := claim(strings.Repeat("я", fabric.MaxNameBytes/2))
	n.Prefixes = nil
	for i := range fabric.MaxNICs * 2 * fabric.MaxAddresses {
		n.Prefixes = append(n.Prefixes, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xdd, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, byte(i >> 8), byte(i)}), 128))
	}
	n.Move = &fabric.Move{VM: n.VM, Prefixes: n.Prefixes, Outcome: "moved"}
	serve(t, a.ends["node2"], func(_ context.Context, _ fabric.Node, got fabric.Notice) fabric.Answer {
		return fabric.Answer{Held: len(got.Prefixes) == len(n.Prefixes), Epoch: uint64(len(got.Prefixes))}
	})
	reached(t, a.ends["node1"], "node2")
	// This takes time on a busy machine: each side reads and writes three million
	// bytes more than once.
	require.Eventually(t, func() bool {
		said, err := a.ends["node1"].Ask(t.Context(), "node2", n)
		return err == nil && assert.Equal(t, fabric.Answer{Held: true, Epoch: uint64(len(n.Prefixes))}, said)
	}, 5*patience, 10*time.Millisecond)
}

func nodesSilent(t *testing.T, a agents) {
	began := time.Now()
	_, err := a.ends["node1"].Ask(t.Context(), "node2", claim("web"))
	require.ErrorContains(t, err, "node2")
	require.Less(t, time.Since(began), patience)
}

func nodesUnknown(t *testing.T, a agents) {
	serve(t, a.ends["node1"], holds)
	_, err := a.ends["node1"].Ask(t.Context(), "node9", claim("web"))
	require.ErrorContains(t, err, "node9")
	_, err = a.ends["node1"].Ask(t.Context(), "node1", claim("web"))
	require.ErrorContains(t, err, "node1", "itself")
}

// seenByMany has more reflectors than a cluster can have.
var seenByMany = func() map[string]time.Time {
	seen := map[string]time.Time{}
	for n := range 100 {
		seen[fmt.Sprint("rr", n)] = time.Time{}
	}
	return seen
}()

func nodesRefuse(t *testing.T, a agents) {
	serve(t, a.ends["node2"], func(_ context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
		assert.Equal(t, "reached", n.VM)
		return fabric.Answer{}
	})
	reached(t, a.ends["node1"], "node2")
	for what, spoil := range map[string]func(*fabric.Notice){
		"no kind":         func(n *fabric.Notice) { n.Kind = "" },
		"an unknown kind": func(n *fabric.Notice) { n.Kind = "evacuated" },
		"no guest":        func(n *fabric.Notice) { n.VM = "" },
		"two addresses":   func(n *fabric.Notice) { n.Kind = fabric.Explaining },
		"no registry":     func(n *fabric.Notice) { *n = fabric.Notice{Kind: fabric.Comparing} },
		"a registry of two lines": func(n *fabric.Notice) {
			*n = fabric.Notice{Kind: fabric.Comparing, Registry: &fabric.RegistryIdentity{Name: "etcd\n"}}
		},
		"a whole network":      func(n *fabric.Notice) { n.Kind, n.Prefixes = fabric.Explaining, prefixes("203.0.113.0/24") },
		"no prefix":            func(n *fabric.Notice) { n.Prefixes = make([]netip.Prefix, 1) },
		"a broken identity":    func(n *fabric.Notice) { n.Identity = "libvirt\n1" },
		"a broken outcome":     func(n *fabric.Notice) { n.Move = &fabric.Move{Outcome: "moved\x1b[2J"} },
		"a report of too many": func(n *fabric.Notice) { n.Move = &fabric.Move{Seen: seenByMany} },
		"a negative report":    func(n *fabric.Notice) { n.Move = &fabric.Move{Resent: -1} },
		"a guest too large":    func(n *fabric.Notice) { n.Prefixes = make([]netip.Prefix, fabric.MaxNICs*2*fabric.MaxAddresses+1) },
		"a prefix with bits":   func(n *fabric.Notice) { n.Prefixes = prefixes("203.0.113.10/24") },
		"an IPv6 one of IPv4":  func(n *fabric.Notice) { n.Prefixes = prefixes("::ffff:203.0.113.10/128") },
	} {
		n := claim("web")
		spoil(&n)
		_, err := a.ends["node1"].Ask(t.Context(), "node2", n)
		require.Error(t, err, what)
	}
}

func nodesSlow(t *testing.T, a agents) {
	release := make(chan struct{})
	serve(t, a.ends["node2"], func(ctx context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
		if n.VM == "slow" {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return fabric.Answer{Held: true}
	})
	reached(t, a.ends["node1"], "node2")
	slow := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := a.ends["node1"].Ask(t.Context(), "node2", claim("slow"))
		slow <- err
	}()
	reached(t, a.ends["node1"], "node2")
	reached(t, a.ends["node3"], "node2")
	select {
	case err := <-slow:
		require.ErrorContains(t, err, "node2")
		require.Less(t, time.Since(began), patience)
	case <-time.After(patience):
		require.Fail(t, "Ask does not end")
	}
	close(release)
	reached(t, a.ends["node1"], "node2")
}

func nodesConcurrent(t *testing.T, a agents) {
	answer := func(_ context.Context, from fabric.Node, n fabric.Notice) fabric.Answer {
		return fabric.Answer{Held: from.Name == n.UUID, Epoch: n.Epoch}
	}
	for _, name := range NodeNames {
		serve(t, a.ends[name], answer)
	}
	var wg sync.WaitGroup
	for _, from := range NodeNames {
		for _, to := range a.ends[from].Names() {
			reached(t, a.ends[from], to)
			for i := range 20 {
				wg.Go(func() {
					for j := range 10 {
						n := claim(fmt.Sprint("g", i))
						n.UUID, n.Epoch = from, uint64(1000*i+j)
						said, err := patientAsk(t, a.ends[from], to, n)
						if assert.NoError(t, err) {
							assert.Equal(t, fabric.Answer{Held: true, Epoch: n.Epoch}, said)
						}
					}
				})
			}
		}
	}
	wg.Wait()
}

func nodesContext(t *testing.T, a agents) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.ends["node1"].Ask(gone, "node2", claim("web"))
	require.ErrorIs(t, err, context.Canceled)

	short, giveUp := context.WithCancelCause(t.Context())
	defer giveUp(nil)
	stopped := make(chan struct{}, 100)
	stop := serve(t, a.ends["node2"], func(ctx context.Context, _ fabric.Node, n fabric.Notice) fabric.Answer {
		if n.VM == "slow" {
			giveUp(errors.New("no more time"))
			<-ctx.Done()
			stopped <- struct{}{}
		}
		return fabric.Answer{}
	})
	reached(t, a.ends["node1"], "node2")
	require.Eventually(t, func() bool { // the question may be late on a busy machine
		_, err = a.ends["node1"].Ask(short, "node2", claim("slow"))
		return assert.Error(t, err) && short.Err() != nil
	}, 5*patience, 10*time.Millisecond)
	stop()
	require.NotEmpty(t, stopped, "the answer's context ends with that of Serve, which waits for it")
}

func nodesRestart(t *testing.T, a agents) {
	stop := serve(t, a.ends["node2"], holds)
	reached(t, a.ends["node1"], "node2")
	for range 3 {
		stop()
		_, err := a.ends["node1"].Ask(t.Context(), "node2", claim("web"))
		require.ErrorContains(t, err, "node2")
		stop = serve(t, a.ends["node2"], holds)
		reached(t, a.ends["node3"], "node2") // node2 is up again
		_, err = a.ends["node1"].Ask(t.Context(), "node2", claim("web"))
		require.NoError(t, err, "the first question after a restart")
	}
}

func nodesNewcomer(t *testing.T, a agents) {
	need(t, a.Join != nil, "Join")
	node, end := a.Join(t, "newcomer")
	from := make(chan fabric.Node, 100)
	serve(t, a.ends["node1"], func(_ context.Context, node fabric.Node, _ fabric.Notice) fabric.Answer {
		from <- node
		return fabric.Answer{}
	})
	require.Equal(t, NodeNames, end.Names(), "it knows the others")
	_, err := a.ends["node1"].Ask(t.Context(), node.Name, claim("web"))
	require.ErrorContains(t, err, node.Name, "nobody said yet where it is")
	serve(t, end, holds) // it may call the others at once
	reached(t, end, "node1")
	// The others believe an address that the node only claims to have once they
	// have verified it.
	eventually(t, "all of its addresses are known", func() bool {
		reached(t, end, "node1")
		return <-from == node
	})
	require.Equal(t, []string{"node2", "node3", node.Name}, a.ends["node1"].Names())
	require.Equal(t, []string{"node1", "node3"}, a.ends["node2"].Names(), "which it did not call")
	reached(t, a.ends["node1"], node.Name)
}

func nodesCut(t *testing.T, a agents) {
	need(t, a.Cut != nil, "Cut")
	serve(t, a.ends["node1"], holds)
	serve(t, a.ends["node2"], holds)
	reached(t, a.ends["node1"], "node2")
	reached(t, a.ends["node2"], "node1")
	heal := a.Cut(t, "node1", "node2")
	soon, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := a.ends["node1"].Ask(soon, "node2", claim("web"))
	require.ErrorContains(t, err, "node2")
	_, err = a.ends["node2"].Ask(soon, "node1", claim("web"))
	require.ErrorContains(t, err, "node1")
	_, err = a.ends["node3"].Ask(t.Context(), "node2", claim("web"))
	require.NoError(t, err, "who is not cut off")
	heal()
	reached(t, a.ends["node1"], "node2")
	reached(t, a.ends["node2"], "node1")
}
