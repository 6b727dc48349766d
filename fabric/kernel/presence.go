package kernel

import (
	"slices"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
)

// A guest that was started sends frames before it has its addresses (IPv6's own
// of its link, to begin with), and its port has carrier before that. So what
// shows that it answers is the first frame that comes from one of its addresses.
// Then its addresses are made neighbours: a packet that came before was asked for
// in vain, and the kernel asks again only after a second.

// presenceDetection is that of a port whose guest is listened for ([fabric.Port.Listen]).
type presenceDetection struct {
	index int32
	port  fabric.Port
	ear   *capture.Listener // nil: it was heard, or waited for long enough
	over  chan struct{}     // closed when nobody asks any more; nil without carrier
}

// heed begins to listen for the guest of a port on the link that the port is
// now. here: it was there before this process, and nobody is to wait for it.
func (m *moves) heed(p fabric.Port, index int32, here bool) error {
	m.mu.Lock()
	var was *capture.Listener
	defer func() {
		m.mu.Unlock()
		closeListener(was)
	}()
	s := m.silences[p.Name]
	if m.closed || s != nil && s.index == index && (s.ear == nil || slices.Equal(s.port.NIC.Prefixes(), p.NIC.Prefixes())) {
		return nil
	}
	if s != nil {
		was = s.end()
	}
	s = &presenceDetection{index: index, port: p}
	m.silences[p.Name] = s
	if here {
		return nil
	}
	return m.openFor(p.Name, s)
}

// openFor listens anew. m.mu is held.
func (m *moves) openFor(name string, s *presenceDetection) (err error) {
	guest := s.port.NIC
	theirs := func(frame []byte) bool {
		is := capture.SpeaksFrom(frame, guest)
		if is {
			guest.MAC = fabric.MAC(frame[6:12])
		}
		return is
	}
	s.ear, err = capture.Open(s.index, capture.Headers, theirs, func(e *capture.Listener) {
		if s.port.NIC.MAC.IsZero() {
			m.introduce(guest, e.Index)
		}
		m.mu.Lock()
		mine := s.ear == e
		if mine {
			s.end()
		}
		m.mu.Unlock()
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
	return err
}

// end gives the frame listener that is to be closed. moves.mu is held.
func (s *presenceDetection) end() *capture.Listener {
	e := s.ear
	s.ear = nil
	s.hold()
	return e
}

// hold has nobody ask any more. moves.mu is held.
func (s *presenceDetection) hold() {
	if s.over != nil {
		close(s.over)
		s.over = nil
	}
}

// closeListener closes a frame listener, if there is one. moves.mu is not held: what the frame listener has
// heard may wait for it.
func closeListener(e *capture.Listener) {
	if e != nil {
		e.Close()
	}
}

// carrier takes up that a link got carrier or lost it: then the guest is to be
// heard again.
func (m *moves) carrier(name string, index int32, up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.silences[name]
	switch {
	case m.closed || s == nil || s.index != index:
	case up:
		m.ask(s)
	default:
		s.hold()
		if s.ear == nil {
			_ = m.openFor(name, s) // the link has gone meanwhile; without a frame listener nobody waits
		}
	}
}

// ask asks a guest that has carrier for its addresses, until it is heard or for
// long enough. m.mu is held.
func (m *moves) ask(s *presenceDetection) {
	if s.ear == nil || s.over != nil {
		return
	}
	e, over := s.ear, make(chan struct{})
	s.over = over
	m.asking.Go(func() {
		if !e.Ask(capture.Questions(s.port), over) {
			return
		}
		m.mu.Lock()
		last := s.ear == e && s.over == over
		if last {
			s.end()
		}
		m.mu.Unlock()
		if last {
			e.Close()
			m.changed()
		}
	})
}

// silent reports whether the guest of a port that has carrier is still to be heard.
func (m *moves) silent(name string, index int32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.silences[name]
	if s == nil || s.index != index || s.ear == nil {
		return false
	}
	m.ask(s)
	return true
}
