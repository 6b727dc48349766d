package libvirt

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/executable"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// end is one node of a migration: a libvirtd, a source that follows it as an
// agent does, and a witness of what libvirtd says.
type end struct {
	lv *hypervisors.Libvirt
	s  *Source

	mu     sync.Mutex
	told   []note // by the source, without repetitions
	events []note // by libvirtd: "3/1" of the only guest
}

type note struct {
	at   time.Time
	text string
}

// hook refuses an operation for which there is a file.
const hook = `#!/bin/sh
cat > /dev/null
test ! -e /run/vmfabric/$2
`

func newEnd(t *testing.T, host *core.Host) *end {
	script := filepath.Join(t.TempDir(), "hook")
	require.NoError(t, executable.Write(script, []byte(hook)))
	lv, err := hypervisors.StartLibvirt(lately(t), host, hypervisors.LibvirtOptions{Hook: script})
	require.NoError(t, err)
	e := &end{lv: lv, s: New(Config{Socket: lv.Socket()})}
	x, err := e.s.Examine(lately(t)) // before there is another connection
	require.NoError(t, err)
	assert.Regexp(t, `^\d+\.\d+\.\d+$`, x.Version)
	assert.True(t, x.Managed)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, e.s.Run(ctx)) })
	wg.Go(func() { e.listen(ctx, t) })
	conn, err := net.Dial("unix", lv.Socket())
	require.NoError(t, err)
	witness := golibvirt.NewWithDialer(dialers.NewAlreadyConnected(conn))
	require.NoError(t, witness.Connect())
	events, err := witness.LifecycleEvents(context.Background())
	require.NoError(t, err)
	wg.Go(func() {
		for ev := range events {
			e.note(&e.events, fmt.Sprintf("%d/%d", ev.Event, ev.Detail))
		}
	})
	t.Cleanup(func() {
		cancel()
		conn.Close()
		wg.Wait()
	})
	return e
}

func lately(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// listen takes the source's changes, and lists when some were lost.
func (e *end) listen(ctx context.Context, t *testing.T) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-e.s.Changes():
			if c.Gone {
				e.note(&e.told, "gone")
				continue
			}
			if !c.Lost {
				e.note(&e.told, inWords(c.Guest))
				continue
			}
			guests, err := e.s.Guests(ctx)
			assert.NoError(t, err)
			for _, d := range guests {
				e.note(&e.told, inWords(d))
			}
		}
	}
}

func inWords(d fabric.Desired) string {
	if d.Leaving {
		return d.State.String() + ", leaving"
	}
	return d.State.String()
}

func (e *end) note(list *[]note, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(*list); n > 0 && (*list)[n-1].text == text && list == &e.told {
		return
	}
	*list = append(*list, note{time.Now(), text})
}

// notes gives what was told, or heard, since a time.
func (e *end) notes(list *[]note, since time.Time) (notes []note) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range *list {
		if n.at.After(since) {
			notes = append(notes, n)
		}
	}
	return notes
}

func texts(notes []note) []string {
	list := []string{}
	for _, n := range notes {
		list = append(list, n.text)
	}
	return list
}

// await waits until the last that the source told is this.
func (e *end) await(t *testing.T, want string) {
	t.Helper()
	require.NoError(t, core.Until(lately(t), func() error {
		if told := texts(e.notes(&e.told, time.Time{})); len(told) == 0 || told[len(told)-1] != want {
			return fmt.Errorf("want %q, was told %q", want, told)
		}
		return nil
	}))
}

func (e *end) virsh(t *testing.T, args ...string) error {
	_, err := e.lv.Virsh(lately(t), args...)
	return err
}

// anew tells how a source that is new to the node lists the guest.
func (e *end) anew(t *testing.T) string {
	t.Helper()
	guests, err := New(Config{Socket: e.lv.Socket()}).Guests(lately(t))
	require.NoError(t, err)
	require.Len(t, guests, 1)
	return inWords(guests[0])
}

