package agent_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// asked is a dataplane whose guests ask for their configuration: see [node.asks].
type asked struct {
	*fake.Dataplane
	node *node
}

func (d asked) Actual(ctx context.Context) ([]fabric.PortState, error) {
	ports, err := d.Dataplane.Actual(ctx)
	for i := range ports {
		if cs, some := d.node.asked.Load(ports[i].Name); some {
			ports[i].Contacts = cs.([]fabric.Contact)
		}
	}
	return ports, err
}

// asks sets the last requests of a port's guest.
func (n *node) asks(port string, cs ...fabric.Contact) { n.asked.Store(port, cs) }

func request(p fabric.ContactProtocol, message string) fabric.Contact {
	return fabric.Contact{Protocol: p, At: time.Now(), Message: message, Hostname: "web", Client: "systemd-networkd"}
}

// configuration gives what why says of an address's configuration.
func configuration(t *testing.T, n *node, address string) string {
	t.Helper()
	lines, err := n.Explain(t.Context(), netip.MustParseAddr(address))
	require.NoError(t, err)
	var texts []string
	for _, l := range lines {
		if l.Step == "configuration" {
			assert.True(t, l.Good)
			texts = append(texts, l.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// TestDropsAreShown in the list of the port's own node, and by why on every node.
func TestDropsAreShown(t *testing.T) {
	pairsOf(t, fake.NewSource, known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11"), func(t *testing.T, p *pair) {
		p.runs(p.two, p.vm)
		time.Sleep(time.Minute)
		p.two.dataplane.SetDrops("web_net0", fabric.Drops{Reason: fabric.DropSource, Packets: 3, Bytes: 180})
		own, err := p.two.List(t.Context())
		require.NoError(t, err)
		require.Len(t, own, 2)
		require.Len(t, own[0].Drops, 1)
		assert.Equal(t, uint64(180), own[0].Drops[0].Bytes)
		assert.Empty(t, own[1].Drops, "the other NIC lost nothing")
		for _, n := range []*node{p.one, p.two} {
			steps, err := n.Explain(t.Context(), netip.MustParseAddr("2001:db8:100:1::10"))
			require.NoError(t, err)
			assert.True(t, slices.ContainsFunc(steps, func(s fabric.Step) bool {
				return s.Step == "drops" && s.Text == "packets of web_net0 that the node dropped: 3 by source"
			}), steps)
		}
		p.two.dataplane.Fail("read drops", errors.New("no nf_tables"))
		own, err = p.two.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, own, 2, "the list has the rest")
	})
}

// TestRequestsAreShown on every node, each with its port.
func TestRequestsAreShown(t *testing.T) {
	pairsOf(t, fake.NewSource, known("web", "uuid-of-web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11"), func(t *testing.T, p *pair) {
		p.runs(p.two, p.vm)
		time.Sleep(time.Minute)
		assert.Contains(t, configuration(t, p.one, "203.0.113.10"), "the guest never asked by DHCPv4")
		assert.Contains(t, configuration(t, p.two, "2001:db8:100:1::10"), "the guest never asked by DHCPv6 or router solicitation")

		four, ra := request(fabric.DHCPv4, "REQUEST"), request(fabric.RouterSolicitation, "SOLICITATION")
		p.two.asks("web_net0", four, ra)
		time.Sleep(3 * time.Second)
		own, err := p.two.List(t.Context())
		require.NoError(t, err)
		there, err := p.one.ListNode(t.Context(), "node2", "")
		require.NoError(t, err)
		for _, ports := range [][]fabric.PortEntry{own, there.Ports} {
			require.Len(t, ports, 2)
			require.Len(t, ports[0].Contacts, 2)
			assert.Equal(t, four.Client, ports[0].Contacts[0].Client)
			assert.True(t, four.At.Equal(ports[0].Contacts[0].At))
			assert.Empty(t, ports[1].Contacts, "the other NIC never asked")
		}
		for _, n := range []*node{p.one, p.two} {
			assert.Equal(t, "the guest asked by DHCPv4 3s ago (REQUEST, web, systemd-networkd)", configuration(t, n, "203.0.113.10"))
			assert.Equal(t, "the guest asked by router solicitation 3s ago (SOLICITATION, web, systemd-networkd)", configuration(t, n, "2001:db8:100:1::10"))
			assert.Contains(t, configuration(t, n, "203.0.113.11"), "the guest never asked by DHCPv4")
		}
		assert.Empty(t, p.two.problems(), "who never asked is no problem")
	})
}

// TestRequestsOfASilentKernel: lists have the rest.
func TestRequestsOfASilentKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		n.asks("web_net0", request(fabric.DHCPv4, "REQUEST"))
		hang := n.dataplane.Hang("list ports")
		began := time.Now()
		ports, err := n.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, ports, 2)
		assert.Empty(t, ports[0].Contacts)
		assert.LessOrEqual(t, time.Since(began), time.Second)
		hang()
		n.dataplane.Fail("list ports", errors.New("boom"))
		assert.Empty(t, configuration(t, n, "203.0.113.10"), "not known is not never")
		n.dataplane.Fail("list ports", nil)
		assert.NotEmpty(t, configuration(t, n, "203.0.113.10"))
	})
}

