package libvirt

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

const (
	running = int(golibvirt.DomainRunning)
	paused  = int(golibvirt.DomainPaused)
	shutoff = int(golibvirt.DomainShutoff)

	byUser    = int(golibvirt.DomainPausedUser)
	migrating = int(golibvirt.DomainPausedMigration)

	postcopyFailed = int(golibvirt.DomainPausedPostcopyFailed)

	patience = 20 * time.Second
)

// ours is the XML of a guest of ours with one NIC.
func ours(name string, host int) string {
	return fmt.Sprintf(`<domain type='kvm' id='3'><name>%[1]s</name><uuid>aaaaaaaa-0000-4000-8000-%012[2]d</uuid>
<metadata><fabric:vm xmlns:fabric='urn:vmfabric:domain:1'><fabric:nic>
<fabric:address>203.0.113.%[2]d</fabric:address><fabric:address>2001:db8:100::%[2]d</fabric:address>
</fabric:nic></fabric:vm></metadata>
<devices><interface type='ethernet'><mac address='52:54:00:00:00:0a'/><target dev='%[1]s_net0' managed='no'/></interface></devices>
</domain>`, name, host)
}

func foreign(name string) string {
	return fmt.Sprintf("<domain type='kvm' id='4'><name>%s</name><devices/></domain>", name)
}

func bad(name string) string {
	return strings.Replace(ours(name, 66), "203.0.113.66", "203.0.113.666", 1)
}

// follow runs a source on the daemon, fast, and takes its first Lost.
func follow(t *testing.T, d *daemon) *Source {
	t.Helper()
	s := run(t, d)
	requireLost(t, s)
	return s
}

func run(t *testing.T, d *daemon) *Source {
	t.Helper()
	s := New(Config{Socket: d.path})
	s.daemon.Times = hypervisor.Times{Call: 500 * time.Millisecond, Ping: 50 * time.Millisecond, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
		assert.False(t, s.Status().Connected)
	})
	return s
}

func next(t *testing.T, s *Source) fabric.Change {
	t.Helper()
	select {
	case c := <-s.Changes():
		return c
	case <-time.After(patience):
		require.FailNow(t, "no change")
		return fabric.Change{}
	}
}

func requireLost(t *testing.T, s *Source) {
	t.Helper()
	require.True(t, next(t, s).Lost, "Lost")
}

// requireNext takes the next change and checks it, over a connection that may
// have to be made again meanwhile.
func requireNext(t *testing.T, s *Source, name string, state fabric.State) fabric.Desired {
	t.Helper()
	c := next(t, s)
	require.False(t, c.Lost)
	require.False(t, c.Gone)
	require.Equal(t, name, c.Guest.VM.Name)
	require.Equal(t, state.String(), c.Guest.State.String())
	require.WithinDuration(t, time.Now(), c.Guest.Since, patience)
	return c.Guest
}

// requireGone takes the next change, which says that a guest is gone for good.
func requireGone(t *testing.T, s *Source, name string) fabric.Desired {
	t.Helper()
	c := next(t, s)
	require.True(t, c.Gone, "%+v", c)
	require.False(t, c.Lost)
	require.Equal(t, name, c.Guest.VM.Name)
	require.Equal(t, "libvirt", c.Guest.VM.Origin)
	require.NotEmpty(t, c.Guest.VM.UUID)
	require.Equal(t, fabric.Absent, c.Guest.State)
	require.WithinDuration(t, time.Now(), c.Guest.Since, patience)
	return c.Guest
}

// requireSettled takes changes until no more come; all say the same of a guest.
// There are some, but for one whose change was taken: what is read of it may
// have come with that.
func requireSettled(t *testing.T, s *Source, name string, state fabric.State, leaving, taken bool) {
	t.Helper()
	for told := 0; ; told++ {
		wait := 100 * time.Millisecond
		if told == 0 && !taken {
			wait = patience
		}
		select {
		case c := <-s.Changes():
			require.False(t, c.Lost)
			require.Equal(t, name, c.Guest.VM.Name)
			require.Equal(t, standing{state, leaving}, standing{c.Guest.State, c.Guest.Leaving})
		case <-time.After(wait):
			require.True(t, taken || told > 0, "nothing was told of %s", name)
			return
		}
	}
}