// kill ends the guest's QEMU.
func (e *end) kill() error {
	b, err := os.ReadFile(filepath.Join(e.lv.Host().Dir(), "libvirt/run/qemu/web.pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

// journey is a guest that moves between two nodes.
type journey struct {
	*testing.T
	from, to *end
	began    time.Time
	job      chan error // of the migration under way
}

// move begins to move the guest. Peer to peer, args include "--p2p".
func (j *journey) move(args ...string) {
	j.began, j.job = time.Now(), make(chan error, 1)
	uri := "qemu+tcp://" + j.to.lv.Host().Addr4().String() + "/system"
	go func() { j.job <- j.from.virsh(j.T, append([]string{"migrate", "--live", "web", uri}, args...)...) }()
}

// arrived waits until the guest has moved, and checks what both nodes told.
func (j *journey) arrived(from, to []string) {
	j.Helper()
	require.NoError(j, <-j.job)
	j.from.await(j.T, "absent")
	j.to.await(j.T, "live")
	j.check(from, to)
	j.from, j.to = j.to, j.from
}

// stayed waits until the guest is not moving any more, and checks likewise.
func (j *journey) stayed(from, to []string) {
	j.Helper()
	require.Error(j, <-j.job)
	j.to.await(j.T, "absent")
	j.from.await(j.T, "live")
	j.check(from, to)
}

func (j *journey) check(from, to []string) {
	j.Helper()
	assert.Equal(j, from, texts(j.from.notes(&j.from.told, j.began)), "source")
	assert.Equal(j, to, texts(j.to.notes(&j.to.told, j.began)), "destination")
	j.measure("source", j.from)
	j.measure("destination", j.to)
}

// measure prints how long after libvirt's word the source's comes.
func (j *journey) measure(name string, e *end) {
	means := map[string]string{"3/1": "live, leaving", "3/7": "live, leaving", "4/0": "live", "4/1": "live", "4/3": "live", "3/0": "live"}
	told := e.notes(&e.told, j.began)
	for _, event := range e.notes(&e.events, j.began) {
		i := slices.IndexFunc(told, func(n note) bool { return n.text == means[event.text] })
		if i >= 0 {
			j.Logf("%s: %q %.1f ms after event %s", name, told[i].text, float64(told[i].at.Sub(event.at).Microseconds())/1000, event.text)
			told = told[i+1:]
		}
	}
}

// TestMigrations moves a guest between two real libvirtd in every way that
// libvirt has, and in some that fail.
func TestMigrations(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute, and root")
	}
	t.Parallel()
	labtest.Need(t, "qemu")
	cluster := core.SmallCluster(2)
	_, top := labtest.Build(t, cluster)
	j := &journey{T: t, from: newEnd(t, top.Nodes["node1"]), to: newEnd(t, top.Nodes["node2"])}
	_, err := j.from.lv.Run(lately(t), hypervisors.DomainOptions{Name: "web", Gateway: cluster.Gateway, NICs: []hypervisors.DomainNIC{{
		Managed: true, NIC: fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}},
	}}})
	require.NoError(t, err)
	j.from.await(t, "live")
	j.takesUserData()
	j.movesInEachWay()
	assert.Equal(t, userData, j.from.userData(t), "it moved with the guest")
	j.movesPaused()
	j.movesAsTransient()
	j.isRefusedAndRestored()
	j.survivesFailures()
	j.isGoneForGood(cluster.Gateway)
}

const userData = "#cloud-config\nhostname: \"<web> & co\"\n"

// takesUserData from its owner, in both forms that docs/guests.md shows, while it runs.
func (j *journey) takesUserData() {
	j.Helper()
	assert.Empty(j, j.from.userData(j.T))
	for _, element := range []string{
		"<user-data>#cloud-config\nhostname: \"&lt;web&gt; &amp; co\"\n</user-data>",
		"<user-data encoding='base64'>" + base64.StdEncoding.EncodeToString([]byte(userData)) + "</user-data>",
	} {
		require.NoError(j, j.from.virsh(j.T, "metadata", "web", "urn:vmfabric:user-data:1", "--key", "user-data", "--set", element, "--live"))
		assert.Equal(j, userData, j.from.userData(j.T))
	}
}

// userData returns what a source that is new to the node has for the guest.
func (e *end) userData(t *testing.T) string {
	t.Helper()
	s := New(Config{Socket: e.lv.Socket()})
	guests, err := s.Guests(lately(t))
	require.NoError(t, err)
	require.Len(t, guests, 1)
	require.Len(t, guests[0].VM.NICs, 1, "its other metadata is as it was")
	data, err := s.UserData(lately(t), guests[0].VM)
	require.NoError(t, err)
	return string(data)
}

// How a guest that moves is told of at its source and its destination, and how
// virsh moves it: so that it is defined at the destination alone, and so slowly that
// something can be done meanwhile.
var (
	leaves, arrives = []string{"live, leaving", "absent"}, []string{"wired", "live"}
	persistent      = []string{"--persistent", "--undefinesource"}
	slow            = slices.Concat([]string{"--p2p", "--bandwidth", "5"}, persistent)
)

// run runs a part of the journey as a subtest.
func (j *journey) run(name string, f func(j *journey)) {
	all := j.T
	defer func() { j.T = all }()
	all.Run(name, func(t *testing.T) {
		j.T = t
		f(j)
	})
}

