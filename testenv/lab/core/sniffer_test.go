package core

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestEcho: echo messages of both families are told apart from all else, in frames
// that may be cut anywhere.
func TestEcho(t *testing.T) {
	t.Parallel()
	four := func(protocol, kind byte) []byte {
		data := make([]byte, 14+24+8) // with an option in the IP header
		data[12], data[14], data[14+9], data[14+24] = 8, 0x46, protocol, kind
		copy(data[14+24+4:], []byte{0xbe, 0xef, 1, 2})
		return data
	}
	six := func(protocol, kind byte) []byte {
		data := make([]byte, 14+40+8)
		data[12], data[13], data[14], data[14+6], data[14+40] = 0x86, 0xdd, 0x60, protocol, kind
		copy(data[14+40+4:], []byte{0xbe, 0xef, 1, 2})
		return data
	}
	request, reply := Echo{ID: 0xbeef, Seq: 0x102}, Echo{Reply: true, ID: 0xbeef, Seq: 0x102}
	for _, c := range []struct {
		data []byte
		want Echo
		ok   bool
	}{
		{four(1, 8), request, true},
		{four(1, 0), reply, true},
		{six(58, 128), request, true},
		{six(58, 129), reply, true},
		{four(1, 3), Echo{}, false},
		{four(17, 8), Echo{}, false},
		{four(58, 128), Echo{}, false},
		{six(1, 8), Echo{}, false},
		{six(58, 135), Echo{}, false},
	} {
		got, ok := Frame{Data: c.data}.Echo()
		assert.Equal(t, c.want, got)
		assert.Equal(t, c.ok, ok)
		for n := range len(c.data) {
			_, ok := Frame{Data: c.data[:n]}.Echo()
			assert.False(t, ok, "cut to %d bytes", n)
		}
	}
}