// TestADeclinedAddress is a problem until the guest gets it.
func TestADeclinedAddress(t *testing.T) {
	for _, tc := range []struct {
		protocol fabric.ContactProtocol
		address  string
		name     string
	}{{fabric.DHCPv4, "203.0.113.10", "DHCPv4"}, {fabric.DHCPv6, "2001:db8:100:1::10", "DHCPv6"}} {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		c := request(tc.protocol, "DECLINE")
		c.Declined = netip.MustParseAddr(tc.address)
		n.asks("web_net0", c)
		problems := n.problems()
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0], "guest web: it declined "+tc.address+" by "+tc.name+" (last asked at ")
		assert.Contains(t, problems[0], "let the guest ask again: this ends a minute after it took the address, or at "+c.At.Add(time.Hour).Format(time.DateTime)+" if it asks no more")
		assert.Contains(t, configuration(t, n, tc.address), ", declined "+tc.address)
		n.asks("web_net0", request(tc.protocol, "REQUEST"))
		assert.Empty(t, n.problems())
	}
}

// TestADeclinedAddressThatTheGuestTakes, or that it has no more, is no problem.
func TestADeclinedAddressThatTheGuestTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		for message, ends := range map[string]bool{"DISCOVER": false, "REQUEST": true, "DECLINE": false} {
			c := request(fabric.DHCPv4, message)
			c.Declined = netip.MustParseAddr("203.0.113.10")
			n.asks("web_net0", c)
			time.Sleep(30 * time.Second)
			assert.Len(t, n.problems(), 1, message)
			time.Sleep(40 * time.Second)
			assert.Equal(t, ends, len(n.problems()) == 0, message)
		}
		c := request(fabric.DHCPv4, "DECLINE")
		c.Declined = netip.MustParseAddr("203.0.113.99")
		n.asks("web_net0", c)
		assert.Empty(t, n.problems(), "another address was given to the guest")
	})
}

// TestADeclinedAddressOfASilentGuest is no problem an hour after it last asked. A guest
// that declines again and again is one for as long as it does.
func TestADeclinedAddressOfASilentGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := fresh(t)
		n.apply(web(), fabric.Live)
		for range 10 {
			c := request(fabric.DHCPv6, "DECLINE")
			c.Declined = netip.MustParseAddr("2001:db8:100:1::10")
			n.asks("web_net0", c)
			time.Sleep(50 * time.Minute)
			assert.Len(t, n.problems(), 1)
		}
		time.Sleep(11 * time.Minute)
		assert.Empty(t, n.problems())
		assert.Contains(t, configuration(t, n, "2001:db8:100:1::10"), ", declined 2001:db8:100:1::10", "why still says so")
	})
}

