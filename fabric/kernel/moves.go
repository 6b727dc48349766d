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

// moves has the listeners and replay buffers that a dataplane has open for guests
// that move. Its rtnetlink socket is its own, so that a diversion waits for no
// other request.
type moves struct {
	rtnl      *socket
	heard     chan string
	changed   func()                         // the wait for a guest's first frame ended without one, or nobody takes its name
	introduce func(nic fabric.NIC, at int32) // the first frame of a guest of unknown MAC came; nic has the MAC
	diverting atomic.Bool                    // the rules of diversions are there, or must be

	asking sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	listeners map[string]*capture.Listener
	presences map[string]*presenceDetection
	buffers   map[string]*capture.Buffer
	sender    *capture.Sender
}

// heardAtOnce is how many names of ports the channel of [fabric.Mover.Heard] holds.
// The listeners of other incoming ports wait until there is room.
const heardAtOnce = 64

func newMoves(changed func(), introduce func(fabric.NIC, int32)) (*moves, error) {
	r, err := dial()
	if err != nil {
		return nil, err
	}
	return &moves{
		rtnl: r, heard: make(chan string, heardAtOnce), changed: changed, introduce: introduce,
		listeners: map[string]*capture.Listener{}, presences: map[string]*presenceDetection{}, buffers: map[string]*capture.Buffer{},
	}, nil
}

func (m *moves) close() error {
	m.mu.Lock()
	m.closed = true
	listeners, buffers, sender := slices.Collect(maps.Values(m.listeners)), m.buffers, m.sender
	for _, s := range m.presences {
		listeners = append(listeners, s.end())
	}
	m.listeners, m.buffers, m.sender = map[string]*capture.Listener{}, map[string]*capture.Buffer{}, nil
	clear(m.presences)
	m.mu.Unlock()
	for _, e := range listeners {
		closeListener(e)
	}
	m.asking.Wait()
	for _, r := range buffers {
		r.Close()
	}
	var err error
	if sender != nil {
		err = sender.Close()
	}
	return errors.Join(err, m.rtnl.Close())
}

// attend opens a listener for the guest of an incoming port, on the link that the
// port is now, and closes it once the port is not incoming. A replay buffer of the
// port follows it to a new link.
func (m *moves) attend(p fabric.Port, index int32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	var errs []error
	if r := m.buffers[p.Name]; r != nil && r.Index != index {
		r.Close()
		delete(m.buffers, p.Name)
		errs = append(errs, m.openBuffer(p.Name, index))
	}
	have := m.listeners[p.Name]
	if have != nil && (!p.Incoming || have.Index != index || have.MAC != p.NIC.MAC) {
		have.Close()
		delete(m.listeners, p.Name)
		have = nil
	}
	if have == nil && p.Incoming {
		e, err := capture.Listen(p.Name, index, p.NIC.MAC, m.heard)
		if err == nil {
			m.listeners[p.Name] = e
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// leave closes the listeners and the replay buffer of a removed port.
func (m *moves) leave(name string) {
	m.mu.Lock()
	if e := m.listeners[name]; e != nil {
		e.Close()
		delete(m.listeners, name)
	}
	var listening *capture.Listener
	if s := m.presences[name]; s != nil {
		listening = s.end()
		delete(m.presences, name)
	}
	m.dropBuffer(name)
	m.mu.Unlock()
	closeListener(listening)
}

func (m *moves) record(name string, index int32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.buffers[name]; m.closed || r != nil && r.Index == index {
		return nil
	}
	m.dropBuffer(name)
	return m.openBuffer(name, index)
}

// openBuffer opens a replay buffer. The caller holds m.mu.
func (m *moves) openBuffer(name string, index int32) error {
	r, err := capture.Record(index)
	if err == nil {
		m.buffers[name] = r
	}
	return err
}

func (m *moves) closeBuffer(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropBuffer(name)
}

func (m *moves) dropBuffer(name string) {
	if r := m.buffers[name]; r != nil {
		r.Close()
		delete(m.buffers, name)
	}
}

// replayBuffers returns the replay buffers of the ports that have one.
func (m *moves) replayBuffers(ports []fabric.Port) []*capture.Buffer {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*capture.Buffer
	for _, p := range ports {
		if r := m.buffers[p.Name]; r != nil {
			all = append(all, r)
		}
	}
	return all
}

// openSender returns the socket for sending. It opens it at the first call. Once
// the moves are closed, it returns nil if none was open.
func (m *moves) openSender() (*capture.Sender, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.sender == nil && !m.closed {
		m.sender, err = capture.NewSender()
	}
	return m.sender, err
}
