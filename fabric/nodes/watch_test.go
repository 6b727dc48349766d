package nodes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestSilentNode: who is known and does not answer is told, with the way out, as
// long as that is so.
func TestSilentNode(t *testing.T) {
	filtered := fmt.Errorf("dial: %w", os.ErrDeadlineExceeded)
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	unreachable := fmt.Errorf("dial: %w", syscall.EHOSTUNREACH)
	c := core.SmallCluster(3)
	for _, tt := range []struct {
		name string
		met  bool
		err  error
		want string
	}{
		{"a packet filter, never met", false, filtered, "no packet filter on either node drops TCP port 7147"},
		{"a packet filter", true, filtered, "no packet filter on either node drops TCP port 7147"},
		{"a filter that rejects, never met", false, unreachable, "): no route to host; see whether the machine is up and on this network, and that no packet filter on either node rejects TCP port 7147"},
		{"its agent has gone", true, refused, "no agent listens there"},
		{"it has no agent yet", false, refused, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{Cluster: c, Node: c.Nodes[0]})
				fail := func() {
					n.peers.unanswered("node2", fmt.Errorf("node node2%w", n.explain(tt.err, c.Nodes[1], patience)))
				}
				if tt.met {
					n.peers.answered("node2")
					for range 4 {
						fail()
						time.Sleep(time.Second)
					}
					assert.Empty(t, n.Diagnose(t.Context()), "an agent that is restarted is no problem")
					n.peers.answered("node2")
					time.Sleep(time.Second)
				}
				began := time.Now()
				fail()
				time.Sleep(silentFor + time.Second)
				if tt.want == "" {
					assert.Empty(t, n.Diagnose(t.Context()))
					return
				}
				require.Len(t, n.Diagnose(t.Context()), 1)
				line := n.Diagnose(t.Context())[0]
				assert.Contains(t, line, "node node2 ("+c.Nodes[1].Address.String())
				assert.Contains(t, line, tt.want)
				assert.Contains(t, line, "no answer since "+began.Format(time.TimeOnly))
				assert.NotContains(t, line, "\n")
				n.peers.answered("node2")
				assert.Empty(t, n.Diagnose(t.Context()))
			})
		})
	}
}

// TestGreetings: a node that does not answer is greeted again and again, less and
// less often; at once when it calls.
func TestGreetings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := core.SmallCluster(3)
		n := New(Config{Cluster: c, Node: c.Nodes[0]})
		var pauses []time.Duration
		last := time.Now()
		for range 120 {
			if n.peers.takeUp("node2", time.Now()) {
				pauses = append(pauses, time.Since(last))
				last = time.Now()
				n.peers.unanswered("node2", errors.New("silent"))
			}
			time.Sleep(time.Second)
		}
		assert.Equal(t, []time.Duration{0, 2 * time.Second, 4 * time.Second, 8 * time.Second, 15 * time.Second, 15 * time.Second}, pauses[:6])
		assert.False(t, n.peers.takeUp("node2", last.Add(time.Second)))
		n.peers.heard("node2")
		assert.True(t, n.peers.takeUp("node2", time.Now()))
		n.peers.answered("node2")
		assert.False(t, n.peers.takeUp("node2", time.Now()))
		n.doubt("node2")
		assert.False(t, n.peers.takeUp("node2", time.Now().Add(time.Second)), "however often")
		assert.True(t, n.peers.takeUp("node2", time.Now().Add(greetAgain)))
		n.doubt("10.10.0.99") // whoever that is
	})
}

// TestRefusals: a node that refuses to answer is greeted again soon, then less
// often, however often it calls in vain; at once when it calls and is understood.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := core.SmallCluster(2)
		n := New(Config{Cluster: c, Node: c.Nodes[0]})
		var pauses []time.Duration
		last := time.Now()
		for range 120 {
			if n.peers.takeUp("node2", time.Now()) {
				pauses = append(pauses, time.Since(last))
				last = time.Now()
				n.peers.disagreed("node2")
			}
			n.doubt("node2")
			time.Sleep(time.Second)
		}
		assert.Equal(t, []time.Duration{0, 2 * time.Second, 4 * time.Second, 8 * time.Second, 15 * time.Second, 15 * time.Second}, pauses[:6])
		n.peers.disagreed("node2")
		assert.False(t, n.peers.takeUp("node2", time.Now()))
		n.peers.heard("node2")
		assert.True(t, n.peers.takeUp("node2", time.Now()))
		n.peers.answered("node2")
		n.peers.heard("node2")
		assert.False(t, n.peers.takeUp("node2", time.Now().Add(greetAgain)))
	})
}

