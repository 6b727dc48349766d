package rtnl_test

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// dial opens a socket until the test ends.
func dial(t *testing.T) *rtnl.Conn {
	t.Helper()
	c, err := rtnl.Dial()
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func loopback() netlink.Message {
	return rtnl.Message(unix.RTM_GETLINK, 0, rtnl.IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) { ae.String(unix.IFLA_IFNAME, "lo") })
}

func setLoopback(flags uint32) netlink.Message {
	return rtnl.Message(unix.RTM_SETLINK, 0, rtnl.IfInfoMsg(1, flags, unix.IFF_UP), nil)
}

func TestEachRequestHasItsAnswer(t *testing.T) {
	c := dial(t)
	missing := rtnl.Message(unix.RTM_DELLINK, 0, rtnl.IfInfoMsg(4711, 0, 0), nil)
	answers, err := c.Exchange(setLoopback(unix.IFF_UP), missing, loopback(), missing)
	require.NoError(t, err)
	require.Len(t, answers, 4)
	assert.NoError(t, answers[0].Err)
	assert.Empty(t, answers[0].Messages)
	assert.ErrorIs(t, answers[1].Err, unix.ENODEV)
	require.Len(t, answers[2].Messages, 1, "behind what changed it")
	assert.NotZero(t, binary.NativeEndian.Uint32(answers[2].Messages[0].Data[8:])&unix.IFF_UP)
	assert.ErrorIs(t, answers[3].Err, unix.ENODEV)
}

func TestMoreRequestsThanABufferHolds(t *testing.T) {
	c := dial(t)
	answers, err := c.Exchange(slices.Repeat([]netlink.Message{loopback()}, 1281)...)
	require.NoError(t, err)
	assert.Len(t, answers, 1281)
	for _, a := range answers {
		assert.Len(t, a.Messages, 1)
	}
	none, err := c.Exchange()
	require.NoError(t, err)
	assert.Empty(t, none)
}

func TestListing(t *testing.T) {
	c := dial(t)
	links, err := c.Do(rtnl.Message(unix.RTM_GETLINK, netlink.Dump, rtnl.IfInfoMsg(0, 0, 0), nil))
	require.NoError(t, err)
	assert.NotEmpty(t, links)
}

func TestClosed(t *testing.T) {
	c, err := rtnl.Dial()
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Close(), os.ErrClosed)
	_, err = c.Do(loopback())
	require.ErrorIs(t, err, os.ErrClosed)

	e, err := rtnl.Subscribe(unix.RTNLGRP_LINK)
	require.NoError(t, err)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		_, err := e.Receive()
		assert.ErrorIs(t, err, os.ErrClosed)
	})
	require.NoError(t, e.Close())
	waiting.Wait()
}

// TestAsk: before its answer is passed on, everything is that had happened by then.
func TestAsk(t *testing.T) {
	c := dial(t)
	e, err := rtnl.Subscribe(unix.RTNLGRP_LINK)
	require.NoError(t, err)
	var seen atomic.Int64 // the kernel may notify of more of the link at any time
	var receiving sync.WaitGroup
	receiving.Go(func() {
		for {
			msgs, err := e.Receive()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			for _, m := range msgs {
				if m.Header.Sequence == 0 { // of no request on this socket
					seen.Add(1)
				}
			}
			e.Pass(msgs)
		}
	})
	t.Cleanup(func() { _, _ = c.Do(setLoopback(unix.IFF_UP)) })
	for n := range int64(20) {
		flags := uint32(0)
		if n%2 == 1 {
			flags = unix.IFF_UP
		}
		_, err := c.Do(setLoopback(flags))
		require.NoError(t, err)
		answered, err := e.Ask()
		require.NoError(t, err)
		<-answered
		assert.Greater(t, seen.Load(), n)
	}
	require.NoError(t, e.Close())
	receiving.Wait()
}
