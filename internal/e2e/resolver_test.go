package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	fabricagent "github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/libvirt"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/fake"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// inventory is a resolver and an observer: the operator's own program.
type inventory struct {
	mu     sync.Mutex
	answer []fabric.NIC
	err    error
	asked  []fabric.Query
	heard  []string
}

func (i *inventory) Resolve(ctx context.Context, q fabric.Query) ([]fabric.NIC, error) {
	i.mu.Lock()
	i.asked = append(i.asked, q)
	answer, err := i.answer, i.err
	i.mu.Unlock()
	if answer == nil && err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return answer, err
}

func (i *inventory) Observe(_ context.Context, e fabric.Event) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.heard = append(i.heard, fmt.Sprint(e.Kind, " ", e.VM, " ", e.Prefixes))
	return nil
}

func (i *inventory) says(answer []fabric.NIC, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer, i.err, i.asked = answer, err, nil
}

func (i *inventory) questions() []fabric.Query {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func (i *inventory) events() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string{}, i.heard...)
}

// library is an agent in this process, for libvirt's hook and with libvirt's
// news. Its links and routes are not the node's: libvirt makes the taps.
type library struct {
	*fabricagent.Agent
	dataplane *fake.Dataplane
	stop      func()
}

func embed(t *testing.T, s *system, lv *hypervisors.Libvirt, links *fake.Dataplane, inv *inventory) *library {
	t.Helper()
	dir := filepath.Join(s.lab.Dir(), "library")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	store, err := disk.Open(dir)
	require.NoError(t, err)
	source := libvirt.New(libvirt.Config{Socket: lv.Socket()})
	agent, err := fabricagent.New(
		fabricagent.Config{Cluster: s.cluster, Node: "node1", Dataplane: links, Speaker: fake.NewSpeaker(nil), Store: store},
		fabricagent.WithSources(source), fabricagent.WithResolver(inv), fabricagent.WithObservers(inv), fabricagent.WithRemedies(hooks.Remedy),
	)
	require.NoError(t, err)
	require.NoError(t, agent.Adopt(t.Context()))
	listener, err := hooks.Listen(t.Context(), s.agents["node1"].socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, run := range []func() error{
		func() error { return source.Run(ctx) },
		func() error { return agent.Run(ctx) },
		func() error { return hooks.Serve(ctx, listener, agent, nil) },
	} {
		all.Go(func() { assert.NoError(t, run()) })
	}
	e := &library{Agent: agent, dataplane: links, stop: sync.OnceFunc(func() {
		cancel()
		all.Wait()
		assert.NoError(t, store.Close())
	})}
	t.Cleanup(e.stop)
	return e
}

func (e *library) live(ctx context.Context) error {
	entries, err := e.List(ctx)
	if err != nil || len(entries) != 1 || entries[0].State != fabric.Live {
		return fmt.Errorf("%v, %w", entries, err)
	}
	return nil
}

// TestAddressesFromAnInventory starts a guest of libvirt's whose XML has an
// empty <fabric:vm/>, through the real hook.
func TestAddressesFromAnInventory(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "qemu")
	s := start(t, options{noAgent: true, noRR: true})
	lv, err := hypervisors.StartLibvirt(soon(t), s.top.Nodes["node1"], hypervisors.LibvirtOptions{Hook: hookProgram})
	require.NoError(t, err)
	require.NoError(t, os.Symlink(s.agents["node1"].socket, filepath.Join(lv.RunDir(), "agent.sock")))
	plug := tap()
	plug.Managed, plug.MAC = true, fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}
	d, err := lv.Define(soon(t), hypervisors.DomainOptions{
		Name: "sea_gold", UUID: "aaaaaaaa-0000-4000-8000-00000000000a", NICs: []hypervisors.DomainNIC{plug}, Gateway: s.cluster.Gateway,
		Metadata: `<fabric:vm xmlns:fabric="urn:vmfabric:domain:1"/>`,
	})
	require.NoError(t, err)

	inv := &inventory{}
	links := fake.NewDataplane(nil)
	agent := embed(t, s, lv, links, inv)
	right := []fabric.NIC{{Addresses: []netip.Addr{seaGold[0].Addr(), seaGold[1].Addr()}}}

	// Slow, absent and wrong answers: each with its reason in virsh's own error.
	began := time.Now()
	require.ErrorContains(t, d.Start(soon(t)), "vmfabric: guest sea_gold refused: the resolver did not answer within 10s; see whether")
	assert.GreaterOrEqual(t, time.Since(began), 10*time.Second)
	inv.says(nil, errors.New("no guest of that name"))
	require.ErrorContains(t, d.Start(soon(t)), "vmfabric: guest sea_gold refused: no addresses from the resolver: no guest of that name; ")
	inv.says([]fabric.NIC{}, nil)
	require.ErrorContains(t, d.Start(soon(t)), "vmfabric: guest sea_gold refused: the resolver answered wrong: 0 NICs, but the guest has 1 NIC of the fabric; ")
	inv.says([]fabric.NIC{{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}, nil)
	require.ErrorContains(t, d.Start(soon(t)), "vmfabric: guest sea_gold refused: the resolver answered wrong: NIC 0: address 192.0.2.1: outside the pools")
	entries, err := agent.List(soon(t))
	require.NoError(t, err)
	assert.Empty(t, entries)

	// The right one, and from then on nobody asks.
	inv.says(right, nil)
	links.AddLink("sea_gold_net0")
	require.NoError(t, d.Start(soon(t)))
	require.NoError(t, core.Until(soon(t), func() error { return agent.live(soon(t)) }))
	assert.Equal(t, []fabric.Query{{VM: "sea_gold", UUID: "aaaaaaaa-0000-4000-8000-00000000000a", MACs: []fabric.MAC{plug.MAC}}}, inv.questions())
	inv.says(nil, errors.New("the inventory burnt down"))
	vm, _, err := agent.Describe(soon(t), "sea_gold")
	require.NoError(t, err)
	assert.Equal(t, seaGold, vm.Prefixes())
	agent.stop()
	agent = embed(t, s, lv, links.Again(), inv)
	require.NoError(t, core.Until(soon(t), func() error {
		st, err := agent.Status(soon(t))
		if err != nil || !st.Healthy || st.Live != 1 || len(st.Sources) != 1 || !st.Sources[0].Connected || st.Sources[0].Guests != 1 {
			return fmt.Errorf("%+v, %w", st, err)
		}
		return nil
	}))
	assert.Empty(t, inv.questions())

	// Gone, it is forgotten: the next start asks.
	require.NoError(t, d.Destroy(soon(t)))
	require.NoError(t, core.Until(soon(t), func() error {
		if entries, err := agent.List(soon(t)); err != nil || len(entries) > 0 {
			return fmt.Errorf("%v, %w", entries, err)
		}
		return nil
	}))
	require.ErrorContains(t, d.Start(soon(t)), "the inventory burnt down")
	assert.Len(t, inv.questions(), 1)
	prefixes := fmt.Sprint(seaGold)
	heard := inv.events()
	require.GreaterOrEqual(t, len(heard), 4, "%v", heard)
	assert.Equal(t, []string{"attach sea_gold " + prefixes, "announce sea_gold " + prefixes}, heard[:2])
	assert.Equal(t, []string{"withdraw sea_gold " + prefixes, "detach sea_gold " + prefixes}, heard[len(heard)-2:])
}
