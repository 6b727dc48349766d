package allocator

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/packed"
)

// rows has the allocations by their prefixes, and the guests that have some. A node keeps
// those of a whole cluster, so they are packed: an allocation of a guest with a UUID takes
// some 70 bytes, and what a guest has 30 more.
type rows struct {
	all    packed.Map // allocations by prefix
	guests packed.Map // the prefixes of each guest, not those that it gave back
	owners packed.Map // of guests, where they are kept apart from the allocations
	words  words
}

// words are texts that many allocations have, such as the names of nodes.
type words struct {
	number map[string]uint64
	texts  []string
}

func (w *words) of(text string) uint64 {
	n, known := w.number[text]
	if !known {
		if w.number == nil {
			w.number = map[string]uint64{}
		}
		n = uint64(len(w.texts))
		w.number[text], w.texts = n, append(w.texts, text)
	}
	return n
}

// prefixKey gives the key of a prefix. The keys are in the order of the prefixes.
func prefixKey(b []byte, p netip.Prefix) []byte {
	if a := p.Addr(); a.Is4() {
		is := a.As4()
		b = append(append(b, 4), is[:]...)
	} else {
		is := a.As16()
		b = append(append(b, 16), is[:]...)
	}
	return append(b, byte(p.Bits()))
}

// readPrefix reads the first key of a prefix, and gives the rest.
func readPrefix(b []byte) (p netip.Prefix, rest []byte) {
	n := int(b[0])
	a, _ := netip.AddrFromSlice(b[1 : 1+n])
	return netip.PrefixFrom(a, int(b[1+n])), b[2+n:]
}

// identityKey gives the key of a guest. A UUID is in it as a number.
func (r *rows) identityKey(b []byte, id fabric.Identity) []byte {
	source, uuid, there := packed.CutUUID(string(id))
	if !there {
		return append(append(b, 0), id...)
	}
	return append(binary.AppendUvarint(b, 1+r.words.of(source)), uuid[:]...)
}

// identity reads the key of a guest.
func (r *rows) identity(b []byte) fabric.Identity {
	source, n := binary.Uvarint(b)
	if source == 0 {
		return fabric.Identity(b[n:])
	}
	return fabric.Identity(r.words.texts[source-1] + packed.UUIDText([16]byte(b[n:])))
}

// The bits of a row's first byte.
const (
	isDynamic = 1 << iota
	isReserved
	hasUntil
	hasNoAddress
	hasFlaw // in the place of a note
)