func requireQuiet(t *testing.T, s *Source) {
	t.Helper()
	select {
	case c := <-s.Changes():
		require.FailNow(t, fmt.Sprintf("%+v", c))
	case <-time.After(100 * time.Millisecond):
	}
}

func states(guests []fabric.Desired) map[string]fabric.State {
	m := map[string]fabric.State{}
	for _, d := range guests {
		m[d.VM.Name] = d.State
	}
	return m
}

func TestStateOfADomain(t *testing.T) {
	unseen, absent := standing{}, standing{state: fabric.Absent}
	wired, live, left := standing{state: fabric.Wired}, standing{state: fabric.Live}, standing{fabric.Live, true}
	for name, c := range map[string]struct {
		state, reason int
		was           standing
		want          standing
	}{
		"running":                       {running, int(golibvirt.DomainRunningBooted), unseen, live},
		"arrived":                       {running, int(golibvirt.DomainRunningMigrated), wired, live},
		"arrived by post-copy":          {running, int(golibvirt.DomainRunningPostcopy), wired, live},
		"migration cancelled":           {running, int(golibvirt.DomainRunningMigrationCanceled), left, live},
		"goes on here":                  {running, int(golibvirt.DomainRunningUnpaused), left, live},
		"paused by the user":            {paused, byUser, live, live},
		"arrived paused":                {paused, byUser, wired, live},
		"paused, I/O error":             {paused, int(golibvirt.DomainPausedIoerror), live, live},
		"paused for a snapshot":         {paused, int(golibvirt.DomainPausedSnapshot), live, live},
		"paused, crashed":               {paused, int(golibvirt.DomainPausedCrashed), live, live},
		"paused, shutting down":         {paused, int(golibvirt.DomainPausedShuttingDown), live, live},
		"migrating out":                 {paused, migrating, live, left},
		"still migrating out":           {paused, migrating, left, left},
		"migrating in":                  {paused, migrating, wired, wired},
		"migrating, nobody knew":        {paused, migrating, unseen, wired},
		"starting up":                   {paused, int(golibvirt.DomainPausedStartingUp), unseen, wired},
		"leaves by post-copy":           {paused, int(golibvirt.DomainPausedPostcopy), live, left},
		"left by post-copy":             {paused, int(golibvirt.DomainPausedPostcopy), unseen, left},
		"post-copy failed, left":        {paused, postcopyFailed, left, left},
		"post-copy failed, arrived":     {paused, postcopyFailed, live, live},
		"post-copy failed, arriving":    {paused, postcopyFailed, wired, wired},
		"post-copy failed, nobody knew": {paused, postcopyFailed, unseen, wired},
		"shutting down":                 {int(golibvirt.DomainShutdown), 0, live, live},
		"shutting down, arriving":       {int(golibvirt.DomainShutdown), 0, wired, wired},
		"shutting down, nobody knew":    {int(golibvirt.DomainShutdown), 0, unseen, wired},
		"shutting down, leaving":        {int(golibvirt.DomainShutdown), 0, left, left},
		"suspended by the guest":        {int(golibvirt.DomainPmsuspended), 0, live, live},
		"crashed and kept":              {int(golibvirt.DomainCrashed), 0, live, live},
		"crashed, arriving":             {int(golibvirt.DomainCrashed), 0, wired, wired},
		"crashes, arriving":             {paused, int(golibvirt.DomainPausedCrashed), wired, wired},
		"ends, arriving":                {paused, int(golibvirt.DomainPausedShuttingDown), wired, wired},
		"cannot be made to run":         {paused, int(golibvirt.DomainPausedAPIError), wired, wired},
		"a word of a newer libvirt":     {99, 0, wired, wired},
		"another reason to be paused":   {paused, 99, wired, wired},
		"another reason to run":         {running, 99, wired, live},
		"no state":                      {int(golibvirt.DomainNostate), 0, wired, wired},
		"shut off":                      {shutoff, int(golibvirt.DomainShutoffDestroyed), live, absent},
	} {
		assert.Equal(t, c.want, stateOf(int32(c.state), int32(c.reason), c.was), name)
	}
}