// movesInEachWay that libvirt has for a guest that runs.
func (j *journey) movesInEachWay() {
	j.run("direct", func(j *journey) {
		j.move(persistent...)
		j.arrived(leaves, arrives)
	})
	j.run("peer to peer", func(j *journey) {
		j.move(append(persistent, "--p2p")...)
		j.arrived(leaves, arrives)
	})
	j.run("tunnelled", func(j *journey) {
		j.move(append(persistent, "--p2p", "--tunnelled")...)
		j.arrived(leaves, arrives)
	})
	j.run("post-copy", func(j *journey) {
		j.move(append(slow, "--postcopy")...)
		j.to.await(j.T, "wired")
		require.NoError(j, core.Until(lately(j.T), func() error { return j.from.virsh(j.T, "migrate-postcopy", "web") }))
		j.arrived(leaves, arrives)
	})
}

// movesPaused by its user: before, after and in the middle of it.
func (j *journey) movesPaused() {
	j.run("paused by the user before", func(j *journey) {
		require.NoError(j, j.from.virsh(j.T, "suspend", "web"))
		j.move(append(persistent, "--p2p")...)
		j.arrived([]string{"absent"}, arrives)
		require.NoError(j, j.from.virsh(j.T, "resume", "web"))
	})
	j.run("to be paused", func(j *journey) {
		j.move(append(persistent, "--p2p", "--suspend")...)
		j.arrived(leaves, arrives)
		require.NoError(j, j.from.virsh(j.T, "resume", "web"))
	})
	j.run("paused by the user meanwhile", func(j *journey) {
		// It stops for good at the source: libvirt goes on with it at the destination.
		j.move(slow...)
		j.to.await(j.T, "wired")
		assert.Equal(j, []string{"live", "wired"}, []string{j.from.anew(j.T), j.to.anew(j.T)}, "an agent that is started in the middle")
		require.NoError(j, j.from.virsh(j.T, "suspend", "web"))
		j.from.await(j.T, "live, leaving")
		assert.Equal(j, []string{"live, leaving", "wired"}, []string{j.from.anew(j.T), j.to.anew(j.T)}, "an agent that is started in the middle")
		require.NoError(j, j.from.virsh(j.T, "migrate-setspeed", "web", "1000"))
		j.arrived(leaves, arrives)
	})
}

// movesAsTransient to the other node, back, and there again to be defined.
func (j *journey) movesAsTransient() {
	j.run("transient", func(j *journey) {
		j.move("--p2p", "--undefinesource")
		j.arrived(leaves, arrives)
		j.move("--p2p")
		j.arrived(leaves, arrives)
		j.move(append(persistent, "--p2p")...)
		j.arrived(leaves, arrives)
	})
}

// isRefusedAndRestored stays at the source: a hook refuses it, and it is saved and restored there.
func (j *journey) isRefusedAndRestored() {
	j.run("refused by a hook of the destination", func(j *journey) {
		for _, op := range []string{"migrate", "prepare", "start", "started"} {
			refusal := filepath.Join(j.to.lv.RunDir(), op)
			require.NoError(j, os.WriteFile(refusal, nil, 0o644))
			j.move(append(persistent, "--p2p")...)
			require.Error(j, <-j.job, op)
			require.Empty(j, j.from.notes(&j.from.told, j.began), op)
			require.NotContains(j, texts(j.to.notes(&j.to.told, j.began)), "live", op)
			require.NoError(j, os.Remove(refusal))
		}
	})
	j.run("saved and restored", func(j *journey) {
		j.began = time.Now()
		image := filepath.Join(j.TempDir(), "image")
		require.NoError(j, j.from.virsh(j.T, "save", "web", image))
		j.from.await(j.T, "absent")
		require.NoError(j, j.from.virsh(j.T, "restore", image))
		j.from.await(j.T, "live")
		told := texts(j.from.notes(&j.from.told, j.began))
		assert.NotContains(j, told, "live, leaving")
		assert.Equal(j, "absent", told[0])
	})
}

