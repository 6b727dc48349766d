package paging

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const ms = time.Millisecond

// TestPace: pages grow while they are quick; a node that waits for them rests.
func TestPace(t *testing.T) {
	t.Parallel()
	var p Pace
	assert.Equal(t, leastPage, p.Size())
	assert.Zero(t, p.Rest(1))
	p.Took(ms, leastPage/3)
	assert.Equal(t, leastPage, p.Size(), "it was almost empty")
	p = Pace{}
	for _, size := range []int{2000, 4000, 4000} {
		p.Took(10*ms, p.Size())
		assert.Equal(t, size, p.Size())
	}
	p.Took(60*ms, p.Size()) // not so quick that it asks for more
	assert.Zero(t, p.Rest(1))
	p.Took(200*ms, p.Size())
	assert.Equal(t, 2000, p.Size())
	assert.Equal(t, []time.Duration{100 * ms, 200 * ms, 300 * ms}, []time.Duration{p.Rest(0), p.Rest(0.5), p.Rest(1)})
	for _, rest := range []time.Duration{400, 800, 1600, 1600} { // eight times what a page takes
		p.Took(200*ms, p.Size())
		assert.Equal(t, rest*ms, p.Rest(0.5))
	}
	assert.Equal(t, leastPage, p.Size())
	p.Took(time.Minute, p.Size())
	assert.Equal(t, mostRest, p.Rest(0.5), "the longest")
	for range 11 {
		assert.NotZero(t, p.Rest(0))
		p.Took(10*ms, p.Size())
	}
	assert.Zero(t, p.Rest(1))
	assert.Equal(t, 2*leastPage, p.Size())

	var far Pace
	for range 10 {
		far.Took(180*ms, far.Size())
	}
	assert.Zero(t, far.Rest(1), "etcd is far away, and not slow")
	var busy Pace
	busy.Took(time.Second, busy.Size())
	assert.NotZero(t, busy.Rest(0), "a first page that is as slow as that is no measure")
}

// TestPaceOfMany plays an etcd that does one thing after the other, and a thousand nodes
// that begin at once: all end in about the time that its work takes, and it has few pages to
// do at a time once they have found their pace.
func TestPaceOfMany(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{1, 10, 1000} {
		const keys, each, perKey = 40_000, ms, 2 * time.Microsecond
		type node struct {
			pace Pace
			read int
			asks time.Duration // when it asks for the next page
		}
		random := rand.New(rand.NewPCG(1, 2))
		all, waiting := make([]node, nodes), []int{}
		for i := range all {
			waiting = append(waiting, i)
		}
		var now, work time.Duration
		var queues []int
		for len(waiting) > 0 {
			slices.SortStableFunc(waiting, func(a, b int) int { return cmp.Compare(all[a].asks, all[b].asks) })
			n := &all[waiting[0]]
			now = max(now, n.asks)
			queue := 0
			for _, i := range waiting {
				if all[i].asks <= now {
					queue++
				}
			}
			queues = append(queues, queue)
			took := each + time.Duration(n.pace.Size())*perKey
			n.read += n.pace.Size()
			now, work = now+took, work+took
			n.pace.Took(now-n.asks, n.pace.Size())
			n.asks = now + n.pace.Rest(random.Float64())
			if n.read >= keys {
				waiting = waiting[1:]
			}
		}
		late := queues[len(queues)/4 : len(queues)*3/4]
		slices.Sort(late)
		t.Logf("%d nodes: %v for %v of work; in the queue at most %d, in the middle %d", nodes, now, work, slices.Max(queues), late[len(late)/2])
		assert.Less(t, now, 2*work+time.Second)
		assert.LessOrEqual(t, late[len(late)/2], 10+nodes/4)
	}
}