func (r *rows) encode(b []byte, a fabric.Allocation) []byte {
	var bits byte
	if a.Dynamic {
		bits |= isDynamic
	}
	if a.Reserved {
		bits |= isReserved
	}
	if !a.Until.IsZero() {
		bits |= hasUntil
	}
	if a.NoAddress {
		bits |= hasNoAddress
	}
	last := a.Note
	if a.Flaw != "" {
		bits |= hasFlaw
		last = a.Flaw
	}
	b = append(b, bits)
	for _, n := range []uint64{r.words.of(string(a.State)), r.words.of(a.Pool), r.words.of(a.Node), a.Epoch} {
		b = binary.AppendUvarint(b, n)
	}
	for _, n := range []int64{int64(a.NIC), int64(a.N), a.Since.Unix(), int64(a.Since.Nanosecond())} {
		b = binary.AppendVarint(b, n)
	}
	if !a.Until.IsZero() {
		b = binary.AppendVarint(binary.AppendVarint(b, a.Until.Unix()), int64(a.Until.Nanosecond()))
	}
	for _, text := range [][]byte{r.identityKey(nil, a.Guest), []byte(a.VM)} {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	return append(b, last...)
}

func (r *rows) decode(key, b []byte) (a fabric.Allocation) {
	bits := b[0]
	b = b[1:]
	unsigned := func() uint64 {
		n, size := binary.Uvarint(b)
		b = b[size:]
		return n
	}
	signed := func() int64 {
		n, size := binary.Varint(b)
		b = b[size:]
		return n
	}
	text := func() (s []byte) {
		n := unsigned()
		s, b = b[:n], b[n:]
		return s
	}
	a.Prefix, _ = readPrefix(key)
	a.Dynamic, a.Reserved, a.NoAddress = bits&isDynamic != 0, bits&isReserved != 0, bits&hasNoAddress != 0
	a.State = fabric.AllocationState(r.words.texts[unsigned()])
	a.Pool, a.Node, a.Epoch = r.words.texts[unsigned()], r.words.texts[unsigned()], unsigned()
	a.NIC, a.N = int(signed()), int(signed())
	a.Since = time.Unix(signed(), signed()).UTC()
	if bits&hasUntil != 0 {
		a.Until = time.Unix(signed(), signed()).UTC()
	}
	a.Guest, a.VM = r.identity(text()), string(text())
	if bits&hasFlaw != 0 {
		a.Flaw = string(b)
	} else {
		a.Note = string(b)
	}
	return a
}

// get gives the allocation of a prefix, if there is one.
func (r *rows) get(p netip.Prefix) (a fabric.Allocation, there bool) {
	key := prefixKey(nil, p)
	value, there := r.all.Get(key)
	if !there {
		return a, false
	}
	return r.decode(key, value), true
}

func (r *rows) put(a fabric.Allocation) {
	r.all.Put(prefixKey(nil, a.Prefix), r.encode(nil, a))
	if a.State == fabric.Allocated {
		r.own(a.Guest, a.Prefix, true)
	}
}

func (r *rows) delete(a fabric.Allocation) {
	r.all.Delete(prefixKey(nil, a.Prefix))
	r.own(a.Guest, a.Prefix, false)
}

// own says whether a prefix is a guest's.
func (r *rows) own(guest fabric.Identity, p netip.Prefix, is bool) {
	id, prefix := r.identityKey(nil, guest), prefixKey(nil, p)
	had, _ := r.guests.Get(id)
	has := make([]byte, 0, len(had)+len(prefix))
	for rest := had; len(rest) > 0; {
		_, after := readPrefix(rest)
		if one := rest[:len(rest)-len(after)]; !bytes.Equal(one, prefix) {
			has = append(has, one...)
		}
		rest = after
	}
	if is {
		has = append(has, prefix...)
	}
	if len(has) > 0 {
		r.guests.Put(id, has)
	} else {
		r.guests.Delete(id)
	}
}

// of lists the prefixes of a guest in their order.
func (r *rows) of(guest fabric.Identity) (all []netip.Prefix) {
	rest, _ := r.guests.Get(r.identityKey(nil, guest))
	for len(rest) > 0 {
		var p netip.Prefix
		p, rest = readPrefix(rest)
		all = append(all, p)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// values iterates over the allocations in the order of their prefixes.
func (r *rows) values() iter.Seq[fabric.Allocation] {
	return func(yield func(fabric.Allocation) bool) {
		for key, value := range r.all.All() {
			if !yield(r.decode(key, value)) {
				return
			}
		}
	}
}

// owner gives the owner of a guest that was set.
func (r *rows) owner(guest fabric.Identity) (is fabric.Owner, known bool) {
	value, known := r.owners.Get(r.identityKey(nil, guest))
	if !known {
		return is, false
	}
	node, n := binary.Uvarint(value)
	is.Node = r.words.texts[node]
	is.Epoch, _ = binary.Uvarint(value[n:])
	return is, true
}

// setOwner sets the owner of a guest; the zero value: nobody set it.
func (r *rows) setOwner(guest fabric.Identity, is fabric.Owner) {
	id := r.identityKey(nil, guest)
	if is == (fabric.Owner{}) {
		r.owners.Delete(id)
		return
	}
	r.owners.Put(id, binary.AppendUvarint(binary.AppendUvarint(nil, r.words.of(is.Node)), is.Epoch))
}