func TestGuestsAreOursThatRun(t *testing.T) {
	d := newDaemon(t).start()
	d.set("web", running, 1, ours("web", 10))
	d.set("off", shutoff, 1, ours("off", 11))
	d.arrive("in", ours("in", 12))
	d.set("other", running, 1, foreign("other"))
	d.set("odd", running, 1, bad("odd"))
	s := New(Config{Socket: d.path})
	before := time.Now()
	got, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]fabric.State{"web": fabric.Live, "in": fabric.Wired, "odd": 0, "other": 0}, states(got), "who runs and cannot be described does not pass for gone")
	assert.Equal(t, fabric.VM{
		Name: "web", UUID: "aaaaaaaa-0000-4000-8000-000000000010", Origin: "libvirt", NICs: []fabric.NIC{{
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
			Kind:      fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a},
		}},
	}, got[0].VM)
	assert.False(t, got[0].Since.Before(before))
	assert.Equal(t, "libvirt", s.Name())
	assert.Equal(t, 2, s.Status().Guests)
	require.Len(t, s.Diagnose(t.Context()), 1)
	assert.Contains(t, s.Diagnose(t.Context())[0], "libvirt: domain odd: ")
	assert.Contains(t, s.Diagnose(t.Context())[0], "203.0.113.666")
	assert.Zero(t, d.listeners(), "without Run the connection is closed again")
}

// A guest whose <fabric:vm> is empty is listed and looked up without
// addresses; one without an interface for it cannot be described.
func TestGuestsToBeResolved(t *testing.T) {
	empty := func(name string) string {
		before, rest, _ := strings.Cut(ours(name, 10), "<fabric:nic>")
		_, after, _ := strings.Cut(rest, "</fabric:nic>")
		return before + after
	}
	d := newDaemon(t).start()
	d.set("ask", running, 1, empty("ask"))
	d.set("odd", running, 1, strings.Replace(empty("odd"), "odd_net0", "vnet0", 1))
	s := New(Config{Socket: d.path})
	got, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]fabric.State{"ask": fabric.Live, "odd": 0}, states(got))
	want := fabric.VM{
		Name: "ask", UUID: "aaaaaaaa-0000-4000-8000-000000000010", Origin: "libvirt", Resolve: true,
		NICs: []fabric.NIC{{Kind: fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}}},
	}
	assert.Equal(t, want, got[0].VM)
	const why = "domain odd: <fabric:vm> is empty, and no interface has <target dev='odd_net0'>"
	require.Len(t, s.Diagnose(t.Context()), 1)
	assert.Contains(t, s.Diagnose(t.Context())[0], why)

	vm, ours, err := s.Describe(t.Context(), "ask")
	require.NoError(t, err)
	assert.True(t, ours)
	assert.Equal(t, want, vm)
	_, ours, err = s.Describe(t.Context(), "odd")
	require.ErrorContains(t, err, why)
	assert.True(t, ours)
}

// TestUserDataOfADomain is that of the same domain alone.
func TestUserDataOfADomain(t *testing.T) {
	d := newDaemon(t).start()
	text := strings.Replace(ours("web", 10), "</metadata>", `<u:user-data xmlns:u="urn:vmfabric:user-data:1">#cloud-config</u:user-data></metadata>`, 1)
	d.set("web", running, 1, text)
	s := New(Config{Socket: d.path})
	guests, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, guests, 1)
	data, err := s.UserData(t.Context(), guests[0].VM)
	require.NoError(t, err)
	assert.Equal(t, "#cloud-config", string(data))
	other := guests[0].VM
	other.UUID = "aaaaaaaa-0000-4000-8000-00000000ffff"
	data, err = s.UserData(t.Context(), other)
	require.ErrorContains(t, err, "libvirt: domain web is another one by now")
	assert.Empty(t, data)
	other.Name = "nobody"
	data, err = s.UserData(t.Context(), other)
	require.NoError(t, err)
	assert.Empty(t, data)
}

func TestGuestThatCannotBeReadAnyMoreStays(t *testing.T) {
	d := newDaemon(t).start()
	d.set("web", running, 1, ours("web", 10))
	s := follow(t, d)
	_, err := s.Guests(t.Context())
	require.NoError(t, err)
	d.set("web", running, 1, bad("web"))
	got, err := s.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, got, 1, "it runs, and nobody said that it is not ours")
	assert.Equal(t, netip.MustParseAddr("203.0.113.10"), got[0].VM.NICs[0].Addresses[0])
	assert.Len(t, s.Diagnose(t.Context()), 1)
	d.set("web", running, 1, ours("web", 10))
	got, err = s.Guests(t.Context())
	require.NoError(t, err)
	assert.Len(t, got[0].VM.NICs, 1)
	assert.Empty(t, s.Diagnose(t.Context()))
}

