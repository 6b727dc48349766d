package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/attack"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestUnderlayStranger has a machine of the private network that is no node, and has no
// secret of the cluster: it connects to whatever listens, says to an agent what nodes have
// said, sends frames and floods, and announces a guest by BGP with another password. The
// guest loses nothing meanwhile, and nodes, reflectors and the registry serve each other.
func TestUnderlayStranger(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "etcd")
	s := start(t, options{nodes: 2, noAgent: true, change: func(c *fabric.Cluster) {
		secured(c)
		c.Guests.Metadata = true
	}})
	registry := s.secureRegistry()
	for _, a := range s.agents {
		a.start()
		a.established()
	}
	a, by := strangerOf(s)
	host := s.lab.Host("stranger")
	before := a.routes()
	var probes []*core.Prober
	for _, f := range attack.Families {
		p, err := a.top.Client.Probe(by.cast.Other.Of(f), 5*time.Millisecond)
		require.NoError(t, err)
		probes = append(probes, p)
	}
	guest := fabric.VM{NICs: []fabric.NIC{nic("203.0.113.20", "2001:db8:100::20")}}
	announcer := s.announcer(host, "wrong", s.cluster.Communities, guest.Prefixes()...)

	a.nothingAnswers(host)
	registry.wantsACertificate(s, host)
	a.linesAreWorthNothing(host, a.recordLines(), host.Addr4(), host.Addr6())
	var all []volley
	for _, f := range attack.Families {
		all = append(all, a.attackBy(by, f, attack.StrangerKinds, attack.StrangerMarks(), func() []string { return a.believed(by.cast) })...)
	}
	wrong := a.judge(all, true)
	assert.Empty(t, wrong, "%s", strings.Join(wrong, "\n"))
	a.strangerFloods(by)
	assert.Equal(t, before, a.routes(), "what the core gateway routes")
	a.idleConnections(host)
	for _, p := range probes {
		r := p.Stop()
		assert.Zero(t, r.Lost, "packets of the guest: %+v", r)
		assert.Positive(t, r.Received)
	}
	s.agents["node1"].healthy()
	s.agents["node2"].healthy()
	a.credulous(by)

	// With the password it would have had a session all the time.
	other := parsed("203.0.113.99/32")
	require.NoError(t, announcer.Configure(soon(t), s.announcement(host, "s3cret", s.cluster.Communities, other...)))
	s.coreHas(host, other...)
}

// TestStrangerTakesAddresses has the stranger say by ARP and neighbor advertisements that a
// reflector's addresses are its own, which nobody on a plain link can refute. It has what is
// sent to the reflector, and no session: the guest loses nothing, by the other reflector.
// Likewise it takes a node's addresses, and is not believed to be the node.
func TestStrangerTakesAddresses(t *testing.T) {
	t.Parallel()
	s := start(t, options{nodes: 2, change: func(c *fabric.Cluster) {
		secured(c)
		c.Timers.Hold = 3 * time.Second
	}})
	a, by := strangerOf(s)
	host, rr, one := s.lab.Host("stranger"), s.top.Reflectors["rr1"], s.agents["node1"]
	lines := a.recordLines()

	s.takes(host, rr)
	var listeners []net.Listener
	for _, at := range []netip.Addr{rr.Addr4(), rr.Addr6()} {
		l, err := host.Listen("tcp", netip.AddrPortFrom(at, 179).String())
		require.NoError(t, err)
		listeners = append(listeners, l)
	}
	results := s.underProbe(fabric.VM{NICs: []fabric.NIC{{Addresses: []netip.Addr{by.cast.Other.V4, by.cast.Other.V6}}}}, probeEvery, func() {
		stop := a.claims(by, rr)
		one.complains("session with rr1 (10.10.0.11) is ")
		s.coreHas(a.node, fabric.HostPrefix(by.cast.Other.V4), fabric.HostPrefix(by.cast.Other.V6))
		stop()
	})
	for _, l := range listeners {
		require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now()))
		_, err := l.Accept()
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "a connection of a node came up")
		require.NoError(t, l.Close())
	}
	for _, r := range results {
		assert.Zero(t, r.Lost, "%+v", r)
	}
	s.leaves(host, rr)
	one.established()
	s.agents["node2"].established()

	two := s.top.Nodes["node2"]
	require.NoError(t, s.lab.Disconnect(two))
	s.takes(host, two)
	stop := a.claims(by, two)
	a.linesAreWorthNothing(host, lines, two.Addr4(), two.Addr6())
	stop()
	s.leaves(host, two)
	require.NoError(t, s.lab.Reconnect(two))
	s.agents["node2"].established()
	a.listsBoth()
}

