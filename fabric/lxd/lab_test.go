package lxd

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// real is a source that follows a real LXD, as an agent does.
type real struct {
	*Source
	t    *testing.T
	host *core.Host
	lx   *hypervisors.LXD
	now  map[string]fabric.State // of the guests, as told; absent ones are not in it
	log  []string                // states as they were told, of all guests, and those that are gone for good
}

func followReal(t *testing.T, host *core.Host, lx *hypervisors.LXD) *real {
	r := &real{t: t, host: host, lx: lx, now: map[string]fabric.State{}}
	r.Source = New(Config{Product: map[string]Product{"lxd": LXD, "incus": Incus}[lx.Name()], Socket: lx.Socket(), Links: watchHost(t, host)})
	r.times.leak = 0
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(running) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
	})
	r.lost()
	return r
}

// soon bounds one call.
func (r *real) soon() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}

// hostLinks are the links of a host of the lab.
type hostLinks struct {
	nodeLinks
	host *core.Host
}

func watchHost(t *testing.T, host *core.Host) *hostLinks {
	l := &hostLinks{nodeLinks: nodeLinks{changed: make(chan struct{}, 1)}, host: host}
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	require.NoError(t, host.Do(func() error { return netlink.LinkSubscribe(updates, done) }))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for u := range updates {
			l.touch(u.Attrs().Name)
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-ended
	})
	return l
}

// Link: the kernel names the namespace of the other end when it is another
// (IFLA_LINK_NETNSID).
func (l *hostLinks) Link(name string) (int, bool) {
	link, err := l.host.Link(name)
	if err != nil {
		return 0, false
	}
	at := link.Attrs()
	return at.Index, link.Type() == "veth" && at.ParentIndex != 0 && at.NetNsID < 0
}

// lost takes changes until some were missed, and lists.
func (r *real) lost() {
	r.t.Helper()
	bound := r.soon().Done()
	for {
		select {
		case c := <-r.Changes():
			if !c.Lost {
				r.collect(c)
				continue
			}
			r.list()
			return
		case <-bound:
			require.FailNow(r.t, "nothing was lost", "%v", r.Diagnose(r.t.Context()))
		}
	}
}

func (r *real) list() {
	r.t.Helper()
	guests, err := r.Guests(r.soon())
	require.NoError(r.t, err)
	clear(r.now)
	for _, d := range guests {
		r.now[d.VM.Name] = d.State
	}
}

func (r *real) collect(c fabric.Change) {
	d, name := c.Guest, c.Guest.VM.Name
	word := d.State.String()
	if c.Gone {
		word = "gone " + d.VM.UUID
	}
	r.log = append(r.log, name+" "+word)
	delete(r.now, name)
	if d.State != fabric.Absent {
		r.now[name] = d.State
	}
}

// until takes changes until the guests are these.
func (r *real) until(want map[string]fabric.State) {
	r.t.Helper()
	bound := r.soon().Done()
	for !assert.ObjectsAreEqual(want, r.now) {
		select {
		case c := <-r.Changes():
			if c.Lost {
				r.list()
			} else {
				r.collect(c)
			}
		case <-bound:
			require.FailNow(r.t, "guests are not as they should be", "want %v, have %v, was told %v; %v", want, r.now, r.log, r.Diagnose(r.t.Context()))
		}
	}
}

// quiet takes what is told yet, and gives it.
func (r *real) quiet() []string {
	r.t.Helper()
	before := len(r.log)
	bound := r.soon().Done()
	for {
		select {
		case c := <-r.Changes():
			if !c.Lost {
				r.collect(c)
			}
		case <-time.After(300 * time.Millisecond):
			return r.log[before:]
		case <-bound:
			require.FailNow(r.t, "it does not become quiet", "was told %v", r.log[before:])
		}
	}
}

func (r *real) lxc(args ...string) {
	r.t.Helper()
	_, err := r.lx.Lxc(r.soon(), args...)
	require.NoError(r.t, err)
}

// remedy does what LXD's user is told of an instance that would not start.
func (r *real) remedy(name string) {
	r.t.Helper()
	describe := func() (ours bool, err error) {
		for range 5 { // a busy LXD answers late
			if _, ours, err = r.Describe(r.soon(), name); err == nil || !strings.Contains(err.Error(), "timed out") {
				break
			}
		}
		return ours, err
	}
	ours, err := describe()
	require.Error(r.t, err, name)
	require.True(r.t, ours, "%v", err)
	problem := err.Error()
	way := problem[strings.LastIndex(problem, "; ")+2:]
	for line := range strings.SplitSeq(way, " && ") {
		words := strings.Fields(line)
		require.Equal(r.t, r.client, words[0], problem)
		r.lxc(words[1:]...)
	}
	_, err = describe()
	require.NoError(r.t, err, "%s was told: %s", name, problem)
}