// Its metadata was taken away as it ran: it is still that guest, and what
// happens to it is told. A source that is new to it knows no more than its name.
func TestGuestWithoutMetadataIsNotGone(t *testing.T) {
	d := newDaemon(t).start()
	d.set("web", running, 1, ours("web", 10))
	s := follow(t, d)
	_, err := s.Guests(t.Context())
	require.NoError(t, err)
	d.set("web", running, 1, foreign("web"))
	for range 2 {
		got, err := s.Guests(t.Context())
		require.NoError(t, err)
		require.Len(t, got, 1)
		assert.Equal(t, fabric.VM{Name: "web", UUID: "aaaaaaaa-0000-4000-8000-000000000010", Origin: "libvirt"}, got[0].VM)
		assert.Equal(t, fabric.Live, got[0].State)
		assert.Equal(t, "1", got[0].Run)
	}
	release := d.hook("web") // what is read then would take the place of this
	d.event("web", golibvirt.DomainEventSuspended, suspendedMigrated)
	left := requireNext(t, s, "web", fabric.Live)
	release()
	assert.True(t, left.Leaving)
	assert.Empty(t, left.VM.NICs)
	d.event("web", golibvirt.DomainEventResumed, resumedUnpaused)
	requireEventually(t, s, fabric.Live, false)

	again := follow(t, d)
	got, err := again.Guests(t.Context())
	require.NoError(t, err)
	require.Len(t, got, 1)
	assert.Equal(t, "web", got[0].VM.Name)
	assert.Len(t, got[0].VM.UUID, 36)
	assert.Empty(t, got[0].VM.NICs)
	assert.Zero(t, got[0].State, "nothing is known of it")
	assert.Zero(t, again.Status().Guests)
	d.event("web", golibvirt.DomainEventStopped, 0) // of its life before
	requireQuiet(t, again)
	d.set("web", shutoff, 1, "")
	d.event("web", golibvirt.DomainEventStopped, 0)
	gone := requireNext(t, again, "web", fabric.Absent)
	assert.Equal(t, got[0].VM, gone.VM)
	requireEventually(t, s, fabric.Absent, false)

	t.Run("and its next life is a stranger's", func(t *testing.T) {
		d.set("web", running, 1, "")
		d.event("web", golibvirt.DomainEventStarted, 0)
		require.Eventually(t, func() bool { return s.Status().Guests == 0 }, patience, time.Millisecond)
		got, err := s.Guests(t.Context())
		require.NoError(t, err)
		require.Len(t, got, 1)
		assert.Zero(t, got[0].State)
	})
}

func TestLifeOfAGuest(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	started, suspended, resumed, stopped := golibvirt.DomainEventStarted, golibvirt.DomainEventSuspended, golibvirt.DomainEventResumed, golibvirt.DomainEventStopped

	d.arrive("web", ours("web", 10))
	d.event("web", started, int(golibvirt.DomainEventStartedMigrated))
	requireNext(t, s, "web", fabric.Wired)
	d.set("web", running, int(golibvirt.DomainRunningMigrated), "")
	d.event("web", resumed, int(golibvirt.DomainEventResumedMigrated))
	guest := requireNext(t, s, "web", fabric.Live)
	assert.Equal(t, "2001:db8:100::10", guest.VM.NICs[0].Addresses[1].String())
	requireSettled(t, s, "web", fabric.Live, false, true)

	reads := d.asked(procXML)
	d.set("web", paused, byUser, "")
	d.event("web", suspended, 0)
	requireNext(t, s, "web", fabric.Live)
	d.set("web", paused, migrating, "")
	d.event("web", suspended, int(golibvirt.DomainEventSuspendedMigrated))
	requireSettled(t, s, "web", fabric.Live, true, false)
	assert.Equal(t, reads, d.asked(procXML), "a cutover does not wait for XML that is known")

	d.set("web", shutoff, int(golibvirt.DomainShutoffMigrated), "")
	d.event("web", stopped, int(golibvirt.DomainEventStoppedMigrated))
	gone := requireNext(t, s, "web", fabric.Absent)
	assert.Equal(t, guest.VM, gone.VM)
	assert.Zero(t, s.Status().Guests)
	assert.False(t, s.Status().LastEvent.IsZero())

	d.set("web", running, 1, ours("web", 20))
	d.event("web", started, 0)
	again := requireNext(t, s, "web", fabric.Live)
	assert.Equal(t, "203.0.113.20", again.VM.NICs[0].Addresses[0].String(), "a start reads the XML anew")
	requireQuiet(t, s)
}

