package kernel

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
)

// moves is what a dataplane has open for guests that move: who listens to which
// port, and sockets of its own, so that a diversion waits for no other request.
type moves struct {
	rtnl      *socket
	heard     chan string
	changed   func()                         // a guest that was to be heard is not waited for any more
	introduce func(nic fabric.NIC, at int32) // a guest was heard, with this MAC address
	diverting atomic.Bool                    // the rules of diversions are needed

	asking sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	ears      map[string]*capture.Listener
	silences  map[string]*presenceDetection
	recorders map[string]*capture.Buffer
	sender    *capture.Sender
}

// heardAtOnce is how many ports wait in [fabric.Mover.Heard] for somebody to
// take their names; the others' listeners keep theirs until there is room.
const heardAtOnce = 64

func newMoves(changed func(), introduce func(fabric.NIC, int32)) (*moves, error) {
	r, err := dial()
	if err != nil {
		return nil, err
	}
	return &moves{
		rtnl: r, heard: make(chan string, heardAtOnce), changed: changed, introduce: introduce,
		ears: map[string]*capture.Listener{}, silences: map[string]*presenceDetection{}, recorders: map[string]*capture.Buffer{},
	}, nil
}

func (m *moves) close() error {
	m.mu.Lock()
	m.closed = true
	ears, recorders, sender := slices.Collect(maps.Values(m.ears)), m.recorders, m.sender
	for _, s := range m.silences {
		ears = append(ears, s.end())
	}
	m.ears, m.recorders, m.sender = map[string]*capture.Listener{}, map[string]*capture.Buffer{}, nil
	clear(m.silences)
	m.mu.Unlock()
	for _, e := range ears {
		closeListener(e)
	}
	m.asking.Wait()
	for _, r := range recorders {
		r.Close()
	}
	var err error
	if sender != nil {
		err = sender.Close()
	}
	return errors.Join(err, m.rtnl.Close())
}

// attend listens for the guest of a port that is incoming, on the link that the
// port is now, and no more once it is not. A replay buffer of the port follows it to
// a new link.
func (m *moves) attend(p fabric.Port, index int32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	var errs []error
	if r := m.recorders[p.Name]; r != nil && r.Index != index {
		r.Close()
		delete(m.recorders, p.Name)
		errs = append(errs, m.startRecording(p.Name, index))
	}
	have := m.ears[p.Name]
	if have != nil && (!p.Incoming || have.Index != index || have.MAC != p.NIC.MAC) {
		have.Close()
		delete(m.ears, p.Name)
		have = nil
	}
	if have == nil && p.Incoming {
		e, err := capture.Listen(p.Name, index, p.NIC.MAC, m.heard)
		if err == nil {
			m.ears[p.Name] = e
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// leave ends all that is about a port which is removed.
func (m *moves) leave(name string) {
	m.mu.Lock()
	if e := m.ears[name]; e != nil {
		e.Close()
		delete(m.ears, name)
	}
	var listening *capture.Listener
	if s := m.silences[name]; s != nil {
		listening = s.end()
		delete(m.silences, name)
	}
	m.forgetRecorder(name)
	m.mu.Unlock()
	closeListener(listening)
}

func (m *moves) record(name string, index int32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.recorders[name]; m.closed || r != nil && r.Index == index {
		return nil
	}
	m.forgetRecorder(name)
	return m.startRecording(name, index)
}

// startRecording begins anew. m.mu is held.
func (m *moves) startRecording(name string, index int32) error {
	r, err := capture.Record(index)
	if err == nil {
		m.recorders[name] = r
	}
	return err
}

func (m *moves) stopRecording(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetRecorder(name)
}

func (m *moves) forgetRecorder(name string) {
	if r := m.recorders[name]; r != nil {
		r.Close()
		delete(m.recorders, name)
	}
}

// recording gives the recorders of those of the ports that are recorded.
func (m *moves) recording(ports []fabric.Port) []*capture.Buffer {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*capture.Buffer
	for _, p := range ports {
		if r := m.recorders[p.Name]; r != nil {
			all = append(all, r)
		}
	}
	return all
}

// openSender opens the socket for sending, if it is not open.
func (m *moves) openSender() (*capture.Sender, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.sender == nil && !m.closed {
		m.sender, err = capture.NewSender()
	}
	return m.sender, err
}
