package core

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Session is a TCP connection from a host to an echo service, such as port 7 of a
// guest. It sends lines at a steady rate and checks the echoes.
type Session struct {
	conn    *net.TCPConn
	every   time.Duration
	stop    chan struct{}
	sent    chan struct{} // closed when nothing more is sent
	running sync.WaitGroup

	mu     sync.Mutex
	result SessionResult
	last   time.Time // when a line came back; at first, when the session was opened
}

// SessionResult is the result of a [Session].
type SessionResult struct {
	Sent, Echoed int   // lines
	Bytes        int64 // of the lines echoed
	LongestStall time.Duration
	StallFrom    time.Time // when the longest stall began
	Retransmits  int       // segments that the host sent again (tcp(7), TCP_INFO)
	Reset        bool      // the connection was reset
	Err          error     // the error that ended the session early, also a wrong line
}

// sessionGrace is how long Stop waits for lines under way, long enough for a
// few retransmissions.
const sessionGrace = 5 * time.Second

// OpenSession connects to an echo service and begins to send a line each
// interval.
func (h *Host) OpenSession(ctx context.Context, to netip.AddrPort, every time.Duration) (*Session, error) {
	conn, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, fmt.Errorf("session from %s: %w", h.name, err)
	}
	s := &Session{conn: conn.(*net.TCPConn), every: every, stop: make(chan struct{}), sent: make(chan struct{}), last: time.Now()}
	s.running.Go(s.send)
	s.running.Go(s.receive)
	return s, nil
}

// sessionLine returns the n-th line, all of one length.
func sessionLine(n int) string { return fmt.Sprintf("line %09d\n", n) }

func (s *Session) send() {
	defer close(s.sent)
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for n := 0; ; n++ {
		if _, err := s.conn.Write([]byte(sessionLine(n))); err != nil {
			s.fail(err)
			return
		}
		s.mu.Lock()
		s.result.Sent++
		s.mu.Unlock()
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
	}
}

func (s *Session) receive() {
	lines := bufio.NewReader(s.conn)
	for n := 0; ; n++ {
		line, err := lines.ReadString('\n')
		now := time.Now()
		if err != nil {
			s.fail(err)
			return
		}
		if line != sessionLine(n) {
			s.fail(fmt.Errorf("line %d came back as %q", n, line))
			return
		}
		s.mu.Lock()
		s.note(now)
		s.result.Echoed++
		s.result.Bytes += int64(len(line))
		s.mu.Unlock()
	}
}

// note ends a time without a line. The caller holds s.mu.
func (s *Session) note(now time.Time) {
	if stall := now.Sub(s.last); stall > s.result.LongestStall {
		s.result.LongestStall, s.result.StallFrom = stall, s.last
	}
	s.last = now
}

// fail notes the first error, unless the session itself closed the connection.
func (s *Session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, net.ErrClosed) || s.result.Err != nil {
		return
	}
	s.result.Err = err
	s.result.Reset = errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Echoed returns the number of lines that came back so far.
func (s *Session) Echoed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result.Echoed
}

// Ended reports whether the session ended early.
func (s *Session) Ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result.Err != nil
}

// settled reports whether no line is under way any more.
func (s *Session) settled() bool {
	select {
	case <-s.sent:
	default:
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result.Echoed == s.result.Sent || s.result.Err != nil
}

// Stop ends the sending, waits up to five seconds for the lines that are under way,
// closes the connection and returns the result. Call it only once.
func (s *Session) Stop() SessionResult { return s.end(sessionGrace) }

// Abandon is Stop without the wait.
func (s *Session) Abandon() SessionResult { return s.end(0) }

func (s *Session) end(grace time.Duration) SessionResult {
	close(s.stop)
	for deadline := time.Now().Add(grace); !s.settled() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	retransmits := s.retransmits()
	// With linger 0 the kernel sends nothing more to a guest that does not answer.
	_ = s.conn.SetLinger(0)
	s.conn.Close()
	s.running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.result.Echoed < s.result.Sent {
		s.note(time.Now())
	}
	s.result.Retransmits = retransmits
	return s.result
}

func (s *Session) retransmits() (n int) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Total_retrans)
		}
	})
	return n
}
