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

	running sync.WaitGroup // the listeners, the buffers, and who asks guests

	mu    sync.Mutex
	ports movingPorts
}

// open locks what is open for the ports for the caller, until it calls done.
func (m *moves) open() (p *movingPorts, done func()) {
	m.mu.Lock()
	return &m.ports, m.mu.Unlock
}

// movingPorts has what is open for ports whose guests move, by the ports' names. A
// goroutine that has it, by [moves.open], has it alone.
type movingPorts struct {
	closed    bool
	listeners map[string]*capture.Listener
	presences map[string]*presenceDetection
	buffers   map[string]*capture.Buffer
	sender    *capture.Sender
}

func newMovingPorts() movingPorts {
	return movingPorts{
		listeners: map[string]*capture.Listener{}, presences: map[string]*presenceDetection{}, buffers: map[string]*capture.Buffer{},
	}
}

// heardAtOnce is how many names of ports the channel of [fabric.Dataplane.Heard] holds.
// The listeners of other incoming ports wait until there is room.
const heardAtOnce = 64

func newMoves(changed func(), introduce func(fabric.NIC, int32)) (*moves, error) {
	r, err := dial()
	if err != nil {
		return nil, err
	}
	return &moves{rtnl: r, heard: make(chan string, heardAtOnce), changed: changed, introduce: introduce, ports: newMovingPorts()}, nil
}

func (m *moves) close() error {
	p, done := m.open()
	last := *p
	*p = newMovingPorts()
	p.closed = true
	listeners := slices.Collect(maps.Values(last.listeners))
	for _, s := range last.presences {
		listeners = append(listeners, s.end())
	}
	done()
	for _, e := range listeners {
		closeListener(e)
	}
	for _, r := range last.buffers {
		r.Close()
	}
	m.running.Wait()
	var err error
	if last.sender != nil {
		err = last.sender.Close()
	}
	return errors.Join(err, m.rtnl.Close())
}

// attend opens a listener for the guest of an incoming port, on the link that the
// port is now, and closes it once the port is not incoming. A replay buffer of the
// port follows it to a new link.
func (m *moves) attend(p fabric.Port, index int32) error {
	var old *capture.Buffer
	defer func() { closeBuffer(old) }()
	open, done := m.open()
	defer done()
	if open.closed {
		return nil
	}
	var errs []error
	if r := open.buffers[p.Name]; r != nil && r.Index != index {
		old = open.takeBuffer(p.Name)
		errs = append(errs, m.startRecording(open, p.Name, index))
	}
	have := open.listeners[p.Name]
	if have != nil && (!p.Incoming || have.Index != index || have.MAC != p.NIC.MAC) {
		have.Close()
		delete(open.listeners, p.Name)
		have = nil
	}
	if have == nil && p.Incoming {
		e, err := capture.Listen(p.Name, index, p.NIC.MAC, m.heard)
		if err == nil {
			open.listeners[p.Name] = e
			m.running.Go(e.Run)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// leave closes the listeners and the replay buffer of a removed port.
func (m *moves) leave(name string) {
	open, done := m.open()
	if e := open.listeners[name]; e != nil {
		e.Close()
		delete(open.listeners, name)
	}
	var listening *capture.Listener
	if s := open.presences[name]; s != nil {
		listening = s.end()
		delete(open.presences, name)
	}
	buffer := open.takeBuffer(name)
	done()
	closeListener(listening)
	closeBuffer(buffer)
}

func (m *moves) record(name string, index int32) error {
	var old *capture.Buffer
	defer func() { closeBuffer(old) }()
	open, done := m.open()
	defer done()
	if r := open.buffers[name]; open.closed || r != nil && r.Index == index {
		return nil
	}
	old = open.takeBuffer(name)
	return m.startRecording(open, name, index)
}

// startRecording opens a replay buffer, and has it run.
func (m *moves) startRecording(open *movingPorts, name string, index int32) error {
	r, err := capture.Record(index, func() (capture.Counts, error) { return m.rtnl.counts(index) })
	if err == nil {
		open.buffers[name] = r
		m.running.Go(r.Run)
	}
	return err
}

// endRecording closes the replay buffer of a port, if it has one.
func (m *moves) endRecording(name string) {
	open, done := m.open()
	buffer := open.takeBuffer(name)
	done()
	closeBuffer(buffer)
}

// takeBuffer removes the replay buffer of a port, and returns it; nil if it has none.
func (p *movingPorts) takeBuffer(name string) *capture.Buffer {
	r := p.buffers[name]
	delete(p.buffers, name)
	return r
}

// closeBuffer closes a replay buffer, if there is one. That waits for an answer of the
// kernel, so nobody who has the moving ports calls it.
func closeBuffer(r *capture.Buffer) {
	if r != nil {
		r.Close()
	}
}

// replayBuffers returns the replay buffers of the ports that have one.
func (m *moves) replayBuffers(ports []fabric.Port) []*capture.Buffer {
	open, done := m.open()
	defer done()
	var all []*capture.Buffer
	for _, p := range ports {
		if r := open.buffers[p.Name]; r != nil {
			all = append(all, r)
		}
	}
	return all
}

// openSender returns the socket for sending. It opens it at the first call. Once
// the moves are closed, it returns nil if none was open.
func (m *moves) openSender() (*capture.Sender, error) {
	open, done := m.open()
	defer done()
	var err error
	if open.sender == nil && !open.closed {
		open.sender, err = capture.NewSender()
	}
	return open.sender, err
}