// takes gives a host the addresses of another.
func (s *system) takes(host, of *core.Host) {
	s.t.Helper()
	require.NoError(s.t, host.AddAddr("eth0", fabric.HostPrefix(of.Addr4()), fabric.HostPrefix(of.Addr6())))
}

// leaves takes them away again, and has all forget where they were.
func (s *system) leaves(host, of *core.Host) {
	s.t.Helper()
	l, err := host.Link("eth0")
	require.NoError(s.t, err)
	for _, a := range []netip.Addr{of.Addr4(), of.Addr6()} {
		require.NoError(s.t, s.delAddress(host, l, a.String()))
	}
	for _, h := range s.top.Nodes {
		_, err := h.Run(soon(s.t), "ip", "neighbour", "flush", "dev", "eth0")
		require.NoError(s.t, err)
	}
}

// claims has the stranger say ten times a second that it has the addresses of a host.
func (a *arena) claims(by *attacker, of *core.Host) (stop func()) {
	a.t.Helper()
	addrs := attack.Pair{V4: of.Addr4(), V6: of.Addr6()}
	ctx, cancel := context.WithCancel(soon(a.t))
	ended := make(chan error, 1)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, f := range attack.Families {
				v := attack.NewVolley(by.cast, f, 0, by.letter, false)
				attack.ClaimOnTheUnderlay(v, addrs)
				for _, frame := range v.Frames {
					if err := by.send(frame); err != nil {
						ended <- err
						return
					}
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				ended <- nil
				return
			}
		}
	}()
	return func() { cancel(); require.NoError(a.t, <-ended) }
}

// strangerOf adds the machine, and an honest guest with its watchers.
func strangerOf(s *system) (*arena, *attacker) {
	s.t.Helper()
	a, cast := newStage(s, func(*arena) {})
	host, err := s.lab.AddReflector("stranger", core.Underlay4(66), core.Underlay6(66))
	require.NoError(s.t, err)
	by := &attacker{vm: fabric.VM{Name: "stranger"}, letter: 'u', cast: cast, send: a.packetSocket(host, "eth0")}
	by.cast.Self = attack.Guest{Pair: attack.Pair{V4: host.Addr4(), V6: host.Addr6()}, MAC: linkMAC(s.t, host, "eth0")}
	by.cast.Gateway.MAC = cast.Node.MAC // its way to guests
	s.reaches(host, a.node.Addr4().String(), a.node.Addr6().String())
	s.reaches(s.top.Client, "203.0.113.20", "2001:db8:100::20")
	return a, by
}

// believed is what the stranger's frames are to leave as it is. Which machine of its own
// link has an address of that link, nobody but the link can say: what the node believes of
// neighbours on the underlay is left out.
func (a *arena) believed(cast attack.Cast) []string {
	a.t.Helper()
	return slices.DeleteFunc(a.kept(cast), func(line string) bool {
		return strings.Contains(line, ": neighbour ") && strings.HasSuffix(line, " on eth0")
	})
}

// credulous: a node that believes routers and redirects, as its kernel can be told to, changes
// its routes by the stranger's frames. So the look at that can fail.
func (a *arena) credulous(by *attacker) {
	a.t.Helper()
	require.NoError(a.t, a.node.SetSysctls(map[string]string{
		"net.ipv6.conf.eth0.accept_ra": "2", "net.ipv4.conf.all.accept_redirects": "1", "net.ipv4.conf.eth0.accept_redirects": "1",
	}))
	for f, name := range map[attack.Family]string{attack.IPv6: "router advertisements", attack.IPv4: "redirects"} {
		i := slices.IndexFunc(attack.StrangerKinds, func(k attack.Kind) bool { return strings.HasPrefix(k.Name, name) })
		all := a.attackBy(by, f, attack.StrangerKinds[i:i+1], nil, func() []string { return a.believed(by.cast) })
		assert.NotEmpty(a.t, all[0].found.Changed, name)
	}
}

