package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// embedded is an embedded reflector that runs on a host of the lab.
type embedded struct {
	*core.Daemon
	s            *system
	name, socket string
	host         *core.Host
}

const metricsPort = "9179"

// embed starts the embedded reflector of that name.
func (s *system) embed(name string) *embedded {
	s.t.Helper()
	h := s.top.Reflectors[name]
	r := &embedded{s: s, name: name, host: h, socket: filepath.Join(h.Dir(), "reflector.sock")}
	r.start()
	return r
}

func (r *embedded) start() {
	r.s.t.Helper()
	var err error
	r.Daemon, err = r.host.StartDaemon("reflector", exec.Command(program, "reflector", "--config", r.s.file, "--name", r.name,
		"--socket", r.socket, "--metrics", "127.0.0.1:"+metricsPort, "--log-level", "debug"))
	require.NoError(r.s.t, err)
	r.s.eventually("reflector "+r.name+" is up", func() error {
		if !r.Running() {
			r.s.t.Fatalf("reflector ended: %s", r.Log())
		}
		_, err := hooks.Client{Socket: r.socket}.Call(soon(r.s.t), hooks.Request{Op: hooks.Status})
		return err
	})
}

func (r *embedded) status() fabric.Status {
	r.s.t.Helper()
	reply, err := hooks.Client{Socket: r.socket}.Call(soon(r.s.t), hooks.Request{Op: hooks.Status})
	require.NoError(r.s.t, err)
	return *reply.Status
}

func (r *embedded) session(peer string) fabric.Session {
	r.s.t.Helper()
	sessions := r.status().Sessions
	i := slices.IndexFunc(sessions, func(s fabric.Session) bool { return s.Peer == peer })
	if i < 0 {
		return fabric.Session{}
	}
	return sessions[i]
}

// established waits until sessions with these peers are up.
func (r *embedded) established(peers ...string) {
	r.s.t.Helper()
	for _, p := range peers {
		r.s.eventually(r.name+" has a session with "+p, func() error {
			if s := r.session(p); s.State != "established" {
				return fmt.Errorf("%s is %q", p, s.State)
			}
			return nil
		})
	}
}

// announcer is a node of the lab that runs BIRD, or something that poses as one.
func (s *system) announcer(h *core.Host, password string, communities []fabric.Community, ps ...netip.Prefix) *routers.Bird {
	s.t.Helper()
	b, err := routers.StartBird(soon(s.t), h, s.announcement(h, password, communities, ps...))
	require.NoError(s.t, err)
	return b
}

// announcement is the configuration of an announcer.
func (s *system) announcement(h *core.Host, password string, communities []fabric.Community, ps ...netip.Prefix) string {
	return s.announcementBy(h, password, routers.Announcer{Communities: communities, Routes: ps})
}

// announcementBy is announcement of one that says other things, too.
func (s *system) announcementBy(h *core.Host, password string, conf routers.Announcer) string {
	conf.BGP, conf.RouterID = routers.BGPOf(s.cluster), h.Addr4()
	conf.Password = password
	for _, rr := range s.cluster.Reflectors {
		conf.Reflectors = append(conf.Reflectors, rr.Address)
	}
	text := conf.Bird()
	if s.cluster.Reflectors[0].GTSM {
		text = strings.Replace(text, "\tdirect;", "\tdirect; ttl security on;", 1)
	}
	return text
}

