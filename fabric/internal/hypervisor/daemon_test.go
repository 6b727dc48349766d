package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

var (
	errRefused = errors.New("it refuses")
	errCut     = errors.New("it was cut")
)

// fake is a hypervisor that does as its faults say.
type fake struct {
	*Daemon[*fakeConn]

	mu     sync.Mutex
	faults faults
	dials  []time.Duration // after the start
	conns  []*fakeConn
	alive  atomic.Int32
}

// faults are what a fake does wrong; nil errors: nothing.
type faults struct {
	dial, subscribe, ping error
	hang                  bool // it does not answer pings
}

type fakeConn struct {
	of     *fake
	lost   chan error
	closed int
}

func newFake(socket string, f faults) *fake {
	h, began := &fake{faults: f}, time.Now()
	h.Daemon = NewDaemon(Config[*fakeConn]{
		Name: "fake", Sockets: []string{socket}, Logger: slog.New(slog.DiscardHandler), Queue: NewQueue(),
		Dial: func(context.Context, string) (*fakeConn, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.dials = append(h.dials, time.Since(began))
			if h.faults.dial != nil {
				return nil, h.faults.dial
			}
			c := &fakeConn{of: h, lost: make(chan error, 1)}
			h.conns = append(h.conns, c)
			return c, nil
		},
		Unreachable: func(socket string, err error) *Unreachable { return NewUnreachable("fake", "faked", socket, err) },
		Connected:   func(*fakeConn) {},
		Alive:       func() { h.alive.Add(1) },
	})
	return h
}

func (h *fake) set(f faults) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = f
}

func (h *fake) now() faults {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.faults
}

func (h *fake) attempts() []time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.dials)
}

// newest is the connection that was made last.
func (h *fake) newest() *fakeConn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conns[len(h.conns)-1]
}

func (c *fakeConn) Subscribe(context.Context) error { return c.of.now().subscribe }
func (c *fakeConn) Close()                          { c.closed++ }

func (c *fakeConn) Run(ctx context.Context) error {
	select {
	case err := <-c.lost:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *fakeConn) Ping(ctx context.Context) error {
	f := c.of.now()
	if f.hang {
		<-ctx.Done()
		return Reason(ctx.Err())
	}
	return f.ping
}

const noSocket = "/nonexistent/fake"

// run runs a test beside the Run of a fake, in fake time.
func run(t *testing.T, f faults, test func(t *testing.T, h *fake)) {
	t.Helper()
	runOn(t, noSocket, f, test)
}

func runOn(t *testing.T, socket string, f faults, test func(t *testing.T, h *fake)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newFake(socket, f)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		synctest.Wait()
		test(t, h)
		cancel()
		require.NoError(t, <-ended)
		assert.False(t, h.Status(0).Connected)
		for _, c := range h.conns {
			assert.Equal(t, 1, c.closed)
		}
	})
}

// lost reports whether the agent is to list.
func (h *fake) lost() bool {
	select {
	case c := <-h.Queue.Out():
		return c.Lost
	default:
		return false
	}
}

// after lets fake time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestConditionOfADaemon(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*fake) // of a connection that is there
		wait time.Duration
		lost time.Duration // when the connection was, after it was made
		want string
	}{
		"the connection is cut":    {func(h *fake) { h.set(faults{dial: errCut}); h.newest().lost <- errCut }, 0, 0, "(it was cut); start faked"},
		"a ping is not answered":   {func(h *fake) { h.set(faults{hang: true}) }, 15 * time.Second, 15 * time.Second, "(timed out); restart faked"},
		"a ping is refused":        {func(h *fake) { h.set(faults{ping: errRefused}) }, 5 * time.Second, 5 * time.Second, "(it refuses); start faked"},
		"it may not be asked":      {func(h *fake) { h.set(faults{dial: fs.ErrPermission}); h.newest().lost <- errCut }, time.Second, 0, "(permission denied); run as root"},
		"it does not subscribe":    {func(h *fake) { h.set(faults{subscribe: errRefused}); h.newest().lost <- errCut }, time.Second, 0, "(it refuses); start faked"},
		"it is gone":               {func(h *fake) { h.set(faults{dial: fs.ErrNotExist}); h.newest().lost <- errCut }, time.Second, 0, "(file does not exist); start faked"},
		"it answers no first ping": {func(h *fake) { h.set(faults{hang: true}); h.newest().lost <- errCut }, 11 * time.Second, 0, "(timed out); restart faked"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, faults{}, func(t *testing.T, h *fake) {
				made := h.Status(0).Since
				assert.True(t, h.Status(0).Connected)
				assert.True(t, h.lost())
				assert.Empty(t, h.Condition())
				c.end(h)
				after(c.wait)
				assert.False(t, h.Status(0).Connected)
				assert.Equal(t, "fake: no answer on /nonexistent/fake since "+made.Add(c.lost).Format(time.TimeOnly)+" "+c.want, h.Condition())
				assert.False(t, h.lost())

				h.set(faults{})
				after(10*time.Second + h.Times.RetryMax)
				assert.True(t, h.Status(0).Connected)
				assert.Empty(t, h.Condition())
				assert.True(t, h.lost(), "the agent lists what happened meanwhile")
			})
		})
	}
}

