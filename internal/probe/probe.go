// Package probe sends ICMP echo requests at a steady rate and accounts for every
// one of them, to find packet loss of a few milliseconds.
package probe

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/internal/packets"
)

// Config has the target of a probe, and its rate.
type Config struct {
	From     netip.Addr // the source; invalid: the kernel chooses
	To       netip.Addr // without a zone
	Link     int        // the index of the link of a link-local To
	Interval time.Duration
	Count    int // requests; 0: until Stop
}

// Prober sends echo requests and records the answers.
type Prober struct {
	cfg     Config
	sock    *socket
	id      uint16
	stop    chan struct{}
	sent    chan struct{} // closed when the last request is sent
	running sync.WaitGroup
	ledger  *ledger
}

// Result is the result of a [Prober]'s requests.
type Result struct {
	ID              uint16 // of every request, in its ICMP header
	Sent, Received  int
	Lost            int           // sent and never answered
	Unsent          int           // of the lost ones, those that the host itself could not send
	Duplicates      int           // answers to a request that had one already
	Reordered       int           // answers that came after the answer to a later request
	Refused         int           // ICMP errors about a request: unreachable, time exceeded
	FirstRTT        time.Duration // the round-trip time of the first answer
	MaxRTT          time.Duration
	LongestGap      time.Duration // between two answers in a row
	GapFrom         time.Time     // when the first of the two came
	LongestLossFrom int           // sequence number at which the longest run of lost requests begins
	LongestLoss     int           // its length
	Losses          []Loss        // every lost request, in order
	Began           time.Time     // when the first request was sent
	Took            time.Duration // from the first request to the last
	Late            time.Duration // the most by which the host was behind the schedule
}

// String sums the result up in a line, without the single losses.
func (r Result) String() string {
	text := fmt.Sprintf("%d sent, %d lost", r.Sent, r.Lost)
	if len(r.Losses) > 0 {
		text += fmt.Sprintf(" (numbers %d to %d, at most %d in a row)", r.Losses[0].Seq, r.Losses[len(r.Losses)-1].Seq, r.LongestLoss)
	}
	return text + fmt.Sprintf(", %d not sent, %d answered twice, %d out of order, %d refused, longest gap %v, longest round trip %v, at most %v behind the schedule",
		r.Unsent, r.Duplicates, r.Reordered, r.Refused, r.LongestGap, r.MaxRTT, r.Late)
}

// Loss is a request that was never answered.
type Loss struct {
	Seq int
	At  time.Time // when it was sent
}

// Stall returns the longest time for which one of these paths was without an
// answer, or a request was late. The paths must be ones that lose nothing: a stall
// on them is the machine's doing, and the loss of another path in the same time
// must be compared with it.
func Stall(results ...Result) (longest time.Duration) {
	for _, r := range results {
		longest = max(longest, r.LongestGap, r.MaxRTT, r.Late)
	}
	return longest
}

// LostSince returns when each lost request was sent, relative to an instant;
// negative before it.
func (r Result) LostSince(instant time.Time) []time.Duration {
	var since []time.Duration
	for _, l := range r.Losses {
		since = append(since, l.At.Sub(instant))
	}
	return since
}

// grace is how long Stop waits for the next outstanding answer, and longestGrace for all
// of them: a host that had no processor for a while answers late, and answers all.
const (
	grace        = time.Second
	longestGrace = 10 * time.Second
)

// Start begins to send, from the network namespace of the calling thread. Without
// the right to open raw sockets the error is [os.ErrPermission].
func Start(cfg Config) (*Prober, error) {
	p := &Prober{
		cfg: cfg, id: uint16(1 + rand.IntN(1<<16-1)), ledger: newLedger(),
		stop: make(chan struct{}), sent: make(chan struct{}),
	}
	var err error
	if p.sock, err = open(cfg); err != nil {
		return nil, fmt.Errorf("probe %s: %w", cfg.To, err)
	}
	p.running.Go(p.send)
	p.running.Go(p.receive)
	return p, nil
}

// send keeps to a schedule that is fixed at the start. It catches up with it at twice the
// rate at most: all late requests at once would overflow queues that the schedule does
// not fill.
func (p *Prober) send() {
	defer close(p.sent)
	c := newClock()
	defer c.close()
	began, last := time.Now(), time.Time{}
	for seq := 0; p.cfg.Count == 0 || seq < p.cfg.Count; seq++ {
		due := began.Add(time.Duration(seq) * p.cfg.Interval)
		at := due
		if soonest := last.Add(p.cfg.Interval / 2); at.Before(soonest) {
			at = soonest
		}
		if !c.sleep(at, p.stop) {
			return
		}
		m := newRequest(p.cfg.To, p.id, seq)
		now := time.Now()
		last = now
		p.ledger.request(now, now.Sub(due))
		if err := p.sock.send(m); err != nil {
			p.ledger.unsent()
		}
	}
}

func (p *Prober) receive() {
	for {
		m, at, err := p.sock.receive()
		if err != nil {
			return // the socket is closed
		}
		p.note(m, at)
	}
}

// note handles an ICMP message that the host received. The message may be for
// another program.
func (p *Prober) note(m message, at time.Time) {
	switch id, _, reply := packets.IsReply(m.six, m.body); {
	case reply && id == p.id && len(m.data()) == payload:
		p.ledger.answer(binary.BigEndian.Uint64(m.data()), at)
	case m.isRefusal() && m.about() == p.id:
		p.ledger.refusal()
	}
}

// Received returns the number of requests answered so far.
func (p *Prober) Received() int {
	received, _ := p.ledger.counts()
	return received
}

// First returns a channel that the first answer closes.
func (p *Prober) First() <-chan struct{} { return p.ledger.first }

// Sent returns a channel that is closed when the last request was sent.
func (p *Prober) Sent() <-chan struct{} { return p.sent }

// Stop stops sending, waits for outstanding answers as long as they come, and returns
// the result. Call it once.
func (p *Prober) Stop() Result { return p.end(grace) }

// Abandon is Stop without the wait.
func (p *Prober) Abandon() Result { return p.end(0) }

func (p *Prober) end(grace time.Duration) Result {
	close(p.stop)
	<-p.sent // otherwise a last request goes out, and nothing waits for its answer
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	over, most := time.Now().Add(grace), time.Now().Add(longestGrace)
	for was := p.Received(); p.underWay() && time.Now().Before(over); {
		<-look.C
		if now := p.Received(); now > was && grace > 0 {
			was, over = now, time.Now().Add(grace)
			if over.After(most) {
				over = most
			}
		}
	}
	p.sock.close()
	p.running.Wait()
	r := p.ledger.close()
	r.ID = p.id
	return r
}

func (p *Prober) underWay() bool {
	received, sent := p.ledger.counts()
	return received < sent
}