func parsed(all ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range all {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

// good and bad are what a node may and may not announce in the lab's cluster.
var (
	good = parsed("203.0.113.30/32", "198.51.100.0/29", "2001:db8:100::30/128", "2001:db8:200::/64")
	bad  = parsed("0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25", "192.0.2.77/32", "203.0.113.255/32",
		"::/0", "2001:db8:100::/64", "2001:db8:9::9/128", "2001:db8:100:ffff::1/128")
)

func withRouted(c *fabric.Cluster) {
	c.Routed = parsed("198.51.100.0/24", "2001:db8:200::/48")
	c.Pools[0].Exclude, c.Pools[1].Exclude = parsed("203.0.113.255/32"), parsed("2001:db8:100:ffff::/64")
}

// tellsOfRefusals: status has that node2 announces bad, and list that this is no agent.
func (r *embedded) tellsOfRefusals() {
	r.s.t.Helper()
	out, errs, code := runIn(r.s.t, r.host, program, "status", "--json", "--socket", r.socket)
	st := decode[fabric.Status](r.s.t, out)
	assert.Equal(r.s.t, exitDegraded, code, errs)
	assert.Equal(r.s.t, []string{"lab", "rr1", "reflector"}, []string{st.Cluster, st.Node, st.Role})
	require.Len(r.s.t, st.Problems, 1)
	assert.Contains(r.s.t, st.Problems[0], "node node2 (10.10.0.22) announces 9 prefixes that are refused")
	out, _, _ = runIn(r.s.t, r.host, program, "status", "--socket", r.socket)
	assert.Contains(r.s.t, out, "reflector rr1 of cluster lab is degraded; up ")
	// BFD may have ended the session before, where nobody had a processor.
	assert.Regexp(r.s.t, `(?m)^  core core1 +10\.10\.0\.1 +established .* 7 advertised +0 received +0 accepted($| +last NOTIFICATION)`, out)
	_, errs, code = runIn(r.s.t, r.host, program, "list", "--socket", r.socket)
	assert.Equal(r.s.t, 1, code)
	assert.Contains(r.s.t, errs, "this is reflector rr1, not an agent")
}

// counts: the metrics have the sessions and what goes over them.
func (r *embedded) counts() {
	r.s.t.Helper()
	metrics := r.scrape()
	for _, line := range []string{
		`vmfabric_reflector_session_up{address="10.10.0.1",peer="core1",role="core"} 1`,
		`vmfabric_reflector_session_up{address="10.10.0.23",peer="10.10.0.23",role="node"} 1`,
		`vmfabric_reflector_received_prefixes{address="10.10.0.22",family="ipv4",peer="node2"} 7`,
		`vmfabric_reflector_received_prefixes{address="10.10.0.22",family="ipv6",peer="node2"} 6`,
		`vmfabric_reflector_accepted_prefixes{address="10.10.0.22",family="ipv4",peer="node2"} 2`,
		`vmfabric_reflector_advertised_prefixes{address="10.10.0.1",family="ipv6",peer="core1"} 3`,
		`vmfabric_reflector_advertised_prefixes{address="10.10.0.21",family="ipv4",peer="node1"} 0`,
		`vmfabric_reflector_routes{family="ipv6"} 3`,
	} {
		assert.Contains(r.s.t, metrics, line+"\n")
	}
	assert.Regexp(r.s.t, `(?m)^go_goroutines \d+$`, metrics)
	assert.Regexp(r.s.t, `(?m)^process_resident_memory_bytes `, metrics)
}

// TestEmbeddedReflectors has an agent, a BIRD that the cluster names and one
// that it does not announce through two embedded reflectors to a core gateway.
func TestEmbeddedReflectors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		o    options
	}{
		{"BIRD", options{core: "bird"}},
		{"FRR", options{core: "frr"}},
		{"BIRD with MD5, GTSM, BFD", options{core: "bird", change: func(c *fabric.Cluster) { secured(c); withBFD(c) }}},
		{"FRR with MD5, BFD", options{core: "frr", change: func(c *fabric.Cluster) { withPassword(c); withBFD(c) }}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.o.nodes, tc.o.noRR, tc.o.noAgent = 2, true, true
			more := tc.o.change
			tc.o.change = func(c *fabric.Cluster) {
				withRouted(c)
				if more != nil {
					more(c)
				}
			}
			s := start(t, tc.o)
			rr1, rr2 := s.embed("rr1"), s.embed("rr2")
			s.agents["node1"].start()
			node2 := s.announcer(s.top.Nodes["node2"], s.cluster.Reflectors[0].Password, s.cluster.Communities, append(slices.Clone(good), bad...)...)
			h3, err := s.lab.AddNode("node3", core.Underlay4(23), core.Underlay6(23))
			require.NoError(t, err)
			// Not named: over IPv4 nothing of IPv6 is its own.
			mine := parsed("203.0.113.33/32")
			node3 := s.announcer(h3, s.cluster.Reflectors[0].Password, s.cluster.Communities, mine...)
			for _, r := range []*embedded{rr1, rr2} {
				r.established("core1", "node1", "node2", "10.10.0.23")
			}

			vm := veth("web", "203.0.113.10", "2001:db8:100::10")
			s.run("node1", vm)
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.coreHas(s.top.Nodes["node2"], good...)
			s.coreHas(h3, mine...)
			s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
			s.eventually("rr1 has heard it all", func() error {
				if n := rr1.session("node2"); n.Received != uint64(len(good)+len(bad)) || n.Accepted != uint64(len(good)) {
					return fmt.Errorf("node2: %+v", n)
				}
				return nil
			})
			for _, p := range bad {
				r, there, err := s.top.Core.Route(p)
				require.NoError(t, err)
				assert.False(t, there && r.Type == "unicast", "%s passed: %v", p, r)
			}
			s.checkCommunities(append(vm.Prefixes(), good...))
			if more != nil {
				s.bfdUp(node2, 2)
				s.bfdUp(node3, 0) // by address: no BFD
			}

			rr1.tellsOfRefusals()
			rr1.counts()
			s.agents["node1"].ask(hooks.Remove, vm)
			require.NoError(t, node2.Configure(soon(t), strings.ReplaceAll(string(read(t, node2.ConfPath())), "bgp_large_community.add((64512, 1, 100));", "")))
			s.nobodyHas(append(vm.Prefixes(), good...)...)
			s.coreHas(h3, mine...)
			assert.Equal(t, []string{"203.0.113.33/32"}, nodeRoutes(t, s.top.Core), "nothing else")
		})
	}
}