func nicOf(kind fabric.Kind, addresses ...string) fabric.NIC {
	n := fabric.NIC{Kind: kind}
	for _, a := range addresses {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	return n
}

type states = map[string]fabric.State

func needLXD(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a real LXD")
	}
	t.Parallel()
	labtest.Need(t, "lxd")
}

func newReal(t *testing.T) *real {
	needLXD(t)
	host, err := labtest.New(t).AddHost("node1")
	require.NoError(t, err)
	lx, err := hypervisors.StartLXD(t.Context(), host, hypervisors.LXDOptions{})
	require.NoError(t, err)
	return followReal(t, host, lx)
}

func TestRealLifeOfAGuest(t *testing.T) {
	r := newReal(t)
	c, err := r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{nicOf("", "203.0.113.10", "2001:db8:100::10")}})
	require.NoError(t, err)
	r.until(states{})
	require.NoError(t, c.Start(r.soon()))
	r.until(states{"web": fabric.Live})
	assert.NotContains(t, r.log, "web wired")

	guests, err := r.Guests(r.soon())
	require.NoError(t, err)
	vm := guests[0].VM
	assert.NotEmpty(t, vm.UUID)
	assert.False(t, vm.NICs[0].MAC.IsZero(), "LXD chose one")
	inside, err := c.Exec(r.soon(), "busybox", "cat", "/sys/class/net/eth0/address") // its other names come while it boots
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(inside), vm.NICs[0].MAC.String())
	r.quiet()

	r.lxc("pause", "web")
	r.lxc("start", "web") // resumes
	r.lxc("config", "set", "web", "user.vmfabric.net0.routes=198.51.100.0/29")
	assert.NotContains(t, r.quiet(), "web absent")
	guests, err = r.Guests(r.soon())
	require.NoError(t, err)
	assert.Len(t, guests[0].VM.NICs[0].Routes, 1)

	for _, key := range []string{"user.user-data", "cloud-init.user-data"} { // the later one counts
		want := "#cloud-config\nhostname: \"<web> & co, by " + key + "\"\n"
		r.lxc("config", "set", "web", key+"="+want)
		data, err := r.UserData(r.soon(), vm)
		require.NoError(t, err)
		assert.Equal(t, want, string(data))
	}

	pid, err := c.Pid(r.soon())
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	r.until(states{})
	require.NoError(t, c.Start(r.soon()))
	r.until(states{"web": fabric.Live})
	r.lxc("restart", "--force", "web")
	r.quiet()
	r.until(states{"web": fabric.Live})
	require.NoError(t, c.Destroy(r.soon()))
	r.until(states{})
	assert.NotContains(t, strings.Join(r.log, ", "), "gone")
	require.NoError(t, c.Delete(r.soon()))
	r.untilGone("web", vm.UUID)
	assert.Empty(t, r.Diagnose(r.t.Context()))
}

// TestRealDeletedInstances are gone for good, and no others.
func TestRealDeletedInstances(t *testing.T) {
	r := newReal(t)
	uuidOf := func(name string) string {
		out, err := r.lx.Lxc(r.soon(), "config", "get", name, "volatile.uuid")
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}
	_, err := r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{{Pools: []string{fabric.AutoPool}}}})
	require.NoError(t, err)
	web := uuidOf("web")
	require.NoError(t, r.lx.Snapshot(r.soon(), "web"))
	r.lxc("rename", "web", "www")
	r.lxc("copy", "www", "copy")
	other := uuidOf("copy")
	require.NotEqual(t, web, other)
	r.lxc("delete", "copy")
	r.untilGone("copy", other)
	r.lxc("project", "create", "shop", "-c", "features.images=false", "-c", "features.profiles=false")
	r.lxc("move", "www", "--target-project", "shop")
	assert.NotContains(t, r.quiet(), "www gone "+web)
	r.lxc("delete", "www", "--project", "shop")
	r.untilGone("www", web)
	_, err = r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "other"})
	require.NoError(t, err)
	foreign := uuidOf("other")
	r.lxc("delete", "other")
	r.untilGone("other", foreign)
}

// untilGone takes changes until a guest is gone for good.
func (r *real) untilGone(name, uuid string) {
	r.t.Helper()
	bound := r.soon().Done()
	for !slices.Contains(r.log, name+" gone "+uuid) {
		select {
		case c := <-r.Changes():
			if c.Lost {
				r.list()
			} else {
				r.collect(c)
			}
		case <-bound:
			require.FailNow(r.t, "guest is not gone", "%s %s; was told %v", name, uuid, r.log)
		}
	}
}

