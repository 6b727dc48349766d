package rtnl_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// view counts its calls.
type view struct {
	mu            sync.Mutex
	applied       int // notifications of links
	loads         int
	last          rtnl.Listing
	early         bool          // a notification came before it was loaded
	before, until chan struct{} // Apply closes the one, once, and waits for the other
}

func (v *view) Apply(msgs []netlink.Message) {
	v.mu.Lock()
	if v.loads == 0 {
		v.early = true
	}
	for _, m := range msgs {
		if m.Header.Type == unix.RTM_NEWLINK && m.Header.PID == 0 {
			v.applied++
		}
	}
	before := v.before
	v.before = nil
	v.mu.Unlock()
	if before != nil {
		close(before)
		<-v.until
	}
}

func (v *view) Load(l rtnl.Listing) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.loads, v.last = v.loads+1, l
}

func (v *view) seen() (applied, loads int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.applied, v.loads
}

func feed(t *testing.T) *rtnl.Feed {
	t.Helper()
	f, err := rtnl.Open(slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// rename changes something about the loopback link n times, which is notified each time.
func rename(t *testing.T, c *rtnl.Conn, n int) {
	t.Helper()
	msgs := make([]netlink.Message, n)
	for i := range msgs {
		msgs[i] = rtnl.Message(unix.RTM_SETLINK, 0, rtnl.IfInfoMsg(1, 0, 0), func(ae *netlink.AttributeEncoder) {
			ae.String(unix.IFLA_IFALIAS, string(rune('a'+i%2)))
		})
	}
	errs, err := c.Batch(msgs...)
	require.NoError(t, err)
	for _, err := range errs {
		require.NoError(t, err)
	}
}

// TestViewsShareAFeed, also while nobody runs it.
func TestViewsShareAFeed(t *testing.T) {
	for _, runs := range []bool{true, false} {
		t.Run(fmt.Sprint("runs: ", runs), func(t *testing.T) {
			f := feed(t)
			if runs {
				labtest.Running(t, f)
			}
			viewsShare(t, f)
		})
	}
}

func viewsShare(t *testing.T, f *rtnl.Feed) {
	c := dial(t)
	all := []*view{{}, {}}
	var places []*rtnl.Follower
	for _, v := range all {
		place, err := f.Join(t.Context(), v, rtnl.Wants{Links: true, Protocols: []uint8{unix.RTPROT_KERNEL}})
		require.NoError(t, err)
		places = append(places, place)
	}
	for _, v := range all {
		_, loads := v.seen()
		assert.Equal(t, 1, loads)
		assert.NotEmpty(t, v.last.Links)
		assert.Empty(t, v.last.Addresses, "not wanted")
		assert.NotEmpty(t, v.last.Routes[unix.RTPROT_KERNEL], "those of the loopback link")
	}
	rename(t, c, 3)
	require.NoError(t, f.CatchUp(t.Context()))
	for _, v := range all {
		applied, loads := v.seen()
		assert.Equal(t, 3, applied)
		assert.Equal(t, 1, loads)
		assert.False(t, v.early)
	}

	require.NoError(t, places[0].Relist(t.Context()))
	_, loads := all[0].seen()
	assert.Equal(t, 2, loads)
	_, loads = all[1].seen()
	assert.Equal(t, 1, loads, "nobody asked for it")

	places[0].Leave()
	rename(t, c, 3)
	require.NoError(t, f.CatchUp(t.Context()))
	applied, _ := all[0].seen()
	assert.Equal(t, 3, applied)
	applied, _ = all[1].seen()
	assert.Equal(t, 6, applied)
}

// TestLostNotifications: when more happened than the socket's buffer holds, every
// view starts anew, and who waits to have caught up goes on after that.
func TestLostNotifications(t *testing.T) {
	c, f := dial(t), feed(t)
	labtest.Running(t, f)
	slow, other := &view{until: make(chan struct{})}, &view{}
	for _, v := range []*view{slow, other} {
		_, err := f.Join(t.Context(), v, rtnl.Wants{Links: true})
		require.NoError(t, err)
	}
	busy := make(chan struct{})
	slow.mu.Lock()
	slow.before = busy
	slow.mu.Unlock()
	rename(t, c, 1)
	<-busy
	rename(t, c, 20000)
	var caught sync.WaitGroup
	catchUp := func() {
		assert.NoError(t, f.CatchUp(t.Context()))
		for _, v := range []*view{slow, other} {
			_, loads := v.seen()
			assert.GreaterOrEqual(t, loads, 2)
		}
	}
	caught.Go(catchUp)
	close(slow.until)
	for range 20 { // also while what did come is taken from the socket
		caught.Go(catchUp)
	}
	caught.Wait()
	rename(t, c, 1)
	require.NoError(t, f.CatchUp(t.Context()))
}

// TestLossesAreFoundLater: a feed that nobody runs loses notifications too, and has the
// views start anew when somebody asks.
func TestLossesAreFoundLater(t *testing.T) {
	c, f, v := dial(t), feed(t), &view{}
	_, err := f.Join(t.Context(), v, rtnl.Wants{Links: true})
	require.NoError(t, err)
	rename(t, c, 20000)
	require.NoError(t, f.CatchUp(t.Context()))
	_, loads := v.seen()
	assert.Equal(t, 2, loads)
	applied, _ := v.seen()
	rename(t, c, 1)
	require.NoError(t, f.CatchUp(t.Context()))
	now, _ := v.seen()
	assert.Equal(t, 1, now-applied)
}

// TestRunTakesTurns: those who wait have caught up although Run begins and ends
// meanwhile.
func TestRunTakesTurns(t *testing.T) {
	c, f, v := dial(t), feed(t), &view{}
	_, err := f.Join(t.Context(), v, rtnl.Wants{Links: true})
	require.NoError(t, err)
	over := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			ctx, cancel := context.WithCancel(t.Context())
			var once sync.WaitGroup
			once.Go(func() { assert.NoError(t, f.Run(ctx)) })
			assert.NoError(t, f.CatchUp(t.Context()))
			cancel()
			once.Wait()
		}
	})
	for n := range 50 {
		rename(t, c, 1)
		require.NoError(t, f.CatchUp(t.Context()))
		applied, loads := v.seen()
		assert.Equal(t, 1, loads)
		assert.Equal(t, n+1, applied)
	}
	close(over)
	running.Wait()
}

// TestNobodyWaitsLongerThanItsContext: neither Run nor a wait to catch up.
func TestNobodyWaitsLongerThanItsContext(t *testing.T) {
	f := feed(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Run(ctx) }()
	require.NoError(t, f.CatchUp(t.Context()))
	cancel()
	require.NoError(t, <-ended)
	require.ErrorIs(t, f.CatchUp(ctx), context.Canceled)
	_, err := f.Join(ctx, &view{}, rtnl.Wants{})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, f.CatchUp(t.Context()))
}

func TestClosedFeed(t *testing.T) {
	f, err := rtnl.Open(slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	labtest.Running(t, f)
	place, err := f.Join(t.Context(), &view{}, rtnl.Wants{})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Error(t, f.CatchUp(t.Context()))
	require.Error(t, place.Relist(t.Context()))
	_, err = f.Join(t.Context(), &view{}, rtnl.Wants{})
	require.Error(t, err)
	place.Leave()
}