const exitDegraded = 1

func withBFD(c *fabric.Cluster) {
	for i := range c.Reflectors {
		c.Reflectors[i].BFD = true
	}
	for i := range c.Core {
		c.Core[i].BFD = true
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// nodeRoutes lists the IPv4 prefixes that a core gateway learned.
func nodeRoutes(t *testing.T, gateway *core.Host) []string {
	t.Helper()
	routes, err := gateway.Routes4()
	require.NoError(t, err)
	var ps []string
	for _, r := range routes {
		for _, v := range r.Vias() {
			if core.UnderlayPrefix4.Contains(v) {
				ps = append(ps, r.Prefix.String())
			}
		}
	}
	return ps
}

// checkCommunities looks at what the core gateway's daemon has of each prefix,
// from both reflectors.
func (s *system) checkCommunities(ps []netip.Prefix) {
	s.t.Helper()
	for _, p := range ps {
		s.eventually(p.String()+" comes from both reflectors, with its communities", func() error {
			routes, err := s.core.Routes(soon(s.t))
			if err != nil {
				return err
			}
			routes = slices.DeleteFunc(routes, func(r routers.BGPRoute) bool {
				return r.Prefix != p || !slices.Equal(r.Communities, s.cluster.Communities) || r.LocalPref < 100
			})
			if len(routes) != 2 {
				return fmt.Errorf("%d do: %v", len(routes), routes)
			}
			return nil
		})
	}
}

// bfdUp waits for as many BFD sessions of a BIRD to be up.
func (s *system) bfdUp(b *routers.Bird, want int) {
	s.t.Helper()
	up := regexp.MustCompile(`\bUp\b`)
	s.eventually("BFD", func() error {
		lines, err := b.Query(soon(s.t), "show bfd sessions")
		if n := len(up.FindAllString(strings.Join(lines, "\n"), -1)); err != nil || n != want {
			return fmt.Errorf("%d of %d up: %v %w", n, want, lines, err)
		}
		return nil
	})
}

func (r *embedded) scrape() string {
	r.s.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: r.host.Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://127.0.0.1:" + metricsPort + "/metrics")
	require.NoError(r.s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(r.s.t, err)
	require.Equal(r.s.t, http.StatusOK, resp.StatusCode)
	return string(b)
}

// TestEmbeddedReflectorWantsThePassword: who has another or none has no session,
// whether the cluster names it or not.
func TestEmbeddedReflectorWantsThePassword(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, noRR: true, noAgent: true, change: withPassword})
	rr := s.embed("rr1")
	h3, err := s.lab.AddNode("node3", core.Underlay4(23), core.Underlay6(23))
	require.NoError(t, err)
	h4, err := s.lab.AddNode("node4", core.Underlay4(24), core.Underlay6(24))
	require.NoError(t, err)
	s.announcer(s.top.Nodes["node2"], "wrong", s.cluster.Communities, good[0])
	s.announcer(h3, "wrong", s.cluster.Communities, parsed("203.0.113.33/32")...)
	s.announcer(h4, "", s.cluster.Communities, parsed("203.0.113.34/32")...)
	h5, err := s.lab.AddNode("node5", core.Underlay4(25), core.Underlay6(25))
	require.NoError(t, err)
	s.announcer(h5, "s3cret", s.cluster.Communities, parsed("203.0.113.35/32")...)
	s.agents["node1"].start()
	rr.established("core1", "node1", "10.10.0.25")
	s.coreHas(h5, parsed("203.0.113.35/32")...)
	// Several of their attempts: BIRD tries every second.
	time.Sleep(5 * time.Second)
	assert.NotEqual(t, "established", rr.session("node2").State)
	assert.Empty(t, rr.session("10.10.0.23"))
	assert.Empty(t, rr.session("10.10.0.24"))
	assert.Equal(t, []string{"203.0.113.35/32"}, nodeRoutes(t, s.top.Core))
}

// TestEmbeddedReflectorsRestart ends the reflectors under a probe: first one of
// two, then the only one that is left, which is started again at once.
func TestEmbeddedReflectorsRestart(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, core string
		bfd        bool // between nodes and reflectors
		nodes      int  // one has an agent; the reflector waits for the others, but not for ever
	}{
		{"BIRD", "bird", false, 1},
		{"BIRD, BFD", "bird", true, 1},
		{"FRR", "frr", false, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, options{nodes: tc.nodes, noRR: true, noAgent: true, core: tc.core, change: func(c *fabric.Cluster) {
				for i := range c.Reflectors {
					c.Reflectors[i].BFD = tc.bfd
				}
			}})
			rr1, rr2 := s.embed("rr1"), s.embed("rr2")
			s.agents["node1"].start()
			for _, r := range []*embedded{rr1, rr2} {
				r.established("core1", "node1")
			}
			vm := veth("web", "203.0.113.10", "2001:db8:100::10")
			s.run("node1", vm)
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.eventually("the core gateway has both paths", func() error {
				routes, err := s.core.Routes(soon(t))
				if len(routes) != 4 {
					return fmt.Errorf("it has %v %w", routes, err)
				}
				return nil
			})
			s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
			withdrawn := s.watchWithdrawals()
			var probes []*core.Prober
			for _, a := range vm.NICs[0].Addresses {
				p, err := s.top.Client.Probe(a, time.Millisecond)
				require.NoError(t, err)
				probes = append(probes, p)
			}
			require.NoError(t, rr1.Kill())
			time.Sleep(time.Second)
			for n, stop := range []func(*core.Daemon) error{(*core.Daemon).Kill, (*core.Daemon).Stop} {
				require.NoError(t, stop(rr2.Daemon))
				time.Sleep(time.Second)
				began := time.Now()
				rr2.start()
				rr2.established("core1", "node1")
				t.Logf("sessions with the core gateway and the node are back after %v", time.Since(began).Round(100*time.Millisecond))
				// A new guest passes only after End-of-RIB.
				late := veth(fmt.Sprintf("late%d", n), fmt.Sprintf("203.0.113.1%d", n+1), fmt.Sprintf("2001:db8:100::1%d", n+1))
				s.run("node1", late)
				s.coreHas(s.top.Nodes["node1"], late.Prefixes()...)
				t.Logf("a new guest passes after %v", time.Since(began).Round(100*time.Millisecond))
			}
			time.Sleep(time.Second) // for what comes late
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			for _, p := range probes {
				r := p.Stop()
				most := 0
				if tc.core == "frr" {
					// FRR replaces an IPv6 route by removing it first; an outage would
					// be thousands.
					most = 500
				}
				assert.LessOrEqual(t, r.Lost, most, "%d sent, longest gap %v", r.Sent, r.LongestGap)
			}
			if tc.core == "bird" {
				for _, p := range vm.Prefixes() {
					assert.NotContains(t, withdrawn(), p.String())
				}
			}
		})
	}
}

