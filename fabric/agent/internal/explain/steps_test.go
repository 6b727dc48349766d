package explain

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

var (
	noon   = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	four   = netip.MustParseAddr("203.0.113.10")
	six    = netip.MustParseAddr("2001:db8:100::10")
	routed = netip.MustParsePrefix("198.51.100.0/29")
)

// web is a port that is announced.
func web() fabric.PortEntry {
	return fabric.PortEntry{
		VM: "web", Port: "web_net0", Kind: fabric.Tap, State: fabric.Live,
		Addresses: []netip.Addr{four, six}, Routes: []netip.Prefix{routed}, Since: noon,
	}
}

func TestTheFirstThatIsMissing(t *testing.T) {
	wired, broken := web(), web()
	wired.State = fabric.Wired
	broken.Trouble = "port web_net0: no such device"
	up := []fabric.Session{{Peer: "rr1", State: "established"}, {Peer: "rr2", State: "active"}}
	for _, tc := range []struct {
		name    string
		ask     netip.Addr
		port    fabric.PortEntry
		missing string
		text    string
	}{
		{"trouble", four, broken, "port", "no such device"},
		{"not announced", four, wired, "announcement", "does not run yet"},
		{"session down", four, web(), "reflector rr2", "active"},
		{"session down, IPv6", six, web(), "reflector rr2", "active"},
		{"routed prefix", routed.Addr().Next(), web(), "reflector rr2", "active"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steps := Steps(tc.ask, Local{Node: "node1", Ports: []fabric.PortEntry{tc.port}, Sessions: up})
			last := steps[len(steps)-2]
			assert.False(t, last.Good)
			assert.Equal(t, tc.missing, last.Step)
			assert.Contains(t, last.Text, tc.text)
			for _, s := range append(steps[:len(steps)-2:len(steps)-2], steps[len(steps)-1]) {
				assert.True(t, s.Good, s)
				assert.Equal(t, "node1", s.Node)
			}
		})
	}
	assert.Empty(t, Steps(netip.MustParseAddr("203.0.113.11"), Local{Ports: []fabric.PortEntry{web()}}))
	steps := Steps(four, Local{Node: "node1", Ports: []fabric.PortEntry{web()}, DrainingSince: noon, SentError: errors.New("speaker: away")})
	assert.Contains(t, steps[2].Text, "this node is draining since 2026-11-30 12:00:00")
	assert.Equal(t, fabric.Step{Step: "reflectors", Text: "speaker: away", Node: "node1"}, steps[3])
}

// TestWhatWasSent: sessions that are up say nothing of a prefix.
func TestWhatWasSent(t *testing.T) {
	p := fabric.HostPrefix(six)
	up := fabric.Session{Peer: "rr1", Address: "10.10.0.11", State: "established", Advertised: 2}
	deaf := fabric.Session{Peer: "rr2", Address: "10.10.0.12", State: "established", Families: []fabric.Family{fabric.IPv4}}
	shut := fabric.Session{Peer: "rr3", State: "active", Notification: fabric.NewNotification(false, 6, 2, "planned work", time.Time{})}
	sessions := []fabric.Session{up, deaf, shut}
	good := func(steps []fabric.Step) (all []bool) {
		for _, s := range steps {
			all = append(all, s.Good)
		}
		return all
	}
	guessed := announcedTo(p, sessions, nil)
	assert.Equal(t, []bool{true, false, false}, good(guessed))
	assert.Contains(t, guessed[1].Text, "it takes no IPv6")
	assert.Contains(t, guessed[2].Text, `Cease, Administrative Shutdown (6/2), "planned work"`)
	told := announcedTo(p, sessions, []fabric.Advertisement{
		{Peer: "rr1", Address: "10.10.0.11"}, {Peer: "rr2", Address: "10.10.0.12", Reason: "it takes no IPv6"}, {Peer: "rr3", Sent: true},
	})
	assert.Equal(t, []bool{false, false, true}, good(told), "what the speaker says counts")
	assert.Equal(t, "10.10.0.11, 2001:db8:100::10/128 was not sent: the speaker does not say why", told[0].Text)
	assert.Equal(t, fabric.Step{Step: "reflector rr2", Text: "10.10.0.12, 2001:db8:100::10/128 was not sent: it takes no IPv6"}, told[1])
	assert.Empty(t, announcedTo(p, sessions, []fabric.Advertisement{}))
}

// TestWithdrawnFamily: what the node withdrew on purpose has that reason, once, and
// nobody is said not to say why.
func TestWithdrawnFamily(t *testing.T) {
	for _, a := range []netip.Addr{four, six} {
		gone := fabric.ForwardingFault{Family: familyOf(a), Text: "announced for no guest: next hop is gone; give it back", Withdrawn: true}
		blocked := fabric.ForwardingFault{Family: familyOf(a), Text: "packets are dropped by a chain"}
		l := Local{Node: "node1", Ports: []fabric.PortEntry{web()}, Sent: []fabric.Advertisement{{Peer: "rr1"}}, Faults: []fabric.ForwardingFault{gone, blocked}}
		steps := Steps(a, l)
		assert.Len(t, steps, 4)
		assert.Equal(t, fabric.Step{Step: "announcement", Text: gone.Text, Node: "node1"}, steps[2])
		assert.Equal(t, fabric.Step{Step: "forwarding", Text: blocked.Text, Node: "node1"}, steps[3])
		l.Sent[0].Sent = true
		other := map[netip.Addr]netip.Addr{four: six, six: four}[a]
		for _, s := range Steps(other, l) {
			assert.True(t, s.Good, s)
		}
	}
}

