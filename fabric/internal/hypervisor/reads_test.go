package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// reader reads guests, as long as each takes, and notes what it reads.
type reader struct {
	*Reads[string, string]
	takes map[string]time.Duration // a second where nothing is said

	mu     sync.Mutex
	log    []string
	now    map[string]int
	most   int // guests that were read at a time
	twice  bool
	cut    int // reads that were ended
	result chan error
}

// reading runs a test beside the Run of a reader, in fake time.
func reading(t *testing.T, limits Limits, takes map[string]time.Duration, test func(t *testing.T, r *reader)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &reader{takes: takes, now: map[string]int{}, result: make(chan error, 1)}
		r.Reads = NewReads(limits, r.read, func(older, newer string) string { return older + "+" + newer })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { r.result <- r.Run(ctx) }()
		test(t, r)
		cancel()
		synctest.Wait()
		assert.False(t, r.twice, "a guest was read twice at a time")
	})
}

func (r *reader) read(ctx context.Context, guest, news string) {
	r.mu.Lock()
	r.log = append(r.log, guest+":"+news)
	r.now[guest]++
	r.twice = r.twice || r.now[guest] > 1
	r.most = max(r.most, len(r.now))
	takes, said := r.takes[guest]
	r.mu.Unlock()
	if !said {
		takes = time.Second
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		r.mu.Lock()
		r.cut++
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now[guest]--; r.now[guest] == 0 {
		delete(r.now, guest)
	}
}

// read so far.
func (r *reader) sofar() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.log, " ")
}

func TestNewsOfGuests(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		takes  map[string]time.Duration
		news   string // guest:news, a dot for half a second
		want   string // what was read after a minute
	}{
		"each is read":                        {Limits{Parallel: 2}, nil, "a:1 b:2", "a:1 b:2"},
		"news during a read is one more read": {Limits{Parallel: 2}, nil, "a:1 . a:2 a:3 a:4", "a:1 a:2+3+4"},
		"news before a read is part of it":    {Limits{Parallel: 1}, nil, "x:1 . a:1 a:2", "x:1 a:1+2"},
		"news after a read is another":        {Limits{Parallel: 1}, nil, "a:1 . . . a:2", "a:1 a:2"},
		"a slow guest holds up nobody else":   {Limits{Parallel: 2}, map[string]time.Duration{"slow": time.Hour}, "slow:1 . b:2 . . . c:3 . . . b:4", "slow:1 b:2 c:3 b:4"},
		"a slow guest's news waits for it":    {Limits{Parallel: 2}, map[string]time.Duration{"slow": 20 * time.Second}, "slow:1 . slow:2 . slow:3 b:4", "slow:1 b:4 slow:2+3"},
		"patience with those who get on":      {Limits{Parallel: 1, Patience: 2 * time.Second, Stuck: errCut}, nil, "a:1 . b:2 . . c:3", "a:1 b:2 c:3"},
	} {
		t.Run(name, func(t *testing.T) {
			reading(t, c.limits, c.takes, func(t *testing.T, r *reader) {
				for word := range strings.FieldsSeq(c.news) {
					if word == "." {
						after(500 * time.Millisecond)
						continue
					}
					guest, news, _ := strings.Cut(word, ":")
					assert.True(t, r.Request(guest, news))
					synctest.Wait()
				}
				after(time.Minute)
				assert.Equal(t, c.want, r.sofar())
				assert.LessOrEqual(t, r.most, c.limits.Parallel)
				assert.Empty(t, r.result, "it goes on")
			})
		})
	}
}

func TestNewsOfManyGuests(t *testing.T) {
	reading(t, Limits{Parallel: 3, Waiting: 8}, nil, func(t *testing.T, r *reader) {
		for i := range 8 {
			assert.True(t, r.Request(fmt.Sprint(i), "x"))
		}
		assert.False(t, r.Request("one more", "x"), "a list costs less")
		assert.True(t, r.Request("7", "y"), "it waits already")
		after(time.Minute)
		assert.Equal(t, 3, r.most)
		assert.Len(t, r.log, 8)
		assert.True(t, r.Request("one more", "x"))
		after(time.Minute)
		assert.Len(t, r.log, 9)
	})
}

func TestGuestsThatHang(t *testing.T) {
	errStuck := errors.New("stuck")
	reading(t, Limits{Parallel: 2, Patience: 10 * time.Second, Stuck: errStuck}, map[string]time.Duration{"a": time.Hour, "b": time.Hour}, func(t *testing.T, r *reader) {
		r.Request("a", "1")
		after(30 * time.Second)
		r.Request("b", "2")
		after(31 * time.Second)
		assert.Empty(t, r.result, "nobody waits for a turn")

		r.Request("c", "3")
		after(9 * time.Second)
		assert.Empty(t, r.result)
		after(time.Second)
		require.Len(t, r.result, 1)
		require.ErrorIs(t, <-r.result, errStuck)
		assert.Equal(t, 2, r.cut, "those that hang are let go")
		assert.Equal(t, "a:1 b:2", r.sofar())
	})
}

func TestReadsEndWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{takes: map[string]time.Duration{"a": time.Hour}, now: map[string]int{}}
		r.Reads = NewReads(Limits{Parallel: 1}, r.read, nil)
		r.Request("a", "1") // before Run
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		synctest.Wait()
		r.Request("b", "2")
		require.NoError(t, <-ended)
		assert.Equal(t, 1, r.cut)
		assert.Equal(t, "a:1", r.sofar(), "the other waited for its turn")
	})
}
