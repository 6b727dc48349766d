// Package paging decides how all keys below a root of an etcd are read, page by page, so
// that an etcd of which a thousand nodes read all at the same moment stays well. It asks
// nobody: its callers do.
package paging

import (
	"slices"
	"strings"
)

// Walk goes through all keys below a root in their order. For each page it gives a range
// with an end of its own, in which there are about as many keys as are to be read: for a
// page etcd looks at all keys of the range that it is asked for, and before 3.5 it keeps
// room for each of them, however few it may give. Where the end is to be, Walk concludes
// from the keys of the page before, which are numbers in hexadecimal or decimal digits, or
// end with them. With other keys it is as right, and asks more often.
type Walk struct {
	root, end string
	dense     []string
	from, to  string // of the next page
	wide      width
	empty     int // counts the pages since the last key
}

// New makes a walk. Many keys may begin with each of dense: there a page begins, which has
// keys that begin with it alone. Without any there are few keys, and the first page may have
// all.
func New(root string, dense []string) *Walk {
	w := &Walk{root: root, end: after(root), from: root, wide: width{len(root), 1}}
	if len(dense) == 0 {
		w.wide = all
	}
	for _, key := range dense {
		if key > root && key < w.end {
			w.dense = append(w.dense, key)
		}
	}
	slices.Sort(w.dense)
	w.dense = slices.Compact(w.dense)
	return w
}

// Page gives the range of the next page, from the first key to the one before end; more
// is false when all was read.
func (w *Walk) Page() (from, end string, more bool) {
	if w.from >= w.end {
		return "", "", false
	}
	w.to = min(w.end, w.wide.ahead(w.from, len(w.root)))
	if next, _ := slices.BinarySearch(w.dense, w.from+"\x00"); next < len(w.dense) {
		w.to = min(w.to, w.dense[next])
	}
	return w.from, w.to, true
}

// Read takes the first and the last key of the page, how many it has, and whether its range
// has more of them. size is how many the next page is to have.
func (w *Walk) Read(first, last string, n int, more bool, size int) {
	if n > 0 {
		w.empty = 0
	}
	switch {
	case n == 0: // it may be far to the next one
		w.empty++
		w.from, w.wide.at = w.to, w.wide.at-1<<min(w.empty, 8)
	case more:
		w.from = last + "\x00"
		w.wide = between(first, last).scaled(size, n)
	default:
		w.from, w.wide = w.to, w.wide.scaled(min(size, base*n), n)
	}
	if _, begins := slices.BinarySearch(w.dense, w.from); begins {
		w.wide, w.empty = width{len(w.from) - 1, 1}, 0
	}
}

// width is how far it is from one key to another: their digits up to the one at an index
// differ by step, as numbers.
type width struct{ at, step int }

// all is more than any keys are apart that begin with one root.
var all = width{0, 1 << 20}

const (
	base   = 16
	digits = "0123456789abcdef"
	// mostStep is where a width is counted in the digit before.
	mostStep = base * base
)

// between gives the distance of two keys of which last is the later one.
func between(first, last string) width {
	at := 0
	for at < len(first) && at < len(last) && first[at] == last[at] {
		at++
	}
	w := width{at, 0}
	for ; w.at < min(len(first), len(last)) && w.step < mostStep; w.at++ {
		low, high := strings.IndexByte(digits, first[w.at]), strings.IndexByte(digits, last[w.at])
		if low < 0 || high < 0 {
			break
		}
		w.step = base*w.step + high - low
	}
	if w.step < 1 { // they differ by something else than digits
		return width{at, 1}
	}
	w.at--
	return w
}

// scaled gives a width by n/of as large.
func (w width) scaled(n, of int) width {
	w.at, w.step = w.at+2, max(1, w.step*base*base*n/of)
	for w.step >= mostStep {
		w.at, w.step = w.at-1, (w.step+base-1)/base
	}
	return w
}

// ahead gives a key that is so far behind another one, and differs from it behind the root.
func (w width) ahead(key string, root int) string {
	at := w.at
	if at < root {
		return after(key[:root])
	}
	b := []byte(key[:min(len(key), at+1)])
	for len(b) <= at {
		b = append(b, digits[0])
	}
	step := w.step
	for i := at; i >= root; i-- {
		digit := strings.IndexByte(digits, b[i])
		if digit < 0 && b[i] < 0xff { // the number began behind it
			b[i] = byte(min(int(b[i])+step, 0xff))
			return string(b[:i+1])
		}
		if digit < 0 {
			continue
		}
		if digit += step; digit < base {
			b[i] = digits[digit]
			return string(b)
		}
		b[i], step = digits[digit%base], digit/base
	}
	return after(key[:root])
}

// after gives the first key behind all that begin so.
func after(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return "\xff"
}