func TestForwardingStep(t *testing.T) {
	faults := []fabric.ForwardingFault{{Family: "IPv4", Text: "a"}, {Family: "IPv6", Text: "b"}, {Text: "c"}}
	assert.Equal(t, fabric.Step{Step: "forwarding", Text: "a; c"}, forwardingStep(four, faults, nil))
	assert.Equal(t, fabric.Step{Step: "forwarding", Text: "b; c"}, forwardingStep(six, faults, nil))
	assert.True(t, forwardingStep(six, faults[:1], nil).Good)
	assert.Equal(t, fabric.Step{Step: "forwarding", Text: "no tc"}, forwardingStep(six, nil, errors.New("no tc")))
}

func TestPrefixOf(t *testing.T) {
	ports := []fabric.PortEntry{web()}
	ports[0].Routes = append(ports[0].Routes, netip.MustParsePrefix("198.51.100.0/24"))
	for ask, want := range map[string]string{
		"203.0.113.10": "203.0.113.10/32", "2001:db8:100::10": "2001:db8:100::10/128", "198.51.100.3": "198.51.100.0/29", "198.51.100.9": "198.51.100.0/24",
	} {
		p, ok := PrefixOf(netip.MustParseAddr(ask), ports)
		assert.True(t, ok)
		assert.Equal(t, want, p.String())
	}
	_, ok := PrefixOf(netip.MustParseAddr("203.0.113.11"), ports)
	assert.False(t, ok)
}

// TestDropStep names what was dropped last first, and is no fault.
func TestBlackholeStep(t *testing.T) {
	for _, a := range []netip.Addr{four, six} {
		hole := fabric.Blackhole{Prefix: fabric.HostPrefix(a), Since: noon, Until: noon.Add(time.Hour)}
		steps := Steps(a, Local{Node: "node1", Ports: []fabric.PortEntry{web()}, Blackhole: hole})
		want := fabric.Step{Step: "delivery", Node: "node1", Text: "packets to " + a.String() +
			" are discarded since 2026-11-30 12:00:00, until 2026-11-30 13:00:00; lift its blackhole to have them sooner"}
		assert.Contains(t, steps, want)
	}
}

func TestDropStep(t *testing.T) {
	port := web()
	port.Drops = []fabric.Drops{
		{Reason: fabric.DropSource, Packets: 3, Last: noon}, {Reason: fabric.DropNodePort, Packets: 7}, {Reason: fabric.DropEgress, Packets: 1, Last: noon.Add(time.Minute)},
	}
	steps := Steps(four, Local{Node: "node1", Ports: []fabric.PortEntry{port}})
	assert.Equal(t, fabric.Step{
		Step: "drops", Good: true, Node: "node1",
		Text: "packets of web_net0 that the node dropped: 1 by firewall_egress, the last at 2026-11-30 12:01:00; 3 by source, the last at 2026-11-30 12:00:00; 7 by node_port",
	}, steps[len(steps)-1])
	port.Drops = nil
	for _, s := range Steps(four, Local{Ports: []fabric.PortEntry{port}}) {
		assert.NotEqual(t, "drops", s.Step)
	}
}

// TestConfiguration is always good, and says what the node knows of its guest's requests.
func TestConfiguration(t *testing.T) {
	at := func(p fabric.ContactProtocol, age time.Duration, message string) fabric.Contact {
		return fabric.Contact{Protocol: p, At: noon.Add(-age), Message: message}
	}
	refused, declined := at(fabric.DHCPv4, time.Hour, "REQUEST"), at(fabric.DHCPv6, time.Second, "DECLINE")
	refused.Refused, declined.Declined = "203.0.113.11 is not its address", six
	for _, tc := range []struct {
		ask      netip.Addr
		answers  Answers
		contacts []fabric.Contact
		want     string
	}{
		{four, Answers{}, nil, "the guest never asked by DHCPv4, as far as the agent knows, which listens since 2026-11-30 11:00:00; a guest configured by hand does not"},
		{six, Answers{}, []fabric.Contact{refused}, "the guest never asked by DHCPv6 or router solicitation, as far as the agent knows, which listens since 2026-11-30 11:00:00; a guest configured by hand does not"},
		{four, Answers{}, []fabric.Contact{declined, refused}, "the guest asked by DHCPv4 1h0m0s ago (REQUEST), refused: 203.0.113.11 is not its address"},
		{six, Answers{}, []fabric.Contact{at(fabric.RouterSolicitation, -time.Minute, "SOLICITATION"), declined}, "the guest asked by DHCPv6 1s ago (DECLINE), declined 2001:db8:100::10 and by router solicitation 0s ago (SOLICITATION)"},
		{four, Answers{NoDHCP: true}, []fabric.Contact{refused}, "the guest is configured by hand; DHCP is off"},
		{six, Answers{NoRA: true}, nil, "the guest never asked by DHCPv6, as far as the agent knows, which listens since 2026-11-30 11:00:00; a guest configured by hand does not; router advertisement is off"},
		{six, Answers{NoDHCP: true, NoRA: true}, nil, "the guest is configured by hand; DHCP and router advertisement are off"},
	} {
		port := web()
		port.Contacts = tc.contacts
		tc.answers.Now, tc.answers.Since = noon, noon.Add(-time.Hour)
		steps := Steps(tc.ask, Local{Node: "node1", Ports: []fabric.PortEntry{port}, Answers: &tc.answers})
		assert.Equal(t, fabric.Step{Step: "configuration", Good: true, Node: "node1", Text: tc.want}, steps[len(steps)-1])
	}
}
