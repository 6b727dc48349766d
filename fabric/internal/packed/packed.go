// Package packed has a sorted map of short byte strings that takes little more memory
// than these. A node keeps in it what a whole cluster has.
package packed

import (
	"bytes"
	"encoding/binary"
	"iter"
	"slices"
	"sort"
)

// most is the size of a chunk, in bytes, at which it is split. A change moves half a
// chunk on the average; each chunk costs some 50 bytes beside its content.
const most = 4096

// Map is a sorted map. The zero value is empty. It is not safe for concurrent use. What
// it returns must not be changed, and holds until the next change.
type Map struct {
	chunks [][]byte // of pairs in the order of their keys; none is empty
	size   int
}

// Len counts the keys.
func (m *Map) Len() int { return m.size }

// Get gives the value of a key, if there is one.
func (m *Map) Get(key []byte) (value []byte, there bool) {
	c, from, to := m.find(key)
	if from == to {
		return nil, false
	}
	_, value, _ = first(m.chunks[c][from:])
	return value, true
}

// Put sets the value of a key.
func (m *Map) Put(key, value []byte) {
	c, from, to := m.find(key)
	if from == to {
		m.size++
	}
	if len(m.chunks) == 0 {
		m.chunks = append(m.chunks, nil)
	}
	var pair [256]byte
	m.replace(c, from, to, appendPair(pair[:0], key, value))
	if len(m.chunks[c]) > most {
		m.split(c)
	}
}

// Delete removes a key, if it is there.
func (m *Map) Delete(key []byte) {
	c, from, to := m.find(key)
	if from == to {
		return
	}
	m.size--
	if m.replace(c, from, to, nil); len(m.chunks[c]) == 0 {
		m.chunks = slices.Delete(m.chunks, c, c+1)
	}
}

// All iterates over the keys and values in the order of the keys.
func (m *Map) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		for _, chunk := range m.chunks {
			for len(chunk) > 0 {
				key, value, rest := first(chunk)
				if !yield(key, value) {
					return
				}
				chunk = rest
			}
		}
	}
}

// find gives the chunk where a key is, or would be, and its place there, which is empty
// if it is not.
func (m *Map) find(key []byte) (c, from, to int) {
	c = sort.Search(len(m.chunks), func(i int) bool {
		has, _, _ := first(m.chunks[i])
		return bytes.Compare(has, key) > 0
	})
	if c = max(0, c-1); c == len(m.chunks) {
		return 0, 0, 0
	}
	chunk := m.chunks[c]
	for rest := chunk; len(rest) > 0; {
		has, _, after := first(rest)
		from = len(chunk) - len(rest)
		switch bytes.Compare(has, key) {
		case 0:
			return c, from, len(chunk) - len(after)
		case 1:
			return c, from, from
		}
		rest = after
	}
	return c, len(chunk), len(chunk)
}

// replace replaces a part of a chunk.
func (m *Map) replace(c, from, to int, by []byte) {
	old := m.chunks[c]
	n := len(old) - (to - from) + len(by)
	if n > cap(old) {
		// What append would add for the next time is much where there are many chunks.
		grown := make([]byte, len(old), n+n/16)
		copy(grown, old)
		old = grown
	}
	tail := old[to:]
	chunk := old[:n]
	copy(chunk[from+len(by):], tail)
	copy(chunk[from:], by)
	m.chunks[c] = chunk
}

// split makes two chunks of one. The first keeps most of what came in order.
func (m *Map) split(c int) {
	chunk := m.chunks[c]
	at := 0
	for at < len(chunk)/2 {
		_, _, rest := first(chunk[at:])
		at = len(chunk) - len(rest)
	}
	if at == len(chunk) {
		return // one pair alone
	}
	m.chunks[c] = slices.Clip(slices.Clone(chunk[:at]))
	m.chunks = slices.Insert(m.chunks, c+1, slices.Clone(chunk[at:]))
}

// A pair is the lengths of key and value, and these.

func appendPair(b, key, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(append(b, key...), value...)
}

// first reads the first pair, and gives the rest.
func first(b []byte) (key, value, rest []byte) {
	k, n := binary.Uvarint(b)
	v, m := binary.Uvarint(b[n:])
	at := n + m
	end := at + int(k)
	return b[at:end:end], b[end : end+int(v) : end+int(v)], b[end+int(v):]
}
