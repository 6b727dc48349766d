package nflog

import (
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
)

// FuzzParse: whatever a message has in it, it is a packet with all parts, or none.
func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 7, 8, 0, 4, 0, 0, 0, 0, 1, 16, 0, 8, 0, 0, 6, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 5, 0, 9, 0, 0x45, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 7, 8, 0, 8, 0, 0, 6, 0, 0})
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := parse(netlink.Message{Header: netlink.Header{Type: message}, Data: data})
		if ok {
			assert.Positive(t, p.Index)
			assert.NotEmpty(t, p.Data)
		}
		_, ok = parse(netlink.Message{Header: netlink.Header{Type: command}, Data: data})
		assert.False(t, ok)
	})
}
