// Package probe sends ICMP echo requests at a steady rate and accounts for
// every one of them: what a packet loss of a few milliseconds is found with.
package probe

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
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
	sock    *socket
	id      uint16
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
	Unsent          int           // of the lost: those that the host itself could not send
	Duplicates      int           // answers to what had been answered
	Reordered       int           // answers that came after that to a later request
	Refused         int           // ICMP errors about a request: unreachable, time exceeded
	FirstRTT        time.Duration // of the first answer
	MaxRTT          time.Duration
	LongestGap      time.Duration // between two answers, one after the other
	GapFrom         time.Time     // when the first of these two came
	LongestLossFrom int           // sequence number at which the longest run of lost requests begins
	LongestLoss     int           // its length
	Losses          []Loss        // every lost request, in order
	Began           time.Time     // when the first request was sent
	Took            time.Duration // from the first request to the last
	Late            time.Duration // the most by which the host was behind the schedule
}

// Loss is a request that was never answered.
type Loss struct {
	Seq int
	At  time.Time // when it was sent
}

// Stall gives the longest time for which one of these paths, of which nothing is
// to be lost, was without an answer, or a request was late: what the machine alone
// does to processes on it, against which the loss of another path in the same
// time is to be judged.
func Stall(results ...Result) (longest time.Duration) {
	for _, r := range results {
		longest = max(longest, r.LongestGap, r.MaxRTT, r.Late)
	}
	return longest
}

// LostSince tells when each lost request was sent, relative to an instant;
// before it is negative.
func (r Result) LostSince(instant time.Time) []time.Duration {
	var since []time.Duration
	for _, l := range r.Losses {
		since = append(since, l.At.Sub(instant))
	}
	return since
}

// grace is how long Stop waits for answers under way.
const grace = time.Second

// Start begins to send, from the network namespace of the calling thread.
// Without the right to open raw sockets it is an error that is
// [os.ErrPermission].
func Start(cfg Config) (*Prober, error) {
	p := &Prober{
		cfg: cfg, id: uint16(1 + rand.IntN(1<<16-1)), highest: -1,
		stop: make(chan struct{}), first: make(chan struct{}), sent: make(chan struct{}),
	}
	var err error
	if p.sock, err = open(cfg); err != nil {
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
	c := newClock()
	defer c.close()
	m := newRequest(p.cfg.To, p.id)
	began := time.Now()
	for seq := 0; p.cfg.Count == 0 || seq < p.cfg.Count; seq++ {
		due := began.Add(time.Duration(seq) * p.cfg.Interval)
		if !c.sleep(due, p.stop) {
			return
		}
		m.number(seq)
		now := time.Now()
		p.mu.Lock()
		p.at = append(p.at, now)
		p.answered = append(p.answered, false)
		p.result.Late = max(p.result.Late, now.Sub(due))
		p.mu.Unlock()
		if err := p.sock.send(m); err != nil {
			p.mu.Lock()
			p.result.Unsent++
			p.mu.Unlock()
		}
	}
}

func (p *Prober) receive() {
	for {
		m, at, err := p.sock.receive()
		if err != nil {
			return // closed
		}
		p.note(m, at)
	}
}

// note takes one ICMP message of the host, which may be anybody's.
func (p *Prober) note(m message, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case m.isReply() && m.id() == p.id && len(m.data()) == payload:
		if seq := binary.BigEndian.Uint64(m.data()); seq < uint64(len(p.at)) {
			p.noteAnswer(int(seq), at)
		}
	case m.isRefusal() && m.about() == p.id:
		p.result.Refused++
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
	} else if gap := now.Sub(p.last); gap > r.LongestGap {
		r.LongestGap, r.GapFrom = gap, p.last
	}
	r.MaxRTT = max(r.MaxRTT, rtt)
	p.last = now
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
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for over := time.Now().Add(grace); p.underWay() && time.Now().Before(over); {
		<-look.C
	}
	p.sock.close()
	p.running.Wait()

	r := p.result
	r.Sent = len(p.at)
	r.Lost = r.Sent - r.Received
	if r.Sent > 0 {
		r.Began = p.at[0]
		r.Took = p.at[r.Sent-1].Sub(p.at[0])
	}
	run := 0
	for seq, ok := range p.answered {
		if run++; ok {
			run = 0
			continue
		}
		r.Losses = append(r.Losses, Loss{seq, p.at[seq]})
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