func TestLateNewsDoesNotUndoNewer(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	d.set("web", running, 1, ours("web", 10))
	d.event("web", golibvirt.DomainEventStopped, 0) // of its life before
	requireNext(t, s, "web", fabric.Live)
}

func TestTransientDomainIsGoneByItsName(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	d.set("web", running, 1, ours("web", 10))
	d.event("web", golibvirt.DomainEventStarted, 0)
	requireNext(t, s, "web", fabric.Live)
	d.eventOf(d.remove("web"), golibvirt.DomainEventStopped, 0)
	gone := requireGone(t, s, "web")
	assert.Len(t, gone.VM.NICs, 1)

	t.Run("unless another has the name", func(t *testing.T) {
		d.set("db", running, 1, ours("db", 11))
		d.event("db", golibvirt.DomainEventStarted, 0)
		requireNext(t, s, "db", fabric.Live)
		old := d.remove("db")
		d.set("db", running, 1, ours("db", 12))
		d.eventOf(old, golibvirt.DomainEventStopped, 0)
		gone, heir := requireGone(t, s, "db"), requireNext(t, s, "db", fabric.Live)
		assert.NotEqual(t, gone.VM.UUID, heir.VM.UUID)
		assert.True(t, gone.Since.Before(heir.Since))
		assert.Equal(t, "203.0.113.12", heir.VM.NICs[0].Addresses[0].String())
	})
	t.Run("also when it is a stranger's now", func(t *testing.T) {
		d.set("mx", running, 1, ours("mx", 13))
		d.event("mx", golibvirt.DomainEventStarted, 0)
		requireNext(t, s, "mx", fabric.Live)
		old := d.remove("mx")
		d.set("mx", running, 1, foreign("mx"))
		d.eventOf(old, golibvirt.DomainEventStopped, 0)
		requireGone(t, s, "mx")
		requireQuiet(t, s)
	})
	t.Run("and one that was never known, too", func(t *testing.T) {
		d.set("brief", running, 1, ours("brief", 14))
		d.eventOf(d.remove("brief"), golibvirt.DomainEventStopped, 0)
		requireGone(t, s, "brief")
	})
}

func TestOthersCostNothing(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	d.set("other", running, 1, foreign("other"))
	d.event("other", golibvirt.DomainEventStarted, 0)
	require.Eventually(t, func() bool { return d.asked(procXML) == 1 }, patience, time.Millisecond)
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.foreign) == 1
	}, patience, time.Millisecond)
	for range 20 {
		d.event("other", golibvirt.DomainEventSuspended, 0)
		d.event("other", golibvirt.DomainEventResumed, 0)
	}
	d.set("web", running, 1, ours("web", 10))
	d.event("web", golibvirt.DomainEventStarted, 0)
	requireNext(t, s, "web", fabric.Live)
	assert.Equal(t, 2, d.asked(procXML))
	assert.Equal(t, 1, d.asked(procState))
}

func TestRestartOfTheDaemon(t *testing.T) {
	d := newDaemon(t).start()
	d.set("web", running, 1, ours("web", 10))
	s := follow(t, d)
	require.True(t, s.Status().Connected)
	assert.Empty(t, s.Diagnose(t.Context()))

	for range 3 {
		d.stop()
		require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
		assert.Regexp(t, `^libvirt: no answer on \S+/libvirt-sock since \d\d:\d\d:\d\d \(.+\); start libvirtd$`, s.Diagnose(t.Context())[0])
		assert.False(t, s.Status().Connected)
		began := time.Now()
		_, err := s.Guests(t.Context())
		require.ErrorContains(t, err, "libvirt: no answer on ")
		assert.Less(t, time.Since(began), patience/2)

		d.start()
		requireLost(t, s)
		assert.Empty(t, s.Diagnose(t.Context()))
		assert.True(t, s.Status().Connected)
		got, err := s.Guests(t.Context())
		require.NoError(t, err)
		assert.Len(t, got, 1)
		d.event("web", golibvirt.DomainEventResumed, 0)
		requireSettled(t, s, "web", fabric.Live, false, false)
	}
}