// TestEmbeddedReflectorsNoticeDeadNodes cuts nodes off, with and without BFD,
// and has an agent restart under BFD, which is no reason to drop its routes.
func TestEmbeddedReflectorsNoticeDeadNodes(t *testing.T) {
	t.Parallel()
	for _, bfd := range []bool{true, false} {
		t.Run(fmt.Sprintf("BFD %v", bfd), func(t *testing.T) {
			t.Parallel()
			s := start(t, options{nodes: 2, noRR: true, noAgent: true, change: func(c *fabric.Cluster) {
				c.Timers.Hold = 6 * time.Second
				if bfd {
					withBFD(c)
					c.Timers.Hold = 60 * time.Second
				}
			}})
			reflectors := []*embedded{s.embed("rr1"), s.embed("rr2")}
			s.agents["node1"].start()
			vm := veth("web", "203.0.113.10", "2001:db8:100::10")
			s.run("node1", vm)
			theirs := parsed("203.0.113.30/32", "2001:db8:100::30/128")
			node2 := s.announcer(s.top.Nodes["node2"], "", s.cluster.Communities, theirs...)
			for _, r := range reflectors {
				r.established("core1", "node1", "node2")
			}
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.coreHas(s.top.Nodes["node2"], theirs...)
			if bfd {
				s.bfdUp(node2, 2)
				time.Sleep(3 * time.Second) // GoBGP's take up to 2 s to begin
			}

			withdrawn := s.watchWithdrawals()
			require.NoError(t, s.agents["node1"].Kill())
			for _, r := range reflectors {
				s.eventually("the session is down", func() error {
					if r.session("node1").State == "established" {
						return fmt.Errorf("it is up")
					}
					return nil
				})
			}
			time.Sleep(time.Second) // longer than BFD waits
			s.agents["node1"].start()
			for _, r := range reflectors {
				r.established("node1")
			}
			time.Sleep(3 * time.Second) // for what may end the new session
			for _, r := range reflectors {
				r.established("node1")
			}
			assert.Empty(t, withdrawn())

			for _, node := range []string{"node1", "node2"} {
				began := time.Now()
				require.NoError(t, s.lab.Disconnect(s.top.Nodes[node]))
				gone := vm.Prefixes()
				if node == "node2" {
					gone = theirs
				}
				s.eventually("its routes leave", func() error {
					for _, p := range gone {
						if r, there, err := s.top.Core.Route(p); err != nil || there {
							return fmt.Errorf("core has %v %w", r, err)
						}
					}
					return nil
				})
				took := time.Since(began)
				t.Logf("%s: noticed after %v", node, took.Round(10*time.Millisecond))
				// Neither the hold time of 60 s with BFD nor the restart time of 120 s.
				assert.Less(t, took, 45*time.Second)
			}
		})
	}
}