func TestDaemonThatWasNeverThereIsNoProblem(t *testing.T) {
	for name, err := range map[string]error{"no socket": fs.ErrNotExist, "a refusal, of a socket that is gone": errRefused} {
		t.Run(name, func(t *testing.T) {
			run(t, faults{dial: err}, func(t *testing.T, h *fake) {
				after(time.Minute)
				assert.Empty(t, h.Condition())
				h.set(faults{})
				after(5 * time.Second)
				assert.True(t, h.lost())
			})
		})
	}
	runOn(t, t.TempDir(), faults{dial: errRefused}, func(t *testing.T, h *fake) { // anything that exists
		after(time.Minute)
		assert.Contains(t, h.Condition(), "(it refuses); start faked")
	})
}

func TestAttemptsBackOff(t *testing.T) {
	run(t, faults{dial: errRefused}, func(t *testing.T, h *fake) {
		after(18 * time.Second)
		ms := func(n time.Duration) time.Duration { return n * time.Millisecond }
		assert.Equal(t, []time.Duration{0, ms(500), ms(1500), ms(3500), ms(7500), ms(12500), ms(17500)}, h.attempts())
		h.set(faults{})
		after(5 * time.Second)
		h.newest().lost <- errCut
		after(ms(500))
		assert.Equal(t, ms(23500), h.attempts()[len(h.attempts())-1], "a connection that was there is tried for soon")
	})
}

func TestAliveFollowsEachPing(t *testing.T) {
	run(t, faults{}, func(t *testing.T, h *fake) {
		assert.Zero(t, h.alive.Load())
		after(16 * time.Second)
		assert.EqualValues(t, 3, h.alive.Load())
	})
}

func TestFirstSocketThatAnswers(t *testing.T) {
	answers := map[string]error{"absent": fs.ErrNotExist, "refuses": errRefused, "denied": fs.ErrPermission}
	for _, c := range []struct {
		sockets   []string
		got, want string
	}{
		{[]string{"absent", "refuses", "serves"}, "serves", ""},
		{[]string{"serves", "refuses"}, "serves", ""},
		{[]string{"absent", "refuses", "denied"}, "", "fake: no answer on refuses (it refuses); start faked"},
		{[]string{"denied", "absent"}, "", "fake: no answer on denied (permission denied); run as root"},
		{[]string{"absent", "absent too"}, "", "fake: no answer on absent too (file does not exist); start faked"},
	} {
		t.Run(fmt.Sprint(c.sockets), func(t *testing.T) {
			answers["absent too"] = fs.ErrNotExist
			h, dialed := newFake(noSocket, faults{}), ""
			dial := h.Dial
			h.Sockets = c.sockets
			h.Dial = func(ctx context.Context, socket string) (*fakeConn, error) {
				if err := answers[socket]; err != nil {
					return nil, err
				}
				dialed = socket
				return dial(ctx, socket)
			}
			conn, release, err := h.Borrow(t.Context())
			assert.Equal(t, c.got, dialed)
			if c.want != "" {
				require.EqualError(t, err, c.want)
				return
			}
			require.NoError(t, err)
			release()
			assert.Equal(t, 1, conn.closed, "a connection of the caller's own")
		})
	}
}

func TestBorrowedConnectionStays(t *testing.T) {
	run(t, faults{}, func(t *testing.T, h *fake) {
		c, release, err := h.Borrow(t.Context())
		require.NoError(t, err)
		assert.Same(t, h.newest(), c)
		release()
		assert.Zero(t, c.closed)
		h.Heard()
		assert.Equal(t, fabric.SourceStatus{Name: "fake", Connected: true, Since: time.Now(), LastEvent: time.Now(), Guests: 7}, h.Status(7))
	})
}

func TestPartsEndWithRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newFake(noSocket, faults{})
		ran := false
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, h.Run(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			ran = true
			return nil
		}))
		assert.True(t, ran)
	})
}
