// Package probe sends ICMP echo requests at a steady rate and accounts for
// every one of them: what a packet loss of a few milliseconds is found with.
package probe

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

// Config says what is probed, and how often.
type Config struct {
	From     netip.Addr // the source; invalid: what the kernel chooses
	To       netip.Addr // without a zone
	Link     int        // the number of the link that a link-local To is on
	Interval time.Duration
	Count    int // requests; 0: until Stop
}

// Prober sends echo requests and notes the answers.
type Prober struct {
	cfg     Config
	conn    *icmp.PacketConn
	to      net.Addr
	id      int
	stop    chan struct{}
	first   chan struct{} // closed by the first answer
	sent    chan struct{} // closed when the last request is sent
	running sync.WaitGroup

	mu       sync.Mutex
	at       []time.Time // when each request was sent, by sequence number
	answered []bool
	last     time.Time // when the last answer came
	highest  int       // sequence number answered
	result   Result
}

// Result is what became of the requests of a [Prober].
type Result struct {
	Sent, Received  int
	Lost            int           // sent and never answered
	Duplicates      int           // answers to what had been answered
	Reordered       int           // answers that came after that to a later request
	Refused         int           // ICMP errors about a request: unreachable, time exceeded
	FirstRTT        time.Duration // of the first answer
	MaxRTT          time.Duration
	LongestGap      time.Duration // between two answers, one after the other
	LongestLossFrom int           // sequence number at which the longest run of lost requests begins
	LongestLoss     int           // its length
	Took            time.Duration // from the first request to the last
}

// grace is how long Stop waits for answers under way.
const grace = time.Second

// Start begins to send, from the network namespace of the calling thread.
func Start(cfg Config) (*Prober, error) {
	p := &Prober{
		cfg: cfg, id: 1 + rand.IntN(1<<16-1), highest: -1,
		stop: make(chan struct{}), first: make(chan struct{}), sent: make(chan struct{}),
	}
	network, local := "ip4:icmp", "0.0.0.0"
	if cfg.To.Is6() {
		network, local = "ip6:ipv6-icmp", "::"
	}
	if cfg.From.IsValid() {
		local = cfg.From.String()
	}
	to := &net.IPAddr{IP: cfg.To.AsSlice()}
	if cfg.Link != 0 {
		// By number: package net looks names up in whatever namespace its
		// thread is in, and remembers them for all.
		to.Zone = strconv.Itoa(cfg.Link)
	}
	p.to = to
	var err error
	if p.conn, err = icmp.ListenPacket(network, local); err != nil {
		return nil, fmt.Errorf("probe %s: %w", cfg.To, err)
	}
	p.running.Go(p.send)
	p.running.Go(p.receive)
	return p, nil
}

// send keeps to a schedule that is fixed at the start: what the machine was too
// late for is sent at once.
func (p *Prober) send() {
	defer close(p.sent)
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for seq := 0; p.cfg.Count == 0 || seq < p.cfg.Count; seq++ {
		select {
		case <-timer.C:
		case <-p.stop:
			return
		}
		p.mu.Lock()
		p.at = append(p.at, time.Now())
		p.answered = append(p.answered, false)
		p.mu.Unlock()
		// A request that the host itself cannot send counts as lost.
		_, _ = p.conn.WriteTo(p.request(seq), p.to)
		timer.Reset(time.Until(began.Add(time.Duration(seq+1) * p.cfg.Interval)))
	}
}

func (p *Prober) request(seq int) []byte {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: p.id, Seq: seq & 0xffff, Data: binary.BigEndian.AppendUint64(nil, uint64(seq)),
	}}
	if p.cfg.To.Is6() {
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
	if p.cfg.To.Is6() {
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
		if seq := binary.BigEndian.Uint64(body.Data); seq < uint64(len(p.at)) {
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
	if seq < p.highest {
		r.Reordered++
	}
	p.highest = max(p.highest, seq)
	rtt := now.Sub(p.at[seq])
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
	if p.cfg.To.Is4() && len(quoted) > 0 {
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

// First is closed by the first answer.
func (p *Prober) First() <-chan struct{} { return p.first }

// Sent is closed when the last request was sent.
func (p *Prober) Sent() <-chan struct{} { return p.sent }

// Stop ends the sending, waits up to a second for the answers that are under
// way, and gives the result. It is to be called once.
func (p *Prober) Stop() Result { return p.end(grace) }

// Abandon is Stop without the wait.
func (p *Prober) Abandon() Result { return p.end(0) }

func (p *Prober) end(grace time.Duration) Result {
	close(p.stop)
	<-p.sent // or a last request goes out with nobody left to wait for its answer
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for p.underWay() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	p.conn.Close()
	p.running.Wait()

	r := p.result
	r.Sent = len(p.at)
	r.Lost = r.Sent - r.Received
	if r.Sent > 0 {
		r.Took = p.at[r.Sent-1].Sub(p.at[0])
	}
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

func (p *Prober) underWay() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.result.Received < len(p.at)
}
