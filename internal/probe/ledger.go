package probe

import (
	"sync"
	"time"
)

// ledger accounts for each request of a [Prober]. It is safe for concurrent use.
type ledger struct {
	first chan struct{} // closed by the first answer

	mu       sync.Mutex
	at       []time.Time // when each request was sent, by sequence number
	answered []bool
	last     time.Time // when the last answer came
	highest  int       // the highest sequence number that was answered
	result   Result
}

func newLedger() *ledger { return &ledger{first: make(chan struct{}), highest: -1} }

// request notes that the next request is sent at a time, and how late.
func (l *ledger) request(at time.Time, late time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = append(l.at, at)
	l.answered = append(l.answered, false)
	l.result.Late = max(l.result.Late, late)
}

// unsent notes that the host could not send the last request.
func (l *ledger) unsent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Unsent++
}

// refusal notes an ICMP error about a request.
func (l *ledger) refusal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Refused++
}

// answer notes an answer to the request with a sequence number. It ignores an
// answer to a request that was never sent.
func (l *ledger) answer(number uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number >= uint64(len(l.at)) {
		return
	}
	seq, r := int(number), &l.result
	if l.answered[seq] {
		r.Duplicates++
		return
	}
	l.answered[seq] = true
	if seq < l.highest {
		r.Reordered++
	}
	l.highest = max(l.highest, seq)
	rtt := now.Sub(l.at[seq])
	if r.Received++; r.Received == 1 {
		r.FirstRTT = rtt
		close(l.first)
	} else if gap := now.Sub(l.last); gap > r.LongestGap {
		r.LongestGap, r.GapFrom = gap, l.last
	}
	r.MaxRTT = max(r.MaxRTT, rtt)
	l.last = now
}

// counts returns how many requests were answered, and how many were sent.
func (l *ledger) counts() (received, sent int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.result.Received, len(l.at)
}

// close returns the result. Nothing may be noted from then on.
func (l *ledger) close() Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.result
	r.Sent = len(l.at)
	r.Lost = r.Sent - r.Received
	if r.Sent > 0 {
		r.Began = l.at[0]
		r.Took = l.at[r.Sent-1].Sub(l.at[0])
	}
	run := 0
	for seq, ok := range l.answered {
		if run++; ok {
			run = 0
			continue
		}
		r.Losses = append(r.Losses, Loss{seq, l.at[seq]})
		if run > r.LongestLoss {
			r.LongestLoss, r.LongestLossFrom = run, seq-run+1
		}
	}
	return r
}
