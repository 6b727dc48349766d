package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/requests"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// patient is how long a guest waits for an answer before it asks again (RFC 2131, 4.1).
const patient = 4 * time.Second

// boots has the times of guests that ask for their configuration at once.
type boots struct {
	mu     sync.Mutex
	took   map[requests.Kind]sample // from a request that was answered to its answer
	online sample                   // from the beginning until a guest has all that it asks for
	again  int                      // requests that were sent again
}

// measureBoots has many guests ask for their addresses and a router at the same moment,
// by DHCPv4, DHCPv6 and router solicitation, and one after the other. Before that it looks
// what it costs an agent to answer them, beside one that does not.
func measureBoots(ctx context.Context, b *bench) (s section, err error) {
	l, err := b.changedLab(ctx, "boots", 2, func(c *fabric.Cluster) { c.Metrics = metricsAt })
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	sides, err := b.portsByTurns(ctx, l)
	if err != nil {
		return s, err
	}
	a, gs := sides[0].agent, sides[0].guests
	var taps []*os.File
	defer func() {
		for _, f := range taps {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, g := range gs {
		f, err := holdTap(a.node, g.port())
		if err != nil {
			return s, err
		}
		taps = append(taps, f)
	}
	if err := a.ready(ctx, len(gs)); err != nil {
		return s, err
	}
	b.quiet(ctx)
	before, err := usageOf(a.Pid())
	if err != nil {
		return s, err
	}
	all, alone := newBoots(), newBoots()
	for range b.size.storms {
		if err := all.round(ctx, gs, taps, l.cluster.Gateway, len(gs)); err != nil {
			return s, err
		}
	}
	after, err := usageOf(a.Pid())
	if err != nil {
		return s, err
	}
	some := min(len(gs), b.size.guests)
	if err := alone.round(ctx, gs[:some], taps[:some], l.cluster.Gateway, 1); err != nil {
		return s, err
	}
	s = all.section(b.size, alone, before, after)
	s.tables = append(s.tables, makingTable(l.cluster, gs), portsTable(sides))
	return s, nil
}

// metricsAt is where agents serve their metrics.
var metricsAt = netip.MustParseAddrPort("127.0.0.1:9178")

// side is one of two agents, of which one answers its guests.
type side struct {
	name          string
	agent         *agent
	guests        []guest
	replies       sample
	before, after footprint // without a port, and with them
}

// portsByTurns attaches guests to two nodes by turns, of which the first one's agent
// answers them. Those of the second one are gone afterwards.
func (b *bench) portsByTurns(ctx context.Context, l *lab) ([]*side, error) {
	sides := []*side{{name: "on"}, {name: "off"}}
	for i, change := range []func(*fabric.Cluster){nil, func(c *fabric.Cluster) { c.Guests.NoDHCP, c.Guests.NoRA = true, true }} {
		s := sides[i]
		s.guests = guests(i*10_000, b.size.storm)
		var err error
		if s.agent, err = b.startChanged(ctx, l, fmt.Sprintf("node%d", i+1), change); err == nil {
			s.before, err = b.footprint(ctx, s.agent)
		}
		if err != nil {
			return nil, err
		}
	}
	for n := range b.size.storm {
		for i := range sides {
			s := sides[(n+i)%len(sides)]
			x, err := s.agent.ask(ctx, hooks.Live, s.guests[n].vm(fabric.Tap))
			if err != nil {
				return nil, err
			}
			s.replies.add(x.took)
		}
	}
	for _, s := range sides {
		err := s.agent.ready(ctx, len(s.guests))
		if err == nil {
			s.after, err = b.footprint(ctx, s.agent)
		}
		if err != nil {
			return nil, err
		}
	}
	_, err := sides[1].agent.askAll(ctx, hooks.Remove, sides[1].guests, 64)
	return sides, err
}

// portsTable says what ports cost an agent that answers their guests, and one that does
// not.
func portsTable(sides []*side) table {
	n := len(sides[0].guests)
	t := table{head: []string{fmt.Sprintf("%s ports, dhcp and ra", count(n)), "attach p50 ms", "attach p99 ms", "goroutines before", "with them", "descriptors before", "with them", "RSS MiB before", "with them", "KiB a port"}}
	for _, s := range sides {
		t.row(s.name, ms(s.replies.p50()), ms(s.replies.p99()), count(s.before.goroutines), count(s.after.goroutines),
			count(s.before.descriptors), count(s.after.descriptors), mib(s.before.rss), mib(s.after.rss),
			fmt.Sprintf("%.1f", float64(s.after.rss-s.before.rss)/1024/float64(n)))
	}
	return t
}

// makingTable says how long the answers take to be made, without the way to the guest.
func makingTable(c fabric.Cluster, gs []guest) table {
	c = c.WithDefaults()
	t := table{head: []string{"to make the answer to", "p50 µs", "p99 µs", "slowest µs"}}
	micros := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Microsecond)) }
	for _, k := range bootKinds {
		var took sample
		for i, g := range gs {
			who := asking(g, c.Gateway)
			request := autoconf.Request{From: who.MAC, Packet: who.Frame(k, uint32(i))[14:]}
			offer := autoconf.OfferOf(g.vm(fabric.Tap).Ports(&c)[0], c.Guests)
			began := time.Now()
			answer := offer.Answer(request)
			took.add(time.Since(began))
			if len(answer.Frames) != 1 {
				panic(fmt.Sprintf("a %v gets %d answers", k, len(answer.Frames)))
			}
		}
		t.row(k.String(), micros(took.p50()), micros(took.p99()), micros(took.max()))
	}
	return t
}