// TestNodeWithoutAnAgent: it is not called for each of many questions, but again
// after a moment, and at once when it called.
func TestNodeWithoutAnAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Cluster: core.SmallCluster(2), Node: core.SmallCluster(2).Nodes[0]})
		refuse := func() { n.peers.refuseConnections("node2", syscall.ECONNREFUSED, time.Now()) }
		require.NoError(t, n.peers.refusedLately("node2"))
		refuse()
		require.ErrorIs(t, n.peers.refusedLately("node2"), syscall.ECONNREFUSED)
		time.Sleep(refusedFor)
		require.NoError(t, n.peers.refusedLately("node2"))
		for _, there := range []func(string){n.peers.heard, n.peers.answered} {
			refuse()
			require.ErrorIs(t, n.peers.refusedLately("node2"), syscall.ECONNREFUSED)
			there("node2")
			require.NoError(t, n.peers.refusedLately("node2"))
		}
	})
}

// TestForgetsCallers: a node that the file lacks, and that is gone, is not told
// for ever.
func TestForgetsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := core.SmallCluster(3)
		c.Key = "the key of the cluster"
		n := New(Config{Cluster: c, Node: c.Nodes[0]})
		_, err := n.identify(core.Underlay4(30), sender{Name: "node30", Address: core.Underlay4(30)})
		require.NoError(t, err)
		n.peers.answered("node30")
		n.peers.unanswered("node30", errors.New("node node30: silent"))
		n.peers.unanswered("node3", errors.New("node node3: silent"))
		time.Sleep(forgetAfter)
		n.forgetCallers(time.Now())
		assert.Equal(t, []string{"node2", "node3", "node30"}, n.Names())
		assert.Len(t, n.Diagnose(t.Context()), 2)
		time.Sleep(time.Minute)
		n.forgetCallers(time.Now())
		assert.Equal(t, []string{"node2", "node3"}, n.Names())
		require.Len(t, n.Diagnose(t.Context()), 1)
		assert.Contains(t, n.Diagnose(t.Context())[0], "node3")
	})
}

// TestTally: a flood is one line now and one a minute later.
func TestTally(t *testing.T) {
	var out bytes.Buffer
	tl := &tally{log: slog.New(slog.NewTextHandler(&out, nil)), kinds: map[string]*tallied{}}
	now := time.Now()
	for range 5313 {
		tl.warn(now, "call refused", "address", "10.10.0.99")
		tl.flush(now)
	}
	tl.warn(now, "another")
	assert.Equal(t, 2, strings.Count(out.String(), "\n"), out.String())
	assert.Contains(t, out.String(), "10.10.0.99")
	out.Reset()
	for range 3 {
		now = now.Add(tallyFor)
		tl.flush(now)
	}
	assert.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
	assert.Contains(t, out.String(), `"call refused (and 5312 more like this in the last minute)"`)
	assert.Empty(t, tl.kinds)
	tl.warn(now, "call refused")
	assert.Equal(t, 2, strings.Count(out.String(), "\n"))
}

type nothing struct{ closed bool }

func (n *nothing) Close() error {
	n.closed = true
	return nil
}