// nothingAnswers: the stranger connects to no service of nodes and reflectors but to the
// agents' port, where it must prove that it is a node.
func (a *arena) nothingAnswers(host *core.Host) {
	a.t.Helper()
	for _, p := range []netip.Prefix{fabric.HostPrefix(fabric.Metadata4), fabric.HostPrefix(fabric.Metadata6), fabric.HostPrefix(a.cluster.Gateway.IPv4)} {
		via := a.node.Addr4()
		if p.Addr().Is6() {
			via = a.node.Addr6()
		}
		require.NoError(a.t, host.AddRoute(p, via, "eth0"))
	}
	rr := a.top.Reflectors["rr1"]
	ctx, cancel := context.WithTimeout(soon(a.t), 1500*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(a.node.Addr4(), 179), netip.AddrPortFrom(a.node.Addr6(), 179),
		netip.AddrPortFrom(rr.Addr4(), 179), netip.AddrPortFrom(rr.Addr6(), 179),
		netip.AddrPortFrom(fabric.Metadata4, 80), netip.AddrPortFrom(fabric.Metadata6, 80),
		netip.AddrPortFrom(a.cluster.Gateway.IPv4, 80), netip.AddrPortFrom(a.cluster.Gateway.IPv4, fabric.DefaultAgentPort),
	} {
		all.Go(func() {
			c, err := host.Dial(ctx, "tcp", to.String())
			if !assert.Error(a.t, err, "the stranger is connected to %s", to) {
				c.Close()
			}
		})
	}
	all.Wait()
	a.otherIsServed() // by the metadata service
	a.listsBoth()
}

// listsBoth: the second node's agent has an answer of the first one's.
func (a *arena) listsBoth() {
	a.t.Helper()
	assert.Contains(a.t, a.agents["node2"].does("list", "--cluster"), "good_net0")
}