// TestWhatGuestsWrite cannot garble a line, on this node or from another.
func TestWhatGuestsWrite(t *testing.T) {
	bad := request(fabric.DHCPv4, "REQUEST")
	bad.Hostname, bad.Client = "\x1b[2J\nweb\u202eb\xff", strings.Repeat("ж", 300)
	clean := func(ports []fabric.PortEntry) {
		require.NotEmpty(t, ports)
		c := ports[0].Contacts[0]
		assert.Equal(t, "?[2J?web?b?", c.Hostname)
		assert.Equal(t, strings.Repeat("ж", 64)+"...", c.Client)
	}
	n := fresh(t)
	n.apply(web(), fabric.Live)
	n.asks("web_net0", bad)
	own, err := n.List(t.Context())
	require.NoError(t, err)
	clean(own)
	assert.Contains(t, configuration(t, n, "203.0.113.10"), "(REQUEST, ?[2J?web?b?, ")

	entry := fabric.GuestEntry{VM: guest("a", "203.0.113.10"), States: []fabric.State{fabric.Live}, Contacts: [][]fabric.Contact{{bad}}}
	answers(t, fabric.Answer{Guests: []fabric.GuestEntry{entry}}, func(t *testing.T, n *node) {
		part, err := n.ListNode(t.Context(), "node2", "")
		require.NoError(t, err)
		clean(part.Ports)
	})
	for says, change := range map[string][][]fabric.Contact{
		"has 1 NICs and the requests of 2":            {{bad}, {bad}},
		"with more requests than there are protocols": {make([]fabric.Contact, 9)},
	} {
		entry.Contacts = change
		answers(t, fabric.Answer{Guests: []fabric.GuestEntry{entry}}, func(t *testing.T, n *node) {
			_, err := n.ListNode(t.Context(), "node2", "")
			require.ErrorContains(t, err, says)
		})
	}
}

// TestWhyWithoutAnswers says what is off, for the guest and for all.
func TestWhyWithoutAnswers(t *testing.T) {
	n := fresh(t)
	n.apply(quiet(web(), true, false), fabric.Live)
	assert.Equal(t, "the guest is configured by hand; DHCP is off", configuration(t, n, "203.0.113.10"))
	n.asks("web_net0", request(fabric.RouterSolicitation, "SOLICITATION"))
	assert.Equal(t, "the guest asked by router solicitation 0s ago (SOLICITATION, web, systemd-networkd); DHCP is off", configuration(t, n, "2001:db8:100:1::10"))
}

// solicitation gives the frame by which a guest looks for routers.
func solicitation(t *testing.T) []byte {
	t.Helper()
	from, to := netip.MustParseAddr("fe80::10"), netip.MustParseAddr("ff02::2")
	body, err := ndp.MarshalMessageChecksum(&ndp.RouterSolicitation{}, from, to)
	require.NoError(t, err)
	const icmp, hops = 58, 255
	header := slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0x10, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), icmp, hops}, from.AsSlice(), to.AsSlice())
	return append(header, body...)
}

// TestAnswersFollowTheDescription: what a guest turns off reaches its port, and so does a
// change of it.
func TestAnswersFollowTheDescription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("lxd")
		n := fresh(t, agent.WithSources(src))
		ask := func() [][]byte {
			answers, _ := n.dataplane.Ask("web_net0", solicitation(t))
			return answers
		}
		n.run(func() {
			vm := guest("web", "203.0.113.10 2001:db8:100:1::10 adopt")
			n.dataplane.AddLink("web_net0")
			src.Say(fabric.Desired{VM: vm, State: fabric.Live})
			settle()
			assert.Len(t, ask(), 1)
			ports, err := n.List(t.Context())
			require.NoError(t, err)
			require.Len(t, ports[0].Contacts, 1)
			assert.Equal(t, fabric.RouterSolicitation, ports[0].Contacts[0].Protocol)

			src.Say(fabric.Desired{VM: quiet(vm, false, true), State: fabric.Live})
			settle()
			assert.Empty(t, ask(), "LXD's keys count at once")
			src.Say(fabric.Desired{VM: quiet(vm, true, false), State: fabric.Live})
			settle()
			assert.Len(t, ask(), 1)
			kept, err := n.store.All(t.Context())
			require.NoError(t, err)
			assert.True(t, kept[0].VM.NoDHCP)
			assert.False(t, kept[0].VM.NoRA)
		})
		n = n.again(agent.WithSources(fake.NewSource("lxd")))
		answers, _ := n.dataplane.Ask("web_net0", solicitation(t))
		assert.Len(t, answers, 1)
		assert.Contains(t, configuration(t, n, "203.0.113.10"), "DHCP is off")
	})
}