// TestVisitors: what strangers have open is bounded, from one address and in all,
// and takes nothing from who is known.
func TestVisitors(t *testing.T) {
	node, other := core.Underlay4(22), core.Underlay6(23)
	v := visitors{known: map[netip.Addr][]visitor{}}
	var strangers []*nothing
	for i := range byte(200) {
		a := core.Underlay4(i)
		if i%2 == 0 {
			a = core.Underlay6(i)
		}
		for j := range 10 {
			conn := &nothing{}
			assert.Equal(t, j < maxStranger, v.admit(a, stranger, conn))
			if j < maxStranger {
				strangers = append(strangers, conn)
			}
		}
	}
	for i, conn := range strangers {
		assert.Equal(t, i < len(strangers)-maxStrangers, conn.closed, "the oldest give way")
	}
	for _, a := range []netip.Addr{node, other} {
		var conns []*nothing
		for i := range maxEach + 10 {
			conn := &nothing{}
			require.True(t, v.admit(a, known, conn))
			require.Equal(t, i >= maxEach, i >= maxEach && conns[i-maxEach].closed, "other programs of the node give way")
			conns = append(conns, conn)
		}
		require.False(t, v.prove(a, conns[0]), "it has given way")
		for _, conn := range conns[10:] {
			require.True(t, v.prove(a, conn))
		}
		require.False(t, v.admit(a, known, &nothing{}), "all are the agent's")
		for _, conn := range conns {
			v.leave(a, conn)
		}
	}
	assert.False(t, v.admit(node, nobody, &nothing{}))

	// Who shows the key makes room for others.
	fresh, from := &nothing{}, core.Underlay4(222)
	require.True(t, v.admit(from, stranger, fresh))
	require.True(t, v.prove(from, fresh))
	require.False(t, v.prove(core.Underlay4(0), strangers[0]), "it has given way")
	require.Len(t, v.strangers, maxStrangers-1)
	require.Equal(t, map[netip.Addr][]visitor{from: {{from, fresh, true}}}, v.known)
	v.leave(from, fresh)
	for i, conn := range strangers {
		v.leave(core.Underlay4(byte(i)), conn)
	}
	assert.Empty(t, v.strangers)
	assert.Empty(t, v.known)
}

// flood is a caller that says x for ever.
type flood struct {
	net.Conn
	read int
}

func (f *flood) Read(b []byte) (int, error) {
	f.read += len(b)
	return copy(b, bytes.Repeat([]byte("x"), len(b))), nil
}

func (f *flood) SetReadDeadline(time.Time) error { return nil }

// TestNothingIsKept: of a line without an end no more is read than what is kept.
func TestNothingIsKept(t *testing.T) {
	for trusted, most := range map[bool]int{false: maxFirst, true: maxLine + maxFirst} {
		f := &flood{}
		r := newReader(f)
		r.trusted = trusted
		_, err := r.next(t.Context(), first)
		require.ErrorIs(t, err, errTooLong)
		assert.LessOrEqual(t, f.read, most)
	}
}

// written is a connection from which so many bytes come, at most some at a time.
type written struct {
	flood
	from io.Reader
}

func (w *written) Read(b []byte) (int, error) { return w.from.Read(b[:min(len(b), 1000)]) }

func TestReader(t *testing.T) {
	long := strings.Repeat("y", maxLine-1)
	w := &written{from: strings.NewReader("a\n\n" + strings.Repeat("x", maxFirst-1) + "\n" + long + "\nlast")}
	r := newReader(w)
	for _, want := range []string{"a", "", strings.Repeat("x", maxFirst-1)} {
		line, err := r.next(t.Context(), first)
		require.NoError(t, err)
		require.Equal(t, want, string(line))
	}
	r.trusted = true
	line, err := r.next(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, long, string(line))
	_, err = r.next(t.Context(), first)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "never the shorter line")

	r = newReader(&written{from: strings.NewReader(strings.Repeat("y", maxLine) + "\n")})
	r.trusted = true
	_, err = r.next(t.Context(), first)
	require.ErrorIs(t, err, errTooLong)
	_, err = newReader(&written{from: strings.NewReader("")}).next(t.Context(), first)
	require.ErrorIs(t, err, io.EOF)
}

// TestSlowCaller: whoever has shown nothing has so long for his whole line; a long
// line of who has may take longer, as long as it goes on.
func TestSlowCaller(t *testing.T) {
	says := func(t *testing.T, pause time.Duration, parts ...string) *reader {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, part := range parts {
				if _, err := io.WriteString(there, part); err != nil {
					return
				}
				time.Sleep(pause)
			}
		}()
		t.Cleanup(func() {
			here.Close()
			<-done
			there.Close()
		})
		return newReader(here)
	}
	for _, trusted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := says(t, patience-time.Second, strings.Repeat("x", maxFirst/4), strings.Repeat("x", maxFirst), strings.Repeat("x", maxFirst), "\n")
			r.trusted = trusted
			line, err := r.next(t.Context(), first)
			if !trusted {
				require.ErrorIs(t, err, errTooLong)
				return
			}
			require.NoError(t, err)
			assert.Len(t, line, maxFirst/4+2*maxFirst)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r, began := says(t, time.Second, slices.Repeat([]string{"x"}, 60)...), time.Now()
		_, err := r.next(t.Context(), first)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, first, time.Since(began))
	})
}