// callAgent connects from an address of a host to node1's agent, with the hop limit that
// it wants, and reads its first line.
func (a *arena) callAgent(host *core.Host, from, to netip.Addr) (net.Conn, *bufio.Reader, error) {
	a.t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, 255)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255)
		})
	}}
	var c net.Conn
	err := host.Do(func() (err error) {
		c, err = d.DialContext(soon(a.t), "tcp", netip.AddrPortFrom(to, fabric.DefaultAgentPort).String())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	a.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(c)
	_, err = r.ReadString('\n')
	return c, r, err
}

// linesAreWorthNothing: what nodes have said, and what the stranger makes up, changes
// nothing and is answered by an error, from its own addresses and from another node's.
func (a *arena) linesAreWorthNothing(host *core.Host, lines []string, from ...netip.Addr) {
	a.t.Helper()
	lines = append(slices.Clone(lines), a.madeUp()...)
	before := a.agents["node1"].ask(hooks.List, fabric.VM{}).Ports
	for _, addr := range from {
		to := a.node.Addr4()
		if addr.Is6() {
			to = a.node.Addr6()
		}
		for _, line := range lines {
			c, r, err := a.callAgent(host, addr, to)
			require.NoError(a.t, err)
			_, err = io.WriteString(c, line)
			require.NoError(a.t, err)
			answer, err := io.ReadAll(r)
			require.NoError(a.t, err, "the agent does not hang up")
			assert.Contains(a.t, string(answer), "the cluster's keys are not the same on both nodes", line)
			assert.NotContains(a.t, string(answer), `"mac"`, line)
			require.NoError(a.t, c.Close())
		}
	}
	assert.Equal(a.t, before, a.agents["node1"].ask(hooks.List, fabric.VM{}).Ports)
}

// madeUp are lines in the name of node2, without a MAC and with a wrong one.
func (a *arena) madeUp() (lines []string) {
	a.t.Helper()
	good, two := fabric.VM{NICs: []fabric.NIC{nic("203.0.113.20", "2001:db8:100::20")}}, a.top.Nodes["node2"]
	for _, kind := range []fabric.NoticeKind{fabric.Arriving, fabric.Arrived, fabric.Claimed, fabric.Released, fabric.Forgotten, fabric.Listing} {
		for _, mac := range []string{"", `"mac":"` + strings.Repeat("A", 43) + `=",`} {
			notice, err := json.Marshal(fabric.Notice{Kind: kind, VM: "good", Prefixes: good.Prefixes(), Epoch: 1 << 40})
			require.NoError(a.t, err)
			lines = append(lines, fmt.Sprintf(`{%s"body":{"v":1,"to":"node1","nonce":"n","from":{"name":"node2","address":%q,"address6":%q},"notice":%s}}`, mac, two.Addr4(), two.Addr6(), notice)+"\n")
		}
	}
	return lines
}

// recordLines gives what node2's agent says to node1's while somebody asks it for all
// guests.
func (a *arena) recordLines() (lines []string) {
	a.t.Helper()
	sniffer, err := a.node.Sniff("eth0", func(f core.Frame) bool { return !f.Outgoing && len(toAgents(f.Data)) > 0 })
	require.NoError(a.t, err)
	defer sniffer.Close()
	a.listsBoth()
	frames, err := sniffer.Wait(soon(a.t), 1)
	require.NoError(a.t, err)
	for _, f := range frames {
		if line := string(toAgents(f.Data)); strings.HasSuffix(line, "\n") && strings.Contains(line, `"mac"`) {
			lines = append(lines, line)
		}
	}
	require.NotEmpty(a.t, lines, "nothing was recorded of what node2 asks node1")
	return lines
}

// toAgents returns what a TCP segment to the agents' port has.
func toAgents(frame []byte) []byte {
	const ethernet, fixed6 = 14, 40
	if len(frame) < ethernet+fixed6 {
		return nil
	}
	ip := frame[ethernet:]
	head, protocol := int(ip[0]&15)*4, ip[9]
	if ip[0]>>4 == 6 {
		head, protocol = fixed6, ip[6]
	}
	if protocol != unix.IPPROTO_TCP || len(ip) < head+20 || binary.BigEndian.Uint16(ip[head+2:]) != fabric.DefaultAgentPort {
		return nil
	}
	return ip[min(len(ip), head+int(ip[head+12]>>4)*4):]
}

// strangerFloods sends the stranger's floods. What they fill stays within its bounds, the
// guest is served, and agents have answers of each other.
func (a *arena) strangerFloods(by *attacker) {
	a.t.Helper()
	const long = 4 * bursts // more than a queue of half-open connections holds
	trip := a.roundTrips()
	bounds := attack.StrangerBounds(a.queueOfConnections())
	for _, f := range attack.Families {
		honest := a.flood(by, f, bursts, func(v *attack.Volley, n uint32) { attack.HonestFloodTo(v, n, v.Other.Of(f)) }, trip)
		before := a.resources()
		for _, flood := range attack.StrangerFloods {
			times := bursts
			if flood.Fills == attack.Sockets {
				times = long
			}
			took := a.flood(by, f, times, flood.Frame, trip)
			after := a.resources()
			name := fmt.Sprintf("%s, %s", flood.Name, f)
			a.t.Logf("%s: a round trip of the guest takes %v, beside as many honest packets %v; %v", name, took, honest, growth(before, after))
			for r, most := range bounds {
				assert.LessOrEqual(a.t, after[r]-before[r], most, "%s: %s", name, r)
			}
			a.listsBoth()
			before = after
		}
	}
}

// newGuestStarts on node2, whose agent asks node1's before.
func (a *arena) newGuestStarts() {
	a.t.Helper()
	a.agents["node2"].does("attach", "late", "--address", "203.0.113.41,2001:db8:100::41", "--kind", "veth")
	a.coreHas(a.top.Nodes["node2"], parsed("203.0.113.41/32", "2001:db8:100::41/128")...)
}

// queueOfConnections is how many half-open connections the kernel keeps for a listener.
func (a *arena) queueOfConnections() (n int) {
	a.t.Helper()
	text, err := a.node.Sysctl("net.core.somaxconn")
	require.NoError(a.t, err)
	_, err = fmt.Sscan(text, &n)
	require.NoError(a.t, err)
	return n
}

// idleConnections opens many connections to an agent, from many addresses, and says nothing
// on them. A node that comes anew gets in.
func (a *arena) idleConnections(host *core.Host) {
	a.t.Helper()
	const addresses, each, strangers = 40, 5, 64
	before, stayed := a.descriptors(), 0
	for n := range addresses {
		from, to, bits := core.Underlay4(byte(130+n)), a.node.Addr4(), core.UnderlayPrefix4.Bits()
		if n%2 > 0 {
			from, to, bits = core.Underlay6(byte(130+n)), a.node.Addr6(), core.UnderlayPrefix6.Bits()
		}
		require.NoError(a.t, host.AddAddr("eth0", netip.PrefixFrom(from, bits)))
		for range each {
			if _, _, err := a.callAgent(host, from, to); err == nil {
				stayed++
			}
		}
	}
	assert.GreaterOrEqual(a.t, stayed, strangers)
	assert.LessOrEqual(a.t, a.descriptors()-before, strangers+8, "descriptors of the agent, after %d connections that it has greeted", stayed)
	require.NoError(a.t, a.agents["node2"].Kill())
	a.agents["node2"].start()
	a.agents["node2"].established()
	a.listsBoth()
	a.newGuestStarts()
}

// descriptors counts the open ones of node1's agent.
func (a *arena) descriptors() int {
	a.t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.agents["node1"].Pid()))
	require.NoError(a.t, err)
	return len(open)
}

