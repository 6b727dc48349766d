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
	node  string // that acquires the guest
	over  uint64
	full  bool // etcd may have had no space for a quarantine
}

type answered struct {
	place   int // what was given
	refused fabric.Reason
	holder  int
	owner   fabric.Owner
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
	a := asked{kind: e.Kind, guest: e.Guest, place: -1, now: e.Now, node: nodeName(e.ID / 1_000_000), over: e.Over}
	if e.Prefix.IsValid() {
		a.place = place(e.Prefix)
	}
	return a
}

// answered gives the answer of a call. What was given back is quarantined unless it was
// asked for otherwise.
func (c call) answered() answered {
	a := answered{place: -1, refused: c.answer.Refused, holder: c.answer.Holder}
	if c.answer.Owner != nil {
		a.owner = *c.answer.Owner
	}
	for _, is := range c.answer.Got {
		switch n := place(is.Prefix); c.Kind {
		case allocate:
			a.place = n
		case look:
			a.is.has[n] = slot{guest: int8(guestOf(is.Guest)), kept: is.State == fabric.Quarantined, dynamic: is.Dynamic}
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

// state is all that the registry knows: who has the addresses, and who owns the guests.
type state struct {
	has    [16]slot
	owners [guests + 1]fabric.Owner
}

// model is the registry as one machine that does one thing after the other.
var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) { return s.(state).step(in.(asked), out.(answered)) },
	DescribeOperation: func(in, out any) string {
		return describe(in.(asked), out.(answered))
	},
	DescribeState: func(s any) string { return s.(state).String() },
}

func (s state) step(in asked, out answered) (ok bool, then state) {
	switch then = s; in.kind {
	case allocate:
		ok = then.allocate(in, out)
	case release:
		ok = then.release(in, out)
	case acquire:
		ok = then.acquire(in, out)
	case look:
		ok = s.has == out.is.has
	case expires:
		ok = s.has[in.place].kept
		then.has[in.place] = slot{}
	}
	if !ok {
		return false, s
	}
	for g := 1; g <= guests; g++ {
		if then.of(g) == 0 {
			then.owners[g] = fabric.Owner{} // a guest that has nothing has no owner
		}
	}
	return true, then
}

// of gives the places of the addresses that a guest has.
func (s *state) of(g int) (has mask) {
	for n, is := range s.has {
		if int(is.guest) == g && !is.kept {
			has = has.with(n, true)
		}
	}
	return has
}

func (s *state) acquire(in asked, out answered) bool {
	is, again := s.owners[in.guest], false
	if is.Node == in.node && is.Epoch > in.over {
		again = true
	}
	switch out.refused {
	case fabric.RuleBroken:
		return s.of(in.guest) == 0
	case notOver:
		return s.of(in.guest) != 0 && !again && is.Epoch != in.over && out.owner.Epoch == is.Epoch && (is.Epoch == 0 || out.owner == is)
	}
	s.owners[in.guest] = out.owner
	if again {
		return out.owner == is
	}
	return s.of(in.guest) != 0 && is.Epoch == in.over && out.owner.Node == in.node && out.owner.Epoch > is.Epoch
}

// pooled is how many of the places are of the pool.
const pooled = 6

func (s *state) allocate(in asked, out answered) bool {
	g := int8(in.guest)
	may, full := s.may(in)
	switch out.refused {
	case "":
		if out.place < 0 || !may.has(out.place) {
			return false
		}
	case fabric.PoolFull:
		return full
	case fabric.AddressHeld:
		return in.place >= 0 && may == 0 && int(s.has[in.place].guest) == out.holder
	default:
		return false
	}
	for n, is := range s.has {
		if is.guest == g && !is.kept && n != out.place {
			s.has[n].kept = true // the guest does not ask for it any more
		}
	}
	s.has[out.place] = slot{guest: g, dynamic: in.place < 0}
	return true
}

// may gives the places of which a guest gets one, and says whether it gets none because
// the pool is full.
func (s *state) may(in asked) (may mask, full bool) {
	g := int8(in.guest)
	if in.place >= 0 {
		is := s.has[in.place]
		return may.with(in.place, is.guest == 0 || is.guest == g || is.kept), false
	}
	var has, had, free mask
	for n, is := range s.has {
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
	case had != 0 && in.full: // what was given back then has no key that says so
		return had | free, false
	case had != 0:
		return had, false
	}
	return free, free == 0
}

func (s *state) release(in asked, out answered) bool {
	for n, is := range s.has {
		ends := in.guest != 0 && int(is.guest) == in.guest && !is.kept ||
			in.guest == 0 && n == in.place && is.guest != 0 && (!is.kept || in.now)
		switch {
		case ends != out.ended.has(n):
			return false
		case !ends:
		case out.kept.has(n) && in.now, !out.kept.has(n) && !in.now && !in.full:
			return false
		case out.kept.has(n):
			s.has[n].kept = true
		default:
			s.has[n] = slot{}
		}
	}
	return true
}

func (s state) String() string {
	var b strings.Builder
	for n, is := range s.has {
		if is.guest != 0 {
			fmt.Fprintf(&b, "%s: guest %d", places[n].Addr(), is.guest)
			if is.kept {
				b.WriteString(" (quarantined)")
			}
			fmt.Fprintf(&b, ", owner %v\n", s.owners[is.guest])
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
	case in.kind == acquire:
		fmt.Fprintf(&b, " for %s over %d: %s %v", in.node, in.over, out.refused, out.owner)
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