// bootKinds are what a guest sends that boots, in the order of the tables.
var bootKinds = []requests.Kind{requests.Discover, requests.Select, requests.Solicit, requests.Solicitation}

func newBoots() *boots { return &boots{took: map[requests.Kind]sample{}} }

// asking is a guest as it asks.
func asking(g guest, gateway fabric.Gateway) requests.Guest {
	return requests.Guest{MAC: fabric.MAC(core.GuestMAC(g.name, 0)), Addresses: g.vm("").NICs[0].Addresses, Gateway: gateway}
}

// round has all guests boot once, so many of them at the same time.
func (bs *boots) round(ctx context.Context, gs []guest, taps []*os.File, gateway fabric.Gateway, atOnce int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	all := time.Now()
	for i, g := range gs {
		group.Go(func() error {
			began := all
			if atOnce == 1 {
				began = time.Now()
			}
			return bs.boot(ctx, began, asking(g, gateway), taps[i], uint32(i)<<4)
		})
	}
	return group.Wait()
}

// boot asks for all that a guest needs. Which of its requests an answer is to, their
// numbers say: each kind has its own.
func (bs *boots) boot(ctx context.Context, began time.Time, who requests.Guest, tap *os.File, number uint32) error {
	if err := drain(tap); err != nil { // of advertisements that nobody asked for
		return err
	}
	sent, waits := map[requests.Kind]time.Time{}, map[requests.Kind]bool{}
	ask := func(k requests.Kind) error {
		_, err := tap.Write(who.Frame(k, number+uint32(k)))
		sent[k], waits[k] = time.Now(), true
		return err
	}
	for _, k := range []requests.Kind{requests.Solicitation, requests.Discover, requests.Solicit} {
		if err := ask(k); err != nil {
			return err
		}
	}
	frame := make([]byte, 2048)
	for len(waits) > 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("no answer to %v: %w", slices.Collect(maps.Keys(waits)), ctx.Err())
		}
		if err := tap.SetReadDeadline(time.Now().Add(patient)); err != nil {
			return err
		}
		n, err := tap.Read(frame)
		at := time.Now()
		for k := range waits {
			if at.Sub(sent[k]) > patient {
				bs.count(func() { bs.again++ })
				if err := ask(k); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		k, answered := answeredBy(frame[:n], number)
		if !answered || !waits[k] {
			continue
		}
		delete(waits, k)
		bs.count(func() { bs.took[k] = append(bs.took[k], at.Sub(sent[k])) })
		if k == requests.Discover {
			if err := ask(requests.Select); err != nil {
				return err
			}
		}
	}
	bs.count(func() { bs.online.add(time.Since(began)) })
	return nil
}

// drain reads what waits at a tap.
func drain(tap *os.File) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	frame := make([]byte, 2048)
	failed := raw.Control(func(fd uintptr) {
		for err == nil {
			_, err = unix.Read(int(fd), frame)
		}
	})
	if errors.Is(err, unix.EAGAIN) {
		err = nil
	}
	return errors.Join(failed, err)
}

// answeredBy returns the kind of request that a frame answers.
func answeredBy(frame []byte, number uint32) (k requests.Kind, answered bool) {
	switch protocol, to := requests.AnswerTo(frame); {
	case protocol == "RA":
		return requests.Solicitation, true
	case protocol != "" && to >= number && to < number+uint32(requests.Kinds):
		return requests.Kind(to - number), true
	}
	return 0, false
}

func (bs *boots) count(f func()) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	f()
}

func (bs *boots) section(size size, alone *boots, before, after usage) section {
	n := count(size.storm)
	s := section{
		title: fmt.Sprintf("%s guests that boot at once", n),
		method: fmt.Sprintf(`
%s guests with a tap each send a router solicitation, a DISCOVER and a SOLICIT at the same moment, and a REQUEST when they are
offered an address; what is not answered they ask again after %v. The node holds each request for 10 ms (docs/guests.md). The
guests run on the same processors. %d rounds. Then %d of them do so one after the other.`, n, patient, size.storms, len(alone.online)),
	}
	t := table{head: []string{"answer to", "p50 ms", "p99 ms", "slowest ms", "one by one: p50 ms", "p99 ms", "slowest ms"}}
	row := func(name string, all, one sample) {
		t.row(name, ms(all.p50()), ms(all.p99()), ms(all.max()), ms(one.p50()), ms(one.p99()), ms(one.max()))
	}
	for _, k := range bootKinds {
		row(k.String(), bs.took[k], alone.took[k])
	}
	row("all, from the first request", bs.online, alone.online)
	m := table{head: []string{"the agent", "RSS MiB", "PSS MiB"}}
	m.row("before", mib(before.rss), mib(before.pss))
	m.row("after", mib(after.rss), mib(after.pss))
	s.tables = []table{t, m}
	asked := 0
	for _, took := range bs.took {
		asked += len(took)
	}
	s.notes = []string{
		fmt.Sprintf("%s requests had their answer; %d of them were sent again. Each took %s ms of the agent's processor time.", count(asked), bs.again, ms((after.processor-before.processor)/time.Duration(max(asked, 1)))),
		"The ports were attached one by one to two nodes by turns, of which one answers its guests: the last table. No port has a goroutine or a descriptor of its own.",
	}
	return s
}
