package kernel

import (
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
)

// A guest that was started sends frames before it has its addresses (for its IPv6
// link-local address, to begin with), and its port has carrier before that. So only
// the first frame from one of its addresses shows that it answers. Then the
// dataplane makes the addresses of a guest of unknown MAC neighbours: the kernel
// may have asked for them in vain for an earlier packet, and asks again only after
// a second.

// presenceDetection waits for the first frame of a port's guest
// ([fabric.Port.Listen]). It belongs to the [movingPorts] that have it.
type presenceDetection struct {
	index    int32
	port     fabric.Port
	listener *capture.Listener // nil: the guest was heard, or the wait is over
	over     chan struct{}     // closed to end the asking; nil if nobody asks
}

// listen begins to listen for the guest of a port, on the link that the port is now.
// here says that the guest was there before this process, so that nobody waits for
// it.
func (m *moves) listen(p fabric.Port, index int32, here bool) error {
	open, done := m.open()
	var was *capture.Listener
	defer func() {
		done()
		closeListener(was)
	}()
	s := open.presences[p.Name]
	if open.closed || s != nil && s.index == index && (s.listener == nil || slices.Equal(s.port.NIC.Prefixes(), p.NIC.Prefixes())) {
		return nil
	}
	if s != nil {
		was = s.end()
	}
	s = &presenceDetection{index: index, port: p}
	open.presences[p.Name] = s
	if here {
		return nil
	}
	return m.openFor(p.Name, s)
}

// openFor opens a frame listener for s, and has it run.
func (m *moves) openFor(name string, s *presenceDetection) (err error) {
	guest := s.port.NIC
	theirs := func(frame []byte) bool {
		is := capture.SpeaksFrom(frame, guest)
		if is {
			guest.MAC = fabric.MAC(frame[6:12])
		}
		return is
	}
	s.listener, err = capture.Open(s.index, capture.Headers, theirs, func(e *capture.Listener) {
		if s.port.NIC.MAC.IsZero() {
			m.introduce(guest, e.Index)
		}
		_, done := m.open()
		mine := s.listener == e
		if mine {
			s.end()
		}
		done()
		if !mine {
			return
		}
		select {
		case m.heard <- name:
		case <-e.Closed():
		default:
			m.changed()
		}
	})
	if err == nil {
		m.running.Go(s.listener.Run)
	}
	return err
}

// end ends the detection, and returns its frame listener for the caller to close.
func (s *presenceDetection) end() *capture.Listener {
	e := s.listener
	s.listener = nil
	s.stopAsking()
	return e
}

// stopAsking ends the asking.
func (s *presenceDetection) stopAsking() {
	if s.over != nil {
		close(s.over)
		s.over = nil
	}
}

// closeListener closes a frame listener, if there is one. The caller has not opened
// the moves: the listener's callback, for which Close waits, may wait for them.
func closeListener(e *capture.Listener) {
	if e != nil {
		e.Close()
	}
}

// carrier handles a change of a link's carrier. With carrier, it asks a guest that
// was not heard yet; without, the guest must be heard again.
func (m *moves) carrier(name string, index int32, up bool) {
	open, done := m.open()
	defer done()
	s := open.presences[name]
	switch {
	case open.closed || s == nil || s.index != index:
	case up:
		m.ask(s)
	default:
		s.stopAsking()
		if s.listener == nil {
			_ = m.openFor(name, s) // an error says that the link has gone; without a frame listener nobody waits
		}
	}
}

// ask asks a guest that has carrier for its addresses, until it is heard or the
// wait is over.
func (m *moves) ask(s *presenceDetection) {
	if s.listener == nil || s.over != nil {
		return
	}
	e, over := s.listener, make(chan struct{})
	s.over = over
	m.running.Go(func() {
		if !e.Ask(capture.Questions(s.port), over) {
			return
		}
		_, done := m.open()
		last := s.listener == e && s.over == over
		if last {
			s.end()
		}
		done()
		if last {
			e.Close()
			m.changed()
		}
	})
}

// silent reports whether the guest of a port with carrier was not heard yet. It
// then begins to ask the guest.
func (m *moves) silent(name string, index int32) bool {
	open, done := m.open()
	defer done()
	s := open.presences[name]
	if s == nil || s.index != index || s.listener == nil {
		return false
	}
	m.ask(s)
	return true
}
