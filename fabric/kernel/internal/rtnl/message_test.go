package rtnl

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAnswersThatWereGivenUp: what is left in the socket of an exchange that
// failed is not taken for the answer to the next one.
func TestAnswersThatWereGivenUp(t *testing.T) {
	c, err := Dial()
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	stray := Message(unix.RTM_GETLINK, 0, IfInfoMsg(1, 0, 0), nil)
	stray.Header.Sequence = 99
	require.NoError(t, unix.Sendto(c.requests.fd, encode(nil, stray), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	_, err = c.Do(Message(unix.RTM_GETLINK, 0, IfInfoMsg(4711, 0, 0), nil))
	assert.ErrorIs(t, err, unix.ENODEV)
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	attr := func(text string) []byte {
		ae := netlink.NewAttributeEncoder()
		ae.String(unix.NLMSGERR_ATTR_MSG, text)
		b, err := ae.Encode()
		require.NoError(t, err)
		return b
	}
	no := binary.NativeEndian.AppendUint32(nil, uint32(0xffffffff&-int64(unix.EINVAL)))
	request := encode(nil, netlink.Message{Data: make([]byte, 20)})
	for name, test := range map[string]struct {
		flags netlink.HeaderFlags
		data  []byte
		want  string
	}{
		"no error":                  {0, make([]byte, 4), ""},
		"without a word":            {0, append(slices.Clone(no), request...), "invalid argument"},
		"in words":                  {0x200, slices.Concat(no, request, attr("no such thing")), "invalid argument (no such thing)"},
		"with the request's header": {0x300, slices.Concat(no, request[:16], attr("no such thing")), "invalid argument (no such thing)"},
		"cut off":                   {0x200, slices.Concat(no, request[:16]), "invalid argument"},
		"garbage":                   {0x200, append(slices.Clone(no), strings.Repeat("\xff", 40)...), "invalid argument"},
		"too short":                 {0, []byte{1}, ""},
	} {
		err := verdict(netlink.Message{Header: netlink.Header{Type: netlink.Error, Flags: test.flags}, Data: test.data})
		if test.want == "" {
			assert.NoError(t, err, name)
			continue
		}
		require.EqualError(t, err, test.want, name)
		assert.Equal(t, unix.EINVAL, Errno(err), name)
	}
}

// TestInterruptedListing tells a listing that is to be made anew from one that
// is whole.
func TestInterruptedListing(t *testing.T) {
	t.Parallel()
	var a Answer
	request := netlink.Message{Header: netlink.Header{Flags: netlink.Dump}}
	part := netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Multi}}
	assert.False(t, a.take(part, request))
	part.Header.Flags |= netlink.DumpInterrupted
	assert.False(t, a.take(part, request))
	assert.True(t, a.take(netlink.Message{Header: netlink.Header{Type: netlink.Done, Flags: netlink.Multi}, Data: make([]byte, 4)}, request))
	assert.True(t, a.interrupted)
	assert.Len(t, a.Messages, 2)
	assert.NoError(t, a.Err)
}

func FuzzParse(f *testing.F) {
	f.Add(encode(nil, Message(unix.RTM_GETLINK, 0, IfInfoMsg(1, 0, 0), nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		read := 0
		parse(b, func(m netlink.Message) {
			read += unix.SizeofNlMsghdr + len(m.Data)
			_ = verdict(m)
		})
		assert.LessOrEqual(t, read, len(b))
	})
}