func TestRealPortsOfTheFabric(t *testing.T) {
	r := newReal(t)
	c, err := r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{nicOf(fabric.Veth, "203.0.113.10", "2001:db8:100::10")}})
	require.NoError(t, err)
	r.until(states{"web": fabric.Wired})
	require.Error(t, c.Start(r.soon()), "it does not start without its port")
	require.NoError(t, r.host.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "web_net0"}, PeerName: "web_peer0"}))
	require.NoError(t, c.Start(r.soon()))
	r.until(states{"web": fabric.Live})
	require.NoError(t, c.Destroy(r.soon()))
	r.until(states{"web": fabric.Wired})
	r.list()
	r.list()
	assert.Empty(t, r.Diagnose(r.t.Context()), "its port is not left behind, it stays")
	r.lxc("rename", "web", "www")
	r.until(states{})
	r.remedy("www") // the port is another's now
	r.until(states{"www": fabric.Wired})
	r.lxc("delete", "www")
	r.until(states{})
}

// Every line that says how to remedy an instance is one that LXD takes.
func TestRealMending(t *testing.T) {
	r := newReal(t)
	r.lxc("profile", "create", "fabric")
	r.lxc("profile", "device", "add", "fabric", "eth0", "nic", "nictype=p2p", "name=eth0")
	r.lxc("profile", "create", "bridge")
	r.lxc("profile", "device", "add", "bridge", "eth0", "nic", "nictype=bridged", "parent=br0", "name=eth0")
	r.lxc("project", "create", "shop", "-c", "features.images=false", "-c", "features.profiles=false")
	const keys = "user.vmfabric.net0.addresses=203.0.113.10,2001:db8:100::10"
	for name, steps := range map[string][][]string{
		"no device":        {},
		"no host_name":     {{"config", "device", "add", "web", "eth0", "nic", "nictype=p2p", "name=eth0"}},
		"long host_name":   {{"config", "device", "add", "web", "eth0", "nic", "nictype=p2p", "name=eth0", "host_name=a-name-that-is-too-long"}},
		"host_name of old": {{"config", "device", "add", "web", "lan", "nic", "nictype=p2p", "name=eth0", "host_name=c1_net0"}},
		"bridged":          {{"config", "device", "add", "web", "eth0", "nic", "nictype=bridged", "parent=br0", "name=eth0", "host_name=web_net0"}},
		"of a profile":     {{"profile", "add", "web", "fabric"}},
		"bridged there":    {{"profile", "add", "web", "bridge"}},
		"misspelt key":     {{"config", "device", "add", "web", "eth0", "nic", "nictype=p2p", "name=eth0", "host_name=web_net0"}, {"config", "set", "web", "user.vmfabric.net0.adresses=x"}},
	} {
		for _, project := range []string{"default", "shop"} {
			t.Run(name+" in "+project, func(t *testing.T) {
				r.t = t
				_, err := r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "web", Project: project})
				require.NoError(t, err)
				ctx := context.WithoutCancel(t.Context())
				t.Cleanup(func() {
					ctx, cancel := context.WithTimeout(ctx, time.Minute)
					defer cancel()
					_, err := r.lx.Lxc(ctx, "delete", "web", "--project", project)
					assert.NoError(t, err)
				})
				for _, words := range append(steps, []string{"config", "set", "web", keys}) {
					r.lxc(append(words, "--project", project)...)
				}
				r.remedy(map[string]string{"default": "web", "shop": "shop_web"}[project])
				r.list()
				assert.Empty(t, r.Diagnose(r.t.Context()))
			})
		}
	}
	r.t = t

	t.Run("two of one name", func(t *testing.T) {
		nic := []fabric.NIC{nicOf(fabric.Veth, "203.0.113.10")}
		for _, project := range []string{"default", "shop"} {
			_, err := r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "web", Project: project, NICs: nic})
			require.NoError(t, err)
			r.until(states{"web": fabric.Wired})
		}
		require.Eventually(t, func() bool { return len(r.Diagnose(r.t.Context())) == 1 }, patience, time.Millisecond)
		assert.Contains(t, r.Diagnose(r.t.Context())[0], "; rename one: "+r.client+" rename web NAME --project shop")
		r.lxc("delete", "web")
		r.quiet()
		r.list()
		assert.Equal(t, states{"web": fabric.Wired}, r.now)
		assert.Empty(t, r.Diagnose(r.t.Context()))
	})
	t.Run("by its profile", func(t *testing.T) {
		c, err := r.lx.Init(r.soon(), hypervisors.ContainerOptions{Name: "db"})
		require.NoError(t, err)
		r.lxc("config", "device", "add", "db", "eth0", "nic", "nictype=p2p", "name=eth0", "host_name=db_net0")
		r.lxc("profile", "add", "db", "fabric")
		require.NoError(t, c.Start(r.soon()))
		r.until(states{"web": fabric.Wired})
		r.lxc("profile", "set", "fabric", "user.vmfabric.net0.addresses=203.0.113.11,2001:db8:100::11")
		r.until(states{"web": fabric.Wired, "db": fabric.Live})
		r.lxc("profile", "unset", "fabric", "user.vmfabric.net0.addresses")
		r.quiet()
		r.list()
		assert.Equal(t, states{"web": fabric.Wired, "db": fabric.Live}, r.now, "it has what it had, until it ends")
		require.NoError(t, c.Destroy(r.soon()))
		r.until(states{"web": fabric.Wired})
	})
}

