package gobgp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/gobgp"
	"github.com/vmfabric/vmfabric/fabric/gobgp/internal/gobgptest"
	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
	"github.com/vmfabric/vmfabric/internal/render"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

const (
	asEnv      = "GOBGP_TEST_AS"
	clusterEnv = "GOBGP_TEST_CLUSTER"
)

// TestMain runs the tests in a network namespace of their own: the ports of their
// sessions are theirs alone. It has the test program be a speaker or a reflector
// where a test wants one in a process of its own.
func TestMain(m *testing.M) {
	kind, name, _ := strings.Cut(os.Getenv(asEnv), " ")
	if kind == "" {
		os.Exit(labtest.Inside(m, nil))
	}
	var c fabric.Cluster
	err := json.Unmarshal([]byte(os.Getenv(clusterEnv)), &c)
	if err == nil {
		err = map[string]func(fabric.Cluster, string) error{"speaker": beSpeaker, "reflector": beReflector}[kind](c, name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// beSpeaker reads lines of a preference and prefixes, "fresh 203.0.113.10/32",
// also with who holds them since when, "fresh,7,1000", and before others alike,
// "fresh,7,1000,first"; or "remove" and prefixes. It writes down who has better routes.
func beSpeaker(c fabric.Cluster, name string) error {
	node, err := c.Node(name)
	if err != nil {
		return err
	}
	s, err := gobgp.New(gobgp.Config{Cluster: c, Node: node})
	if err != nil {
		return err
	}
	go func() {
		for r := range s.Competitors() {
			_ = json.NewEncoder(os.Stdout).Encode(r)
		}
	}()
	ctx := context.Background()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	opens := func(one fabric.Session) bool { return one.State != "idle" }
	for sessions, err := s.Sessions(ctx); !slices.ContainsFunc(sessions, opens); sessions, err = s.Sessions(ctx) {
		if err != nil {
			return err
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Millisecond):
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		ps := gobgptest.Prefixes(words[1:]...)
		if words[0] == "remove" {
			err = s.Remove(ctx, ps...)
		}
		as := strings.Split(words[0], ",")
		for _, pref := range fabric.Preferences() {
			for _, p := range ps {
				if pref.String() == as[0] {
					err = s.Put(ctx, fabric.Route{Prefix: p, Preference: pref, Holder: holder(as), First: len(as) > 3})
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// holder reads the one of "fresh,7,1000".
func holder(as []string) (h fabric.Holder) {
	if len(as) > 2 {
		_, _ = fmt.Sscan(as[1]+" "+as[2], &h.Guest, &h.Since)
	}
	return h
}

func beReflector(c fabric.Cluster, name string) error {
	rr, err := c.RR(name)
	if err != nil {
		return err
	}
	r, err := reflector.New(reflector.Config{Cluster: c, RR: rr}, reflector.WithDeferral(0))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return r.Run(ctx)
}

// other is a speaker, or a reflector, in a process of its own.
type other struct {
	*core.Daemon
	t    *testing.T
	in   io.Writer
	seen int // competitors
	gone int // those that have gone
}

func startOther(t *testing.T, c fabric.Cluster, h *core.Host, kind string) *other {
	t.Helper()
	text, err := json.Marshal(c)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asEnv+"="+kind+" "+h.Name(), clusterEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	d, err := h.StartDaemon(kind, cmd)
	require.NoError(t, err)
	return &other{Daemon: d, t: t, in: in}
}

func (o *other) does(what string, ps ...netip.Prefix) {
	o.t.Helper()
	for _, p := range ps {
		what += " " + p.String()
	}
	_, err := fmt.Fprintln(o.in, what)
	require.NoError(o.t, err)
}

// competitors lists the competing routes that it received.
func (o *other) competitors() []fabric.Competitor { return o.received(false) }

// received lists the competing routes that it received, or their ends.
func (o *other) received(gone bool) (rs []fabric.Competitor) {
	o.t.Helper()
	for line := range strings.Lines(o.Log()) {
		if strings.HasPrefix(line, "{") && strings.HasSuffix(line, "\n") {
			var r fabric.Competitor
			require.NoError(o.t, json.Unmarshal([]byte(line), &r), line)
			if r.Gone == gone {
				rs = append(rs, r)
			}
		}
	}
	return rs
}

// learns waits until it has received the node's route to each prefix from each
// reflector, and no other route to these.
func (o *other) learns(from *core.Host, reflectors int, ps ...netip.Prefix) {
	o.t.Helper()
	var expected []string
	for n := range reflectors {
		for _, p := range ps {
			via := from.Addr4()
			if p.Addr().Is6() {
				via = from.Addr6()
			}
			expected = append(expected, fmt.Sprint("rr", n+1, " ", p, " ", via, " fresh"))
		}
	}
	slices.Sort(expected)
	var got []string
	received := 0
	all := func() bool {
		competitors := o.competitors()
		got, received = nil, len(competitors)
		for _, r := range competitors[o.seen:] {
			assert.False(o.t, r.At.IsZero())
			if !slices.Contains(ps, r.Prefix) {
				continue
			}
			got = append(got, fmt.Sprint(r.Reflector, " ", r.Prefix, " ", r.Via, " ", r.Preference))
		}
		slices.Sort(got)
		return slices.Equal(slices.Compact(got), expected) // a reflector may send one route more than once
	}
	if !assert.Eventually(o.t, all, gobgptest.Bound, 20*time.Millisecond) {
		require.Fail(o.t, "not received", "%v, not %v\n%s", got, expected, o.Log())
	}
	o.seen = received
}

// loses waits until it has received the end of the routes to these prefixes.
func (o *other) loses(reflectors int, ps ...netip.Prefix) {
	o.t.Helper()
	var got, expected []string
	for n := range reflectors {
		for _, p := range ps {
			expected = append(expected, fmt.Sprint("rr", n+1, " ", p))
		}
	}
	slices.Sort(expected)
	received := 0
	all := func() bool {
		gone := o.received(true)
		got, received = nil, len(gone)
		for _, r := range gone[o.gone:] {
			if slices.Contains(ps, r.Prefix) {
				got = append(got, fmt.Sprint(r.Reflector, " ", r.Prefix))
			}
		}
		slices.Sort(got)
		return slices.Equal(got, expected)
	}
	if !assert.Eventually(o.t, all, gobgptest.Bound, 20*time.Millisecond) {
		require.Fail(o.t, "not received", "%v of %v\n%s", got, expected, o.Log())
	}
	o.gone = received
}

// TestHolders has two nodes announce an address for two guests, behind each kind of
// reflector: each learns which guest the other's route is for. Of two routes with the
// highest LOCAL_PREF the one that is First is the best, whichever router id is lower.
func TestHolders(t *testing.T) {
	labtest.Long(t)
	for _, kind := range []string{"bird", "frr", "embedded"} {
		t.Run(kind, func(t *testing.T) {
			if kind != "embedded" {
				labtest.Need(t, kind)
			}
			c := core.SmallCluster(2)
			_, top := labtest.Build(t, c)
			for _, rr := range top.Reflectors {
				startReflecting(t, c, kind, rr)
			}
			hosts := []*core.Host{top.Nodes["node1"], top.Nodes["node2"]}
			speakers := []*other{startOther(t, c, hosts[0], "speaker"), startOther(t, c, hosts[1], "speaker")}
			for first := range hosts {
				// Each round has its own prefixes: of two that are removed at the same
				// time, either may be the one that the other's speaker hears of last.
				guest := gobgptest.Prefixes(fmt.Sprintf("203.0.113.%d/32", 10+first), fmt.Sprintf("2001:db8:100::%d/128", 10+first))
				elder, later := speakers[first], speakers[1-first]
				elder.does("normal,1,1000", guest...)
				later.does("fresh,4294967295,4294967294", guest...)
				elder.learns(hosts[1-first], 2, guest...)
				elder.learnsHolder(t, fabric.Holder{Guest: 4294967295, Since: 4294967294}, guest)
				elder.does("fresh,1,1000,first", guest...)
				later.learns(hosts[first], 2, guest...)
				later.learnsHolder(t, fabric.Holder{Guest: 1, Since: 1000}, guest)
				elder.loses(2, guest...)
				// Another guest in the place of the first is news.
				elder.does("fresh,3,1000,first", guest...)
				later.learns(hosts[first], 2, guest...)
				later.learnsHolder(t, fabric.Holder{Guest: 3, Since: 1000}, guest)
				later.does("remove", guest...)
				elder.does("remove", guest...)
				later.loses(2, guest...)
			}
		})
	}
}

// learnsHolder waits until the newest route of each reflector to each prefix is of a
// holder.
func (o *other) learnsHolder(t *testing.T, want fabric.Holder, of []netip.Prefix) {
	t.Helper()
	gobgptest.Eventually(t, fmt.Sprintf("%+v is learned", want), func() bool {
		newest := map[string]fabric.Holder{}
		for _, r := range o.competitors() {
			if !slices.Contains(of, r.Prefix) {
				continue
			}
			newest[r.Reflector+" "+r.Prefix.String()] = r.Holder
		}
		for _, h := range newest {
			if h != want {
				return false
			}
		}
		return len(newest) == 2*len(of) // by both reflectors
	})
}

// TestCompetitors has two nodes announce the same prefixes, behind each kind of
// reflector. When a node has learned a mark that the other announced after something
// else, all reflectors had time to pass that on too.
func TestCompetitors(t *testing.T) {
	labtest.Long(t)
	guest := gobgptest.Prefixes("203.0.113.10/32", "2001:db8:100::10/128")
	for _, kind := range []string{"bird", "frr", "embedded"} {
		t.Run(kind, func(t *testing.T) {
			if kind != "embedded" {
				labtest.Need(t, kind)
			}
			c := core.SmallCluster(2)
			_, top := labtest.Build(t, c)
			for _, rr := range top.Reflectors {
				startReflecting(t, c, kind, rr)
			}
			node1, node2 := top.Nodes["node1"], top.Nodes["node2"]
			one, two := startOther(t, c, node1, "speaker"), startOther(t, c, node2, "speaker")
			one.does("normal", guest...)
			marks := 0
			// mark waits until one has learned all that two has announced so far, no
			// competing route among it.
			mark := func() {
				t.Helper()
				marks++
				ps := gobgptest.Prefixes(fmt.Sprintf("203.0.113.%d/32", 100+marks), fmt.Sprintf("2001:db8:100::%x/128", 0x100+marks))
				one.does("normal", ps...)
				two.does("fresh", ps...)
				one.learns(node2, 2, ps...)
			}
			two.does("fresh", guest...)
			one.learns(node2, 2, guest...)
			two.does("normal", guest...)
			one.loses(2, guest...)
			mark()
			two.does("fresh", guest...)
			one.learns(node2, 2, guest...)

			// A node that has withdrawn its own route receives the end too.
			one.does("remove", guest...)
			two.does("remove", guest...)
			one.loses(2, guest...)
			one.does("normal", guest...)
			two.does("fresh", guest...)
			one.learns(node2, 2, guest...)

			// A node that announces anew receives the route that is there, but not once more
			// when its own preference changes.
			one.does("draining", guest...)
			one.does("normal", guest...)
			mark()
			one.does("remove", guest...)
			one.does("standby", guest...)
			one.learns(node2, 2, guest...)
			two.does("remove", guest...)
			one.loses(2, guest...)
			mark()

			// Both are fresh: only the node whose route is not the best receives the other.
			two.does("standby", guest...)
			one.does("fresh", guest...)
			two.learns(node1, 2, guest...)
			two.does("fresh", guest...)
			mark()
			assert.Len(t, two.competitors(), two.seen)
			assert.Len(t, one.competitors(), one.seen)
		})
	}
}

func startReflecting(t *testing.T, c fabric.Cluster, kind string, h *core.Host) {
	t.Helper()
	if kind == "embedded" {
		startOther(t, c, h, "reflector")
		return
	}
	conf, err := render.Router(c, render.Format(kind), h.Name())
	require.NoError(t, err)
	if kind == "bird" {
		_, err = routers.StartBird(t.Context(), h, strings.Replace(conf, "log syslog all;", "log stderr all;", 1))
	} else {
		_, err = routers.StartFRR(t.Context(), h, conf)
	}
	require.NoError(t, err)
}

// TestCompetitorsWait has nobody read while another node announces and withdraws: the
// reader gets each prefix once, and none that has gone.
func TestCompetitorsWait(t *testing.T) {
	c := learning(11941, 1)
	rr := reflect(t, c, 0)
	defer func() { require.NoError(t, rr.Close()) }()
	one, two := newNode(t, c, 51), newNode(t, c, 52)
	open(t, one, two)
	gone, mark := netip.MustParsePrefix("203.0.113.77/32"), netip.MustParsePrefix("203.0.113.78/32")
	one.announces(fabric.Normal, gobgptest.V4, gobgptest.V6, gone, mark)
	for range 5 {
		two.announces(fabric.Fresh, gobgptest.V4, gobgptest.V6, gone)
		one.learns(two, gobgptest.V4, gobgptest.V6, gone)
		two.withdraws(gobgptest.V4, gobgptest.V6, gone)
		one.learns(nil, gobgptest.V4, gobgptest.V6, gone)
	}
	two.announces(fabric.Fresh, gobgptest.V4, gobgptest.V6)
	one.learns(two, gobgptest.V4, gobgptest.V6)
	two.announces(fabric.Fresh, mark)
	one.learns(two, mark)
	got := map[netip.Prefix]int{}
	for got[mark] == 0 {
		select {
		case r := <-one.speaker.Competitors():
			got[r.Prefix]++
			assert.Equal(t, two.Source(r.Prefix.Addr()), r.Via)
			assert.Equal(t, "rr1", r.Reflector)
		case <-time.After(gobgptest.Bound):
			require.Fail(t, "not received", "%v", got)
		}
	}
	assert.Equal(t, map[netip.Prefix]int{gobgptest.V4: 1, gobgptest.V6: 1, mark: 1}, got)
}
