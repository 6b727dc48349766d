package nflog_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/nflog"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestListenTakesAFreeGroup: a group is one socket's, and free again when that closes.
func TestListenTakesAFreeGroup(t *testing.T) {
	labtest.Long(t)
	first, err := nflog.Listen(7, 8)
	require.NoError(t, err)
	second, err := nflog.Listen(7, 8)
	require.NoError(t, err)
	assert.Equal(t, []uint16{7, 8}, []uint16{first.Group, second.Group})
	_, err = nflog.Listen(7, 8)
	require.ErrorIs(t, err, nflog.ErrTaken)
	require.NoError(t, first.Close())
	third, err := nflog.Listen(7, 8)
	require.NoError(t, err)
	assert.EqualValues(t, 7, third.Group)
	require.NoError(t, third.Close())
	require.NoError(t, second.Close())
}

// TestContextEndsReceive: the end of a context says the same to a goroutine that waits for
// packets as to one that has yet to.
func TestContextEndsReceive(t *testing.T) {
	labtest.Long(t)
	for _, yields := range []int{0, 1, 10, 1000} {
		l, err := nflog.Listen(7)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := l.Receive(ctx)
			ended <- err
		}()
		for range yields {
			runtime.Gosched()
		}
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.NoError(t, l.Close())
	}
}

// logged gives a listener to group 7, and what sends a packet that is logged to it.
func logged(t *testing.T) (l *nflog.Listener, send func(text string)) {
	labtest.Need(t, "nft")
	l, err := nflog.Listen(7)
	require.NoError(t, err)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table inet t; delete table inet t; table inet t { chain c { type filter hook prerouting priority raw; udp dport 9999 log group 7 drop; }; }")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	conn, err := net.Dial("udp", "127.0.0.1:9999")
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return l, func(text string) {
		_, err := conn.Write([]byte(text))
		require.NoError(t, err)
	}
}

// TestPacketsAreHeld: a packet does not come at once, but with those that follow it.
func TestPacketsAreHeld(t *testing.T) {
	l, send := logged(t)
	most := 0
	for range 50 { // a machine that stops in between parts them
		send("one")
		send("two")
		for got := 0; got < 2; {
			packets, err := l.Receive(t.Context())
			require.NoError(t, err)
			got, most = got+len(packets), max(most, len(packets))
		}
		if most == 2 {
			break
		}
	}
	assert.Equal(t, 2, most)
	require.NoError(t, l.Close())
}

// TestReceive: packets come as they were sent, also after more came than there was room
// for, and until the context ends.
func TestReceive(t *testing.T) {
	l, send := logged(t)
	lo, err := net.InterfaceByName("lo")
	require.NoError(t, err)
	// comes receives until a packet with the text has come.
	comes := func(text string) (before int) {
		for {
			packets, err := l.Receive(t.Context())
			require.NoError(t, err)
			for _, p := range packets {
				assert.EqualValues(t, lo.Index, p.Index)
				assert.EqualValues(t, 0x45, p.Data[0])
				if bytes.HasSuffix(p.Data, []byte(text)) {
					return before
				}
				before++
			}
		}
	}
	send("one")
	assert.Zero(t, comes("one"))
	const many = 200000
	for i := range many {
		send(fmt.Sprint(i))
	}
	received := make(chan int)
	go func() { received <- comes("last") }()
	for n := -1; n < 0; { // there is no room for it at first
		send("last")
		select {
		case n = <-received:
			assert.Less(t, n, many)
			assert.Positive(t, n)
		default:
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		for {
			if _, err := l.Receive(ctx); err != nil {
				ended <- err
				return
			}
		}
	}()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoError(t, l.Close())
}