func TestAbsentLibvirtIsNoProblem(t *testing.T) {
	d := newDaemon(t)
	s := run(t, d)
	_, err := s.Guests(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	requireQuiet(t, s)
	assert.Empty(t, s.Diagnose(t.Context()))
	assert.False(t, s.Status().Connected)

	d.set("web", running, 1, ours("web", 10))
	d.start()
	requireLost(t, s)
	got, err := s.Guests(t.Context())
	require.NoError(t, err)
	assert.Len(t, got, 1)

	d.stop()
	os.Remove(d.path)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond, "it was there")
	assert.Contains(t, s.Diagnose(t.Context())[0], "start libvirtd")
}

func TestDeadSocketIsTold(t *testing.T) {
	d := newDaemon(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path})
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	ln.Close()
	s := run(t, d)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
	assert.Regexp(t, `no answer on \S+ since \S+ \(connect: connection refused\); start libvirtd$`, s.Diagnose(t.Context())[0])

	t.Run("and the other one serves", func(t *testing.T) {
		alive := newDaemon(t).start()
		both := New(Config{})
		both.daemon.Sockets = []string{filepath.Join(t.TempDir(), "virtqemud-sock"), d.path, alive.path}
		_, err := both.Guests(t.Context())
		require.NoError(t, err)
		both.daemon.Sockets = both.daemon.Sockets[:1]
		_, err = both.Guests(t.Context())
		assert.ErrorContains(t, err, "start virtqemud")
	})
}

// TestDaemonThatServedIsMissed: where both daemons may be, the one that served is the one
// to start again.
func TestDaemonThatServedIsMissed(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t)
	d.path = filepath.Join(dir, "virtqemud-sock")
	d.start()
	s := New(Config{})
	s.daemon.Sockets = []string{d.path, filepath.Join(dir, "libvirt-sock")}
	s.daemon.Times = hypervisor.Times{Call: time.Second, Ping: 50 * time.Millisecond, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); assert.NoError(t, <-ended) }()
	require.Eventually(t, func() bool { return s.Status().Connected }, patience, time.Millisecond)
	d.stop()
	os.Remove(d.path)
	says := func() string { return strings.Join(s.Diagnose(t.Context()), "\n") }
	require.Eventually(t, func() bool { return strings.Contains(says(), "file does not exist") }, patience, time.Millisecond)
	assert.Contains(t, says(), "no answer on "+d.path+" since ")
	assert.Contains(t, says(), "; start virtqemud")
}

func TestHangingDaemonIsNoticed(t *testing.T) {
	d := newDaemon(t).start()
	d.set("web", running, 1, ours("web", 10))
	s := follow(t, d)
	d.freeze()
	_, err := s.Guests(t.Context())
	require.Error(t, err)
	require.Eventually(t, func() bool { return !s.Status().Connected && len(s.Diagnose(t.Context())) == 1 }, patience, time.Millisecond)
	assert.Regexp(t, `since \S+ \(timed out\); restart libvirtd$`, s.Diagnose(t.Context())[0])

	d.thaw()
	requireLost(t, s)
	assert.Empty(t, s.Diagnose(t.Context()))
	d.event("web", golibvirt.DomainEventResumed, 0)
	requireNext(t, s, "web", fabric.Live)
}

func TestHookThatHangsHoldsUpItsDomainOnly(t *testing.T) {
	d := newDaemon(t).start()
	for i, name := range []string{"a", "b", "web"} {
		d.set(name, running, 1, ours(name, 10+i))
	}
	s := follow(t, d)
	release := d.hook("a")
	for range 10 {
		d.event("a", golibvirt.DomainEventResumed, 0)
	}
	d.event("b", golibvirt.DomainEventResumed, 0)
	requireNext(t, s, "b", fabric.Live)
	d.event("web", golibvirt.DomainEventResumed, 0)
	requireNext(t, s, "web", fabric.Live)

	for range 3 {
		_, err := s.Guests(t.Context())
		require.ErrorContains(t, err, "look for a hook that hangs")
	}
	assert.Equal(t, 1, d.asked(procList), "what is not answered is not asked again")
	assert.Equal(t, 1, d.listeners(), "the connection is kept")
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 2 }, patience, time.Millisecond)
	assert.Regexp(t, `^libvirt: no answer about all domains since \d\d:\d\d:\d\d; look for a hook that hangs$`, s.Diagnose(t.Context())[0])
	assert.Regexp(t, `^libvirt: no answer about domain a since \d\d:\d\d:\d\d; look for a hook of it that hangs$`, s.Diagnose(t.Context())[1])

	d.set("a", shutoff, 1, "")
	release()
	requireNext(t, s, "a", fabric.Absent)
	require.Eventually(t, func() bool { return len(s.Diagnose(t.Context())) == 0 }, patience, time.Millisecond)
	require.Eventually(t, func() bool {
		got, err := s.Guests(t.Context())
		return err == nil && len(got) == 2
	}, patience, time.Millisecond)
}