// secureRegistry is an etcd that asks for certificates, on the first reflector.
type secureRegistry struct {
	etcd      *labtest.Etcd
	ca        *labtest.Authority
	cert, key string
}

// secureRegistry starts it, and writes it into the cluster file.
func (s *system) secureRegistry() *secureRegistry {
	s.t.Helper()
	h, r := s.top.Reflectors["rr1"], &secureRegistry{ca: labtest.NewAuthority(s.t)}
	r.cert, r.key = r.ca.Sign("member", time.Now().AddDate(1, 0, 0), h.Addr4())
	r.etcd = labtest.NewEtcd(s.t, labtest.EtcdOptions{Hosts: []*core.Host{h}, CA: r.ca.File, Cert: r.cert, Key: r.key})
	text := string(read(s.t, s.file))
	text += fmt.Sprintf("registry: {etcd: {endpoints: [%q], ca_file: %q, cert_file: %q, key_file: %q}}\n", r.etcd.Endpoints[0], r.ca.File, r.cert, r.key)
	require.NoError(s.t, os.WriteFile(s.file, []byte(text), 0o600))
	return r
}

// wantsACertificate: who has none of the cluster's authority reads nothing of the registry.
func (r *secureRegistry) wantsACertificate(s *system, host *core.Host) {
	s.t.Helper()
	other := labtest.NewAuthority(s.t)
	cert, key := other.Sign("stranger", time.Now().AddDate(1, 0, 0))
	with := func(cert, key string) *tls.Config {
		roots := x509.NewCertPool()
		require.True(s.t, roots.AppendCertsFromPEM(read(s.t, r.ca.File)))
		c := &tls.Config{RootCAs: roots}
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			require.NoError(s.t, err)
			c.Certificates = []tls.Certificate{pair}
		}
		return c
	}
	ask := func(url string, c *tls.Config) error {
		client := http.Client{Transport: &http.Transport{DialContext: host.Dial, TLSClientConfig: c}}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(soon(s.t), http.MethodPost, url+"/v3/kv/range", strings.NewReader(`{"key":"AA==","range_end":"AA=="}`))
		require.NoError(s.t, err)
		answer, err := client.Do(req)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", answer.Status)
		}
		return nil
	}
	at := r.etcd.Endpoints[0]
	assert.Error(s.t, ask(at, with("", "")), "without a certificate")
	assert.Error(s.t, ask(at, with(cert, key)), "with one of another authority")
	assert.Error(s.t, ask(strings.Replace(at, "https", "http", 1), nil), "without TLS")
	assert.NoError(s.t, ask(at, with(r.cert, r.key)), "with the cluster's")
}
