package etcd

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"strings"

	"github.com/vmfabric/vmfabric/fabric/internal/packed"
)

// revisions has the revision of each key, packed: there are as many as addresses and
// guests of a whole cluster.
type revisions struct {
	keys keys
	all  packed.Map
}

// The first byte of a key as it is kept, below the root.
const (
	asText byte = iota
	asAddress
	asUUID // the text before it, and the UUID
)

// pack gives a key as it is kept.
func (r *revisions) pack(key string) []byte {
	if p, err := r.keys.prefixOf(key); err == nil {
		return append(append([]byte{asAddress}, p.Addr().AsSlice()...), byte(p.Bits()))
	}
	text := strings.TrimPrefix(key, r.keys.root)
	if before, uuid, there := packed.CutUUID(text); there {
		return append(append([]byte{asUUID}, before...), uuid[:]...)
	}
	return append([]byte{asText}, text...)
}

// unpack gives the key that is kept so.
func (r *revisions) unpack(b []byte) string {
	kind, b := b[0], b[1:]
	switch kind {
	case asAddress:
		at := len(b) - 1
		addr, _ := netip.AddrFromSlice(b[:at])
		return r.keys.address(netip.PrefixFrom(addr, int(b[at])))
	case asUUID:
		at := len(b) - 16
		return r.keys.root + string(b[:at]) + packed.UUIDText([16]byte(b[at:]))
	}
	return r.keys.root + string(b)
}

// of gives the revision of a key; zero: it is absent.
func (r *revisions) of(key string) int64 {
	value, _ := r.all.Get(r.pack(key))
	rev, _ := binary.Uvarint(value)
	return int64(rev)
}

func (r *revisions) set(key string, rev int64) {
	r.all.Put(r.pack(key), binary.AppendUvarint(nil, uint64(rev)))
}

func (r *revisions) delete(key string) { r.all.Delete(r.pack(key)) }

func (r *revisions) clear() { r.all = packed.Map{} }

// each iterates over the keys as they are kept, and their revisions.
func (r *revisions) each() iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for key, value := range r.all.All() {
			if rev, _ := binary.Uvarint(value); !yield(key, int64(rev)) {
				return
			}
		}
	}
}
