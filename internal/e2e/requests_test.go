package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/internal/requests"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// askingClients is a line of shell for a guest: from then on DHCP clients ask for its address, one
// after the other. Each asks once, takes what it is offered, and asks again after a second
// without an answer. They ask fewer times a second than requests are limited to.
const askingClients = `link=$(ip route show default | sed 's/.* dev //;s/ .*//;q'); ` +
	`(while :; do udhcpc -i $link -f -q -n -t 5 -T 1 -s /bin/true; usleep 150000; done) </dev/null >/dev/null 2>&1 & echo $! >/run/clients`

// orders has a lab guest carry out a line of shell.
func (s *system) orders(guest netip.Addr, line string) {
	s.t.Helper()
	c, err := s.top.Client.Dial(soon(s.t), "tcp", netip.AddrPortFrom(guest, 8).String())
	require.NoError(s.t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, line)
	require.NoError(s.t, err)
	said, err := io.ReadAll(bufio.NewReader(c))
	require.NoError(s.t, err)
	require.True(s.t, strings.HasSuffix(string(said), "exit 0\n"), "%s", said)
}

// dhcpWatch records the DHCPv4 messages on all links of the nodes.
type dhcpWatch struct {
	t        testing.TB
	sniffers map[string]*core.Sniffer
}

func (s *system) watchDHCP() *dhcpWatch {
	s.t.Helper()
	w := &dhcpWatch{s.t, map[string]*core.Sniffer{}}
	for name, node := range s.top.Nodes {
		sniffer, err := node.SniffUDP("", 67, 68)
		require.NoError(s.t, err)
		w.sniffers[name] = sniffer
	}
	return w
}

// exchange is what a client asked, and the node that heard it.
type exchange struct {
	node   string
	number dhcpv4.TransactionID
	what   dhcpv4.MessageType
}

// answeredOnce checks that every request had one answer, from the node that heard it, and
// what [dhcpWatch.alike] checks. It returns how many requests each node has heard.
func (w *dhcpWatch) answeredOnce() (heard map[string]int) {
	w.t.Helper()
	heard = map[string]int{}
	asked, answered := w.alike()
	assert.Equal(w.t, asked, answered)
	for x, n := range asked {
		heard[x.node] += n
	}
	return heard
}

// alike checks that all answers of a type are alike, but for what they answer, and that
// none refuses. It returns how often was asked, and answered.
func (w *dhcpWatch) alike() (asked, answered map[exchange]int) {
	w.t.Helper()
	asked, answered = map[exchange]int{}, map[exchange]int{}
	alike := map[dhcpv4.MessageType][]byte{}
	answerTo := map[dhcpv4.MessageType]dhcpv4.MessageType{dhcpv4.MessageTypeOffer: dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeAck: dhcpv4.MessageTypeRequest}
	for node, s := range w.sniffers {
		require.NoError(w.t, s.Close())
		for _, f := range s.Frames() {
			m, err := dhcpv4.FromBytes(f.Data[requests.Payload4:])
			require.NoError(w.t, err)
			if m.OpCode == dhcpv4.OpcodeBootRequest {
				asked[exchange{node, m.TransactionID, m.MessageType()}]++
				continue
			}
			assert.True(w.t, f.Outgoing, "a node was sent %s", m.Summary())
			what, right := answerTo[m.MessageType()]
			require.True(w.t, right, "%s: %s", node, m.Summary())
			answered[exchange{node, m.TransactionID, what}]++
			m.TransactionID = dhcpv4.TransactionID{}
			if alike[what] == nil {
				alike[what] = m.ToBytes()
			}
			assert.Equal(w.t, alike[what], m.ToBytes(), "%s", node)
		}
	}
	return asked, answered
}

// asker has a guest ask for its addresses in every way, one after the other, fewer times a
// second than requests are limited to.
type asker struct {
	s       *system
	guest   requests.Guest
	vm      fabric.VM
	sniffer *core.Sniffer
	sent    []time.Time // by the number of the request less one
	stop    chan struct{}
	ended   chan error
}

const askEvery = 60 * time.Millisecond

func (s *system) asks(g *core.Guest, vm fabric.VM) *asker {
	s.t.Helper()
	a := &asker{s: s, vm: vm, stop: make(chan struct{}), ended: make(chan error, 1)}
	a.guest = requests.Guest{MAC: fabric.MAC(g.MAC(0)), Addresses: vm.NICs[0].Addresses, Gateway: s.cluster.Gateway}
	var err error
	a.sniffer, err = g.Sniff("eth0", func(f core.Frame) bool {
		protocol, _ := requests.AnswerTo(f.Data)
		return protocol != "" && !f.Outgoing
	})
	require.NoError(s.t, err)
	link, err := g.Link("eth0")
	require.NoError(s.t, err)
	var fd int
	require.NoError(s.t, g.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6}
	go func() {
		defer unix.Close(fd)
		ticks := time.NewTicker(askEvery)
		defer ticks.Stop()
		for {
			select {
			case <-a.stop:
				a.ended <- nil
				return
			case <-ticks.C:
			}
			number := len(a.sent) + 1
			a.sent = append(a.sent, time.Now())
			if err := unix.Sendto(fd, a.guest.Frame(a.kind(number), uint32(number)), 0, to); err != nil {
				a.ended <- err
				return
			}
		}
	}()
	return a
}

func (a *asker) kind(number int) requests.Kind { return requests.Kind(number) % requests.Kinds }

// answeredAlike checks that every answer is the one that the guest's description gives, that
// no request had two, and that the last ones had one. It returns the longest time in which
// no request that was sent had an answer.
func (a *asker) answeredAlike() (silence time.Duration) {
	t := a.s.t
	t.Helper()
	close(a.stop)
	require.NoError(t, <-a.ended)
	offer := autoconf.OfferOf(a.vm.Ports(&a.s.cluster)[0], a.s.cluster.Guests)
	answered := map[int]bool{}
	last := 0
	for n := range a.sent {
		if a.kind(n+1) != requests.Solicitation {
			last = n + 1
		}
	}
	a.s.eventually("the last request is answered", func() error {
		for _, f := range a.sniffer.Frames() {
			if _, n := requests.AnswerTo(f.Data); int(n) == last {
				return nil
			}
		}
		return errors.New("it is not")
	})
	require.NoError(t, a.sniffer.Close())
	for _, f := range a.sniffer.Frames() {
		protocol, number := requests.AnswerTo(f.Data)
		n := int(number)
		if protocol == "RA" {
			assert.Equal(t, offer.Advertisement(), f.Data)
			continue
		}
		assert.False(t, answered[n], "%d is answered twice", n)
		answered[n] = true
		wants := offer.Answer(autoconf.Request{From: a.guest.MAC, Packet: a.guest.Frame(a.kind(n), number)[14:]})
		require.Len(t, wants.Frames, 1)
		assert.Equal(t, wants.Frames[0], f.Data, "%d", n)
	}
	since := a.sent[0]
	for n, at := range a.sent {
		if answered[n+1] {
			silence, since = max(silence, at.Sub(since)), at
		}
	}
	return silence
}