// survivesFailures of moves, in the middle of the copy and at the cutover.
func (j *journey) survivesFailures() {
	j.run("aborted", func(j *journey) {
		// Each at another moment: how the destination's QEMU ends depends on it.
		for range 5 {
			j.move(slow...)
			j.to.await(j.T, "wired")
			require.NoError(j, j.from.virsh(j.T, "domjobabort", "web"))
			j.stayed([]string{}, []string{"wired", "absent"})
		}
	})
	j.run("aborted at the cutover", func(j *journey) {
		j.drawOut(slow)
		require.NoError(j, j.from.virsh(j.T, "domjobabort", "web"))
		j.stayed([]string{"live, leaving", "live"}, []string{"wired", "absent"})
	})
	j.run("destination killed", func(j *journey) {
		j.move(slow...)
		j.to.await(j.T, "wired")
		require.NoError(j, j.to.kill())
		j.stayed([]string{}, []string{"wired", "absent"})
	})
	j.run("destination killed at the cutover", func(j *journey) {
		j.drawOut(slow)
		require.NoError(j, j.to.kill())
		j.stayed([]string{"live, leaving", "live"}, []string{"wired", "absent"})
	})
	j.run("post-copy interrupted", func(j *journey) {
		j.move(append(slow, "--postcopy", "--postcopy-bandwidth", "1")...)
		j.to.await(j.T, "wired")
		require.NoError(j, core.Until(lately(j.T), func() error { return j.from.virsh(j.T, "migrate-postcopy", "web") }))
		j.to.await(j.T, "live")
		require.NoError(j, j.from.virsh(j.T, "domjobabort", "--postcopy", "web"))
		require.NoError(j, core.Until(lately(j.T), func() error {
			if heard := texts(j.from.notes(&j.from.events, j.began)); !slices.Contains(heard, "3/8") {
				return fmt.Errorf("heard %q", heard)
			}
			return nil
		}))
		// Part of the guest is here and part there, and either may be asked.
		assert.Equal(j, []string{"live, leaving", "live"}, []string{j.from.anew(j.T), j.to.anew(j.T)})
		j.check([]string{"live, leaving"}, arrives)
		require.NoError(j, j.from.kill())
		require.NoError(j, j.to.kill())
		require.Error(j, <-j.job)
		j.from.await(j.T, "absent")
		j.to.await(j.T, "absent")
	})
}

// isGoneForGood when it is undefined or, without a definition, has stopped.
func (j *journey) isGoneForGood(gateway fabric.Gateway) {
	options := hypervisors.DomainOptions{Name: "db", Gateway: gateway, NICs: []hypervisors.DomainNIC{{Managed: true, NIC: fabric.NIC{Pools: []string{fabric.AutoPool}}}}}
	told := func(e *end) []string { return texts(e.notes(&e.told, j.began)) }
	j.run("undefined", func(j *journey) {
		j.began = time.Now()
		_, err := j.from.lv.Define(lately(j.T), options)
		require.NoError(j, err)
		require.NoError(j, j.from.virsh(j.T, "undefine", "db"))
		j.from.await(j.T, "gone")
		assert.Equal(j, []string{"gone"}, told(j.from))
	})
	j.run("moved while it was off", func(j *journey) {
		_, err := j.from.lv.Define(lately(j.T), options)
		require.NoError(j, err)
		j.began = time.Now()
		require.NoError(j, j.from.virsh(j.T, "migrate", "--offline", "--persistent", "--undefinesource", "--p2p", "db", "qemu+tcp://"+j.to.lv.Host().Addr4().String()+"/system"))
		require.NoError(j, j.to.virsh(j.T, "undefine", "db"))
		j.to.await(j.T, "gone")
		assert.Equal(j, []string{"gone"}, told(j.to))
		assert.Empty(j, told(j.from), "libvirt reports nothing at the source")
	})
	j.run("undefined while it runs", func(j *journey) {
		j.began = time.Now()
		_, err := j.from.lv.Run(lately(j.T), options)
		require.NoError(j, err)
		j.from.await(j.T, "live")
		require.NoError(j, j.from.virsh(j.T, "undefine", "db"))
		require.NoError(j, j.from.virsh(j.T, "suspend", "db"))
		require.NoError(j, j.from.virsh(j.T, "resume", "db"))
		require.NoError(j, core.Until(lately(j.T), func() error {
			if heard := texts(j.from.notes(&j.from.events, j.began)); !slices.Contains(heard, "3/0") {
				return fmt.Errorf("heard %q", heard)
			}
			return nil
		}))
		assert.NotContains(j, told(j.from), "gone")
		require.NoError(j, j.from.virsh(j.T, "destroy", "db"))
		j.from.await(j.T, "gone")
	})
	j.run("transient", func(j *journey) {
		transient := options
		transient.Transient = true
		_, err := j.from.lv.Run(lately(j.T), transient)
		require.NoError(j, err)
		j.from.await(j.T, "live")
		require.NoError(j, j.from.virsh(j.T, "destroy", "db"))
		j.from.await(j.T, "gone")
	})
}

// drawOut moves the guest, and has it stop for its migration a good while
// before that is done.
func (j *journey) drawOut(args []string) {
	j.Helper()
	j.move(args...)
	j.to.await(j.T, "wired")
	require.NoError(j, j.from.virsh(j.T, "suspend", "web"))
	j.from.await(j.T, "live, leaving")
}
