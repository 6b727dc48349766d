package kernel

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// socket makes this package's requests to rtnetlink.
type socket struct {
	*rtnl.Conn
	withStats atomic.Bool // links are asked for with their statistics, see link
}

func dial() (*socket, error) {
	c, err := rtnl.Dial()
	return &socket{Conn: c}, err
}

func nativeUint16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func putUint16(b []byte, v uint16) { binary.NativeEndian.PutUint16(b, v) }
func putUint32(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }
