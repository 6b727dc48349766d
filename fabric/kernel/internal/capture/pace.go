package capture

import (
	"slices"
	"time"
)

// reaction is how long a guest that has a processor may take from a frame in its
// queue to its answer.
const reaction = 5 * time.Millisecond

// pace estimates how far behind a guest may be with the frames to it. A guest whose
// node has no processor for it for a while stalls: it sends nothing, and the frames
// to it wait in its queue. Then it begins with the oldest, and may stall again
// before it has caught up. So it is behind by no more than all its stalls of the
// last recordFor together.
type pace struct {
	last    time.Time // when the last frame came from the guest
	waiting time.Time // when the first frame to the guest since then came; zero: none
	stalls  []stall   // in their order
}

// stall is a time in which frames waited for a guest and it sent none.
type stall struct {
	until time.Time
	took  time.Duration
}

// sent notes a frame to the guest.
func (p *pace) sent(at time.Time) {
	if p.waiting.IsZero() {
		p.waiting = at
	}
}

// heard notes a frame from the guest.
func (p *pace) heard(at time.Time) {
	if at.Before(p.last) {
		return
	}
	if took := at.Sub(p.waiting); !p.waiting.IsZero() && took > reaction {
		p.stalls = append(p.stalls, stall{at, min(took, recordFor)})
	}
	p.last, p.waiting = at, time.Time{}
	old := slices.IndexFunc(p.stalls, func(s stall) bool { return !s.until.Before(at.Add(-recordFor)) })
	if old < 0 {
		old = len(p.stalls)
	}
	p.stalls = p.stalls[old:]
}

// taken returns the time before which the guest has certainly taken all frames to
// it.
func (p *pace) taken() time.Time {
	behind := reaction
	for _, s := range p.stalls {
		behind += s.took
	}
	return p.last.Add(-min(behind, recordFor))
}
