package histories

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/vmfabric/vmfabric/fabric"
)

// expires is the end of a quarantine, which nobody asks for.
const expires = "expires"

// asked and answered are an operation in the words of the model.
type asked struct {
	kind  string
	guest int // zero: the place counts
	place int // -1: an address of the pool, or all that the guest has
	now   bool
	full  bool // etcd may have had no space for a quarantine
}

type answered struct {
	place   int // what was given
	refused fabric.Reason
	holder  int
	ended   mask  // what was given back
	kept    mask  // what of that is quarantined
	is      state // what there is
}

// mask is a set of places.
type mask uint16

func (m mask) with(place int, in bool) mask {
	if !in {
		return m &^ (1 << place)
	}
	return m | 1<<place
}

func (m mask) has(place int) bool { return m&(1<<place) != 0 }

// asked gives the operation of a call; the answer to it is answered's.
func (e entry) asked() asked {
	a := asked{kind: e.Kind, guest: e.Guest, place: -1, now: e.Now}
	if e.Prefix.IsValid() {
		a.place = place(e.Prefix)
	}
	return a
}

// answered gives the answer of a call. What was given back is quarantined unless it was
// asked for otherwise.
func (c call) answered() answered {
	a := answered{place: -1, refused: c.answer.Refused, holder: c.answer.Holder}
	for _, is := range c.answer.Got {
		switch n := place(is.Prefix); c.Kind {
		case allocate:
			a.place = n
		case look:
			a.is[n] = slot{guest: int8(guestOf(is.Guest)), kept: is.State == fabric.Quarantined, dynamic: is.Dynamic}
		case release:
			a.ended = a.ended.with(n, true)
			a.kept = a.kept.with(n, !c.Now && is.State == fabric.Allocated)
		}
	}
	return a
}

// slot is what an address has: nothing, or a guest, which has it or gave it back.
type slot struct {
	guest   int8
	kept    bool // it is quarantined
	dynamic bool // the registry chose it
}

// state is all that the registry knows. What else it is to know, such as who runs a guest,
// goes here.
type state [16]slot

// model is the registry as one machine that does one thing after the other.
var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) { return s.(state).step(in.(asked), out.(answered)) },
	DescribeOperation: func(in, out any) string {
		return describe(in.(asked), out.(answered))
	},
	DescribeState: func(s any) string { return s.(state).String() },
}

func (s state) step(in asked, out answered) (bool, state) {
	switch in.kind {
	case allocate:
		return s.allocate(in, out)
	case release:
		return s.release(in, out)
	case look:
		return s == out.is, s
	}
	is := s[in.place] // expires
	s[in.place] = slot{}
	return is.kept, s
}

// pooled is how many of the places are of the pool.
const pooled = 6

func (s state) allocate(in asked, out answered) (bool, state) {
	g := int8(in.guest)
	may, full := s.may(in)
	switch out.refused {
	case "":
		if out.place < 0 || !may.has(out.place) {
			return false, s
		}
	case fabric.PoolFull:
		return full, s
	case fabric.AddressHeld:
		return in.place >= 0 && may == 0 && int(s[in.place].guest) == out.holder, s
	default:
		return false, s
	}
	for n, is := range s {
		if is.guest == g && !is.kept && n != out.place {
			s[n].kept = true // the guest does not ask for it any more
		}
	}
	s[out.place] = slot{guest: g, dynamic: in.place < 0}
	return true, s
}

// may gives the places of which a guest gets one, and says whether it gets none because
// the pool is full.
func (s state) may(in asked) (may mask, full bool) {
	g := int8(in.guest)
	if in.place >= 0 {
		is := s[in.place]
		return may.with(in.place, is.guest == 0 || is.guest == g || is.kept), false
	}
	var has, had, free mask
	for n, is := range s {
		switch {
		case is.guest == g && is.dynamic && !is.kept:
			has = has.with(n, true)
		case is.guest == g && is.dynamic:
			had = had.with(n, true)
		case is.guest == 0 && n < pooled:
			free = free.with(n, true)
		}
	}
	switch {
	case has != 0:
		return has, false
	case had != 0:
		return had, false
	}
	return free, free == 0
}

func (s state) release(in asked, out answered) (bool, state) {
	for n, is := range s {
		ends := in.guest != 0 && int(is.guest) == in.guest && !is.kept ||
			in.guest == 0 && n == in.place && is.guest != 0 && (!is.kept || in.now)
		switch {
		case ends != out.ended.has(n):
			return false, s
		case !ends:
		case out.kept.has(n) && in.now, !out.kept.has(n) && !in.now && !in.full:
			return false, s
		case out.kept.has(n):
			s[n].kept = true
		default:
			s[n] = slot{}
		}
	}
	return true, s
}

func (s state) String() string {
	var b strings.Builder
	for n, is := range s {
		if is.guest != 0 {
			fmt.Fprintf(&b, "%s: guest %d", places[n].Addr(), is.guest)
			if is.kept {
				b.WriteString(" (quarantined)")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func describe(in asked, out answered) string {
	var b strings.Builder
	b.WriteString(in.kind)
	if in.now {
		b.WriteString(" at once")
	}
	if in.guest != 0 {
		fmt.Fprintf(&b, " guest %d", in.guest)
	}
	if in.place >= 0 {
		fmt.Fprintf(&b, " %s", places[in.place].Addr())
	}
	switch {
	case in.kind == expires:
	case out.refused != "":
		fmt.Fprintf(&b, ": %s %d", out.refused, out.holder)
	case in.kind == allocate && out.place >= 0:
		fmt.Fprintf(&b, ": %s", places[out.place].Addr())
	default:
		b.WriteString(":")
		for n, p := range places {
			if out.ended.has(n) {
				fmt.Fprintf(&b, " %s", p.Addr())
			}
			if out.kept.has(n) {
				b.WriteString(" (quarantined)")
			}
		}
	}
	return b.String()
}