func TestRealDaemonComesAndGoes(t *testing.T) {
	r := newReal(t)
	c, err := r.lx.Launch(r.soon(), hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{nicOf("", "203.0.113.10", "2001:db8:100::10")}})
	require.NoError(t, err)
	r.until(states{"web": fabric.Live})
	for _, end := range []func() error{r.lx.Stop, r.lx.Kill} {
		require.NoError(t, end())
		require.Eventually(t, func() bool { return len(r.Diagnose(r.t.Context())) == 1 }, patience, time.Millisecond)
		assert.Regexp(t, `^`+r.name+`: no answer on \S+ since \S+ \([a-z :]+\); start `+r.name+`$`, r.Diagnose(r.t.Context())[0])
		_, err := r.Guests(r.soon())
		require.ErrorContains(t, err, r.name+": no answer on ")
		require.NoError(t, r.lx.Start(r.soon()))
		r.lost()
		assert.Equal(t, states{"web": fabric.Live}, r.now)
		assert.Empty(t, r.Diagnose(r.t.Context()))
	}

	t.Run("and leaves a port behind", func(t *testing.T) {
		pid, err := c.Pid(r.soon())
		require.NoError(t, err)
		require.NoError(t, r.lx.Kill())
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		require.NoError(t, r.lx.Start(r.soon()))
		r.lost()
		r.until(states{})
		r.list()
		r.list()
		require.Len(t, r.Diagnose(r.t.Context()), 1)
		require.Error(t, c.Start(r.soon()))
		words := strings.Fields(r.Diagnose(r.t.Context())[0][strings.LastIndex(r.Diagnose(t.Context())[0], "; ")+2:])
		require.Equal(t, []string{"ip", "link", "del", "web_net0"}, words)
		_, err = r.host.Run(r.soon(), words[0], words[1:]...)
		require.NoError(t, err)
		assert.Empty(t, r.Diagnose(r.t.Context()))
		require.NoError(t, c.Start(r.soon()))
		r.until(states{"web": fabric.Live})
	})
}

func TestRealCluster(t *testing.T) {
	needLXD(t)
	_, top := labtest.Build(t, core.SmallCluster(2))
	one, two := top.Nodes["node1"], top.Nodes["node2"]
	lx, err := hypervisors.StartLXD(t.Context(), one, hypervisors.LXDOptions{})
	require.NoError(t, err)
	a := followReal(t, one, lx)
	_, err = lx.Launch(a.soon(), hypervisors.ContainerOptions{Name: "db", NICs: []fabric.NIC{nicOf("", "203.0.113.11")}})
	require.NoError(t, err)
	a.until(states{"db": fabric.Live})

	// A daemon that becomes the member of a cluster keeps its guests.
	a.quiet()
	a.lxc("config", "set", "core.https_address", netip.AddrPortFrom(one.Addr4(), 8443).String())
	a.lxc("cluster", "enable", "node1")
	assert.NotContains(t, a.quiet(), "db absent")
	a.list()
	assert.Equal(t, states{"db": fabric.Live}, a.now)

	join, err := lx.Invite(a.soon(), two)
	require.NoError(t, err)
	lx2, err := hypervisors.StartLXD(a.soon(), two, join)
	require.NoError(t, err)
	b := followReal(t, two, lx2)
	assert.Empty(t, b.now, "what runs elsewhere")

	_, err = lx.Init(a.soon(), hypervisors.ContainerOptions{
		Name: "web", NICs: []fabric.NIC{nicOf(fabric.Veth, "203.0.113.10", "2001:db8:100::10")}, Target: "node1",
	})
	require.NoError(t, err)
	a.until(states{"db": fabric.Live, "web": fabric.Wired})
	for range 2 {
		a.lxc("move", "web", "--target", "node2")
		a.until(states{"db": fabric.Live})
		b.until(states{"web": fabric.Wired})
		a.lxc("move", "web", "--target", "node1")
		a.until(states{"db": fabric.Live, "web": fabric.Wired})
		b.until(states{})
	}
	for _, r := range []*real{a, b} {
		r.quiet()
		assert.NotContains(t, strings.Join(r.log, ", "), "move-of")
		assert.NotContains(t, strings.Join(r.log, ", "), "gone")
		assert.Empty(t, r.Diagnose(r.t.Context()))
	}
}