func TestManyHooksThatHangHoldUpNobodyElse(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	for i := range domainSlots {
		name := fmt.Sprint("hung", i)
		d.set(name, running, 1, ours(name, 10+i))
		d.hook(name)
		d.event(name, golibvirt.DomainEventResumed, 0)
	}
	require.Eventually(t, func() bool { return d.asked(procXML) == domainSlots }, patience, time.Millisecond)
	d.set("web", running, 1, ours("web", 30))
	d.event("web", golibvirt.DomainEventResumed, 0)
	requireLost(t, s)
	d.event("web", golibvirt.DomainEventResumed, 0)
	requireNext(t, s, "web", fabric.Live)
}

func TestOnlyTheNewestIsTold(t *testing.T) {
	d := newDaemon(t).start()
	s := follow(t, d)
	const guests = 5
	for round := range 10 {
		for i := range guests {
			name := fmt.Sprint("g", i)
			d.set(name, paused, []int{byUser, migrating}[round%2], ours(name, 10+i))
			d.event(name, golibvirt.DomainEventSuspended, 0)
		}
	}
	require.Eventually(t, func() bool {
		for _, d := range s.queue.Waiting() {
			if !d.Leaving {
				return false
			}
		}
		return len(s.queue.Waiting()) == guests
	}, patience, time.Millisecond)
	told := map[string]bool{}
	for len(told) < guests {
		c := next(t, s)
		told[c.Guest.VM.Name] = true
		assert.Equal(t, standing{fabric.Live, true}, standing{c.Guest.State, c.Guest.Leaving})
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	labtest.EndsItsGoroutines(t)
	d := newDaemon(t).start()
	d.set("web", running, 1, ours("web", 10))
	s := follow(t, d)
	d.hook("web")
	d.event("web", golibvirt.DomainEventResumed, 0)
	require.Eventually(t, func() bool { return d.asked(procXML) == 1 }, patience, time.Millisecond)
	_, err := s.Guests(t.Context())
	require.Error(t, err)
}

// TestExamine: a libvirt says what it is on a connection for that alone, and whether it
// calls the hook.
func TestExamine(t *testing.T) {
	d := newDaemon(t).start()
	s := New(Config{Socket: d.path, Hooks: t.TempDir()})
	x, err := s.Examine(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "9.0.0", x.Version)
	assert.True(t, x.Managed)
	assert.Equal(t, "libvirtd", x.Daemon)
	assert.Empty(t, x.Hook, "the process is no libvirtd")
	_, err = New(Config{Socket: d.path + ".none"}).Examine(t.Context())
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestHookOfALibvirtThatDoesNotRun(t *testing.T) {
	root := t.TempDir()
	fault := func() string {
		text, err := HookFault(root, DefaultHooks, "virtqemud")
		require.NoError(t, err)
		return text
	}
	assert.Contains(t, fault(), "there is no hook /etc/libvirt/hooks/qemu.d/vmfabric")
	assert.Contains(t, fault(), "systemctl restart virtqemud")
	file := filepath.Join(root, DefaultHooks, "qemu.d/vmfabric")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	assert.Contains(t, fault(), "is not executable")
	require.NoError(t, os.Chmod(file, 0o755))
	assert.Empty(t, fault())
	require.NoError(t, os.Remove(file))
	require.NoError(t, os.WriteFile(filepath.Join(root, DefaultHooks, "qemu"), nil, 0o755))
	assert.Empty(t, fault(), "enough for an older libvirt")
}
