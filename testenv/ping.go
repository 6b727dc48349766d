package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Ping sends ICMP echo requests from the host, a tenth of a second apart,
// until one is answered, and gives its round trip time. It fails when ctx ends
// first. The zone of a link-local address is the name of the host's link.
func (h *Host) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	return h.PingFrom(ctx, netip.Addr{}, to)
}

// PingFrom is Ping with a source address of the host's.
func (h *Host) PingFrom(ctx context.Context, from, to netip.Addr) (time.Duration, error) {
	p, err := h.ProbeFrom(from, to, 100*time.Millisecond)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.first:
	case <-ctx.Done():
	}
	r := p.end(0)
	if r.Received == 0 {
		return 0, fmt.Errorf("ping %s from %s: %d sent, none answered, %d refused (%w)", to, h.name, r.Sent, r.Refused, context.Cause(ctx))
	}
	return r.FirstRTT, nil
}

// Prober sends ICMP echo requests at a steady rate and notes the answers.
type Prober struct {
	conn     *icmp.PacketConn
	to       net.Addr
	v6       bool
	id       int
	interval time.Duration
	stop     chan struct{}
	first    chan struct{} // closed by the first answer
	sending  sync.WaitGroup
	running  sync.WaitGroup

	mu       sync.Mutex
	sent     []time.Time // by sequence number
	answered []bool
	last     time.Time // when the last answer came
	result   ProbeResult
}

// ProbeResult is what became of the requests of a [Prober].
type ProbeResult struct {
	Sent, Received  int
	Lost            int           // sent and never answered
	Duplicates      int           // answers to what had been answered
	Refused         int           // ICMP errors about a request: unreachable, time exceeded
	FirstRTT        time.Duration // of the first answer
	MaxRTT          time.Duration
	LongestGap      time.Duration // between two answers, one after the other
	LongestLossFrom int           // sequence number at which the longest run of lost requests begins
	LongestLoss     int           // its length
}

// probeGrace is how long Stop waits for answers under way.
const probeGrace = time.Second

// Probe starts to send echo requests from the host, one each interval.
func (h *Host) Probe(to netip.Addr, interval time.Duration) (*Prober, error) {
	return h.ProbeFrom(netip.Addr{}, to, interval)
}

// ProbeFrom is Probe with a source address of the host's.
func (h *Host) ProbeFrom(from, to netip.Addr, interval time.Duration) (*Prober, error) {
	p := &Prober{
		v6: to.Is6(), id: 1 + rand.IntN(1<<16-1), interval: interval,
		stop: make(chan struct{}), first: make(chan struct{}),
	}
	network, local := "ip4:icmp", "0.0.0.0"
	if p.v6 {
		network, local = "ip6:ipv6-icmp", "::"
	}
	if from.IsValid() {
		local = from.String()
	}
	zone := to.Zone()
	if zone != "" {
		link, err := h.Link(zone)
		if err != nil {
			return nil, fmt.Errorf("ping %s from %s: %w", to, h.name, err)
		}
		// By number: package net looks names up in whatever namespace its
		// thread is in, and remembers them for all.
		zone = strconv.Itoa(link.Attrs().Index)
	}
	p.to = &net.IPAddr{IP: to.AsSlice(), Zone: zone}
	err := h.Do(func() (err error) {
		p.conn, err = icmp.ListenPacket(network, local)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", to, h.name, err)
	}
	p.sending.Go(p.send)
	p.running.Go(p.receive)
	return p, nil
}

func (p *Prober) send() {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for {
		p.mu.Lock()
		seq := len(p.sent)
		p.sent = append(p.sent, time.Now())
		p.answered = append(p.answered, false)
		p.mu.Unlock()
		// A request that the host itself cannot send counts as lost.
		_, _ = p.conn.WriteTo(p.request(seq), p.to)
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
	}
}

func (p *Prober) request(seq int) []byte {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: p.id, Seq: seq & 0xffff, Data: binary.BigEndian.AppendUint64(nil, uint64(seq)),
	}}
	if p.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in the checksum
	}
	b, err := m.Marshal(nil)
	if err != nil {
		panic(err) // of an echo request that is made above
	}
	return b
}

func (p *Prober) receive() {
	buf := make([]byte, 1500)
	proto := 1
	if p.v6 {
		proto = 58
	}
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		p.note(m, time.Now())
	}
}

// note takes one ICMP message of the host, which may be anybody's.
func (p *Prober) note(m *icmp.Message, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch body := m.Body.(type) {
	case *icmp.Echo:
		reply := m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply
		if !reply || body.ID != p.id || len(body.Data) != 8 {
			return
		}
		if seq := binary.BigEndian.Uint64(body.Data); seq < uint64(len(p.sent)) {
			p.noteAnswer(int(seq), now)
		}
	case *icmp.DstUnreach:
		p.noteRefusal(body.Data)
	case *icmp.TimeExceeded:
		p.noteRefusal(body.Data)
	}
}

func (p *Prober) noteAnswer(seq int, now time.Time) {
	r := &p.result
	if p.answered[seq] {
		r.Duplicates++
		return
	}
	p.answered[seq] = true
	rtt := now.Sub(p.sent[seq])
	if r.Received++; r.Received == 1 {
		r.FirstRTT = rtt
		close(p.first)
	} else {
		r.LongestGap = max(r.LongestGap, now.Sub(p.last))
	}
	r.MaxRTT = max(r.MaxRTT, rtt)
	p.last = now
}

// noteRefusal takes what an ICMP error quotes: the header and the beginning of
// the packet that it is about.
func (p *Prober) noteRefusal(quoted []byte) {
	header := 40
	if !p.v6 && len(quoted) > 0 {
		header = int(quoted[0]&0xf) * 4
	}
	if len(quoted) >= header+8 && int(binary.BigEndian.Uint16(quoted[header+4:])) == p.id {
		p.result.Refused++
	}
}

// Received gives the number of requests answered so far.
func (p *Prober) Received() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result.Received
}

// Stop ends the sending, waits up to a second for the answers that are under
// way, and gives the result. It is to be called once.
func (p *Prober) Stop() ProbeResult { return p.end(probeGrace) }

func (p *Prober) end(grace time.Duration) ProbeResult {
	close(p.stop)
	p.sending.Wait() // or a last request goes out with nobody left to wait for its answer
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_ = Until(ctx, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.result.Received < len(p.sent) {
			return errors.New("answers are under way")
		}
		return nil
	})
	p.conn.Close()
	p.running.Wait()

	r := p.result
	r.Sent = len(p.sent)
	r.Lost = r.Sent - r.Received
	run := 0
	for seq, ok := range p.answered {
		if run++; ok {
			run = 0
		}
		if run > r.LongestLoss {
			r.LongestLoss, r.LongestLossFrom = run, seq-run+1
		}
	}
	return r
}
