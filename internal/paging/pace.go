package paging

import "time"

const (
	// leastPage is how many keys a page has while etcd is slow, and at first: a thousand
	// such pages at once fit into the memory of any member. Of half as many, all keys would
	// cost etcd a third more.
	leastPage = 1000
	mostPage  = 4000
	// While pages take no longer than quick, nobody needs to wait for others. Where etcd
	// is far away they always take longer: up to twice as long as the fastest is no reason
	// either. What is verySlow is one always.
	quick    = 100 * time.Millisecond
	verySlow = 250 * time.Millisecond
	// mostShare is how much longer than it waited for a page a node rests at most before
	// the next one: of many nodes one in so many asks at a time.
	mostShare = 8
	mostRest  = 10 * time.Second
	leastRest = 10 * time.Millisecond
)

// Pace is how fast a node reads pages: the larger ones the quicker etcd answers, and with a
// rest before each while it is slow, because others read, too. What they all do together
// is what etcd can do: none of them knows how many they are. The zero value is the
// pace of one that begins.
type Pace struct {
	size  int
	rest  time.Duration
	least time.Duration // what the fastest page took; zero: none came yet
}

// Size gives how many keys the next page is to have.
func (p *Pace) Size() int { return max(p.size, leastPage) }

// Rest gives how long to wait before the next page. share is random, from 0 to 1: nodes
// that were slow together do not come back together.
func (p *Pace) Rest(share float64) time.Duration {
	return p.rest/2 + time.Duration(share*float64(p.rest))
}

// Took takes how long a page took and how many keys it had, or how long it was waited for
// in vain.
func (p *Pace) Took(d time.Duration, keys int) {
	if p.least == 0 || d < p.least {
		p.least = d
	}
	slow := min(max(quick, 2*p.least), verySlow)
	switch {
	case d > slow:
		p.size = max(leastPage, p.size/2)
		p.rest = min(max(2*p.rest, d), mostShare*d, mostRest)
	case p.rest >= leastRest:
		p.rest /= 2
	default:
		p.rest = 0
		if d < slow/2 && 2*keys >= p.Size() { // an almost empty one says nothing of full ones
			p.size = min(2*p.Size(), mostPage)
		}
	}
}