// TestEmbeddedReflectorsGoneForLong: with long-lived graceful restart a core
// gateway keeps the routes when both reflectors are gone, past the restart time.
func TestEmbeddedReflectorsGoneForLong(t *testing.T) {
	t.Parallel()
	for _, longLived := range []time.Duration{0, 10 * time.Minute} {
		t.Run(longLived.String(), func(t *testing.T) {
			t.Parallel()
			s := start(t, options{noRR: true, noAgent: true, change: func(c *fabric.Cluster) {
				c.Timers.Restart, c.Timers.LongLived = 10*time.Second, longLived
			}})
			reflectors := []*embedded{s.embed("rr1"), s.embed("rr2")}
			s.agents["node1"].start()
			for _, r := range reflectors {
				r.established("core1", "node1")
			}
			vm := veth("web", "203.0.113.10", "2001:db8:100::10")
			s.run("node1", vm)
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.eventually("from both", func() error {
				routes, err := s.core.Routes(soon(t))
				if len(routes) != 4 {
					return fmt.Errorf("%v %w", routes, err)
				}
				return nil
			})
			for _, r := range reflectors {
				require.NoError(t, r.Kill())
			}
			if longLived == 0 {
				s.nobodyHas(vm.Prefixes()...)
				return
			}
			time.Sleep(15 * time.Second)
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			// The routes of one that stays away would stay as well.
			for _, r := range reflectors {
				r.start()
				r.established("core1", "node1")
			}
			s.coreHas(s.top.Nodes["node1"], vm.Prefixes()...)
			s.agents["node1"].ask(hooks.Remove, vm)
			s.nobodyHas(vm.Prefixes()...)
		})
	}
}
