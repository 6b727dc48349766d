package hypervisor

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// at is a guest as it was at a second.
func at(second int, vm string, state fabric.State) fabric.Desired {
	return fabric.Desired{VM: fabric.VM{Name: vm}, State: state, Since: time.Unix(int64(second), 0)}
}

func word(c fabric.Change) string {
	if c.Lost {
		return "lost"
	}
	if c.Gone {
		return fmt.Sprintf("%s%s:gone@%d", c.Guest.VM.Name, c.Guest.VM.UUID, c.Guest.Since.Unix())
	}
	return fmt.Sprintf("%s:%s@%d", c.Guest.VM.Name, c.Guest.State, c.Guest.Since.Unix())
}

func TestWhatTheAgentTakes(t *testing.T) {
	live, absent := fabric.Live, fabric.Absent
	// with is a guest a with a UUID.
	with := func(uuid string, second int, state fabric.State) fabric.Desired {
		d := at(second, "a", state)
		d.VM.UUID = uuid
		return d
	}
	for name, c := range map[string]struct {
		fill func(*Queue)
		want string
	}{
		"nothing":                         {func(*Queue) {}, ""},
		"in order":                        {func(q *Queue) { q.Put(at(1, "a", live)); q.Put(at(2, "b", live)) }, "a:live@1 b:live@2"},
		"the newest of a guest":           {func(q *Queue) { q.Put(at(1, "a", live)); q.Put(at(2, "b", live)); q.Put(at(3, "a", absent)) }, "a:absent@3 b:live@2"},
		"late news undoes nothing":        {func(q *Queue) { q.Put(at(3, "a", absent)); q.Put(at(1, "a", live)) }, "a:absent@3"},
		"of one time, what came last":     {func(q *Queue) { q.Put(at(1, "a", live)); q.Put(at(1, "a", absent)) }, "a:absent@1"},
		"a loss comes first":              {func(q *Queue) { q.Put(at(1, "a", live)); q.PutLost(); q.PutLost() }, "lost a:live@1"},
		"gone":                            {func(q *Queue) { q.PutGone(with("1", 1, absent)) }, "a1:gone@1"},
		"gone, not only stopped":          {func(q *Queue) { q.Put(with("1", 1, absent)); q.PutGone(with("1", 2, absent)) }, "a1:gone@2"},
		"gone, and here again":            {func(q *Queue) { q.PutGone(with("1", 1, absent)); q.Put(with("1", 2, live)) }, "a1:gone@1 a:live@2"},
		"gone, and another has its name":  {func(q *Queue) { q.PutGone(with("1", 1, absent)); q.Put(with("2", 2, live)) }, "a1:gone@1 a:live@2"},
		"gone is told late":               {func(q *Queue) { q.Put(with("2", 2, live)); q.PutGone(with("1", 1, absent)) }, "a1:gone@1 a:live@2"},
		"late word of one that came back": {func(q *Queue) { q.Put(with("1", 2, live)); q.PutGone(with("1", 1, absent)) }, "a1:gone@1 a:live@2"},
		"all that are gone": {
			func(q *Queue) {
				q.PutGone(with("1", 1, absent))
				q.PutGone(with("2", 2, absent))
				q.PutGone(with("1", 3, absent))
				q.PutLost()
			},
			"lost a2:gone@2 a1:gone@3",
		},
		// A list began at second 5.
		"an event before a list":   {func(q *Queue) { q.Put(at(4, "a", absent)); q.Refresh(at(5, "a", live)) }, "a:live@5"},
		"an event during a list":   {func(q *Queue) { q.Put(at(6, "a", absent)); q.Refresh(at(5, "a", live)) }, "a:absent@6"},
		"a list is no news itself": {func(q *Queue) { q.Refresh(at(5, "a", live)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := NewQueue()
				c.fill(q)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- q.Run(ctx) }()
				assert.Equal(t, c.want, take(q))
				assert.Empty(t, q.Waiting())
				cancel()
				require.NoError(t, <-ended)
			})
		})
	}
}

// take takes all changes that there are.
func take(q *Queue) string {
	var words []string
	for {
		synctest.Wait()
		select {
		case c := <-q.Out():
			words = append(words, word(c))
		default:
			return strings.Join(words, " ")
		}
	}
}

// What nobody has taken is replaced even while it is offered.
func TestOfferIsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go q.Run(ctx) //nolint:errcheck // it returns nil
		for second := range 5 {
			q.Put(at(second, "a", fabric.Wired))
			synctest.Wait()
		}
		q.Put(at(9, "a", fabric.Live))
		assert.Equal(t, "a:live@9", take(q))
	})
}

// A change that comes just as an older one of its guest is taken is not lost.
func TestChangeDuringATake(t *testing.T) {
	q := NewQueue()
	q.Put(at(1, "a", fabric.Live))
	c, _ := q.next()
	q.Put(at(2, "a", fabric.Absent))
	q.taken(c)
	assert.Equal(t, map[string]fabric.Desired{"a": at(2, "a", fabric.Absent)}, q.Waiting())
}

// That a guest is gone once more, as that is taken, is not lost.
func TestLostDuringATake(t *testing.T) {
	q := NewQueue()
	q.PutLost()
	c, _ := q.next()
	q.PutLost() // the agent has c, and Run does not know yet
	q.taken(c)
	c, some := q.next()
	require.True(t, some, "the list that c causes may have begun before")
	assert.True(t, c.Lost)
	q.taken(c)
	_, some = q.next()
	assert.False(t, some)
}

func TestGoneDuringATake(t *testing.T) {
	q := NewQueue()
	q.PutGone(at(1, "a", fabric.Absent))
	c, _ := q.next()
	q.PutGone(at(2, "a", fabric.Absent))
	q.taken(c)
	c, some := q.next()
	require.True(t, some)
	assert.Equal(t, "a:gone@2", word(c))
	q.taken(c)
	_, some = q.next()
	assert.False(t, some)
}
