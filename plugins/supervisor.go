package plugins

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmfabric/vmfabric/internal/backoff"
)

const (
	firstRest = 100 * time.Millisecond // before an ended plugin is started anew
	mostRest  = 10 * time.Second       // the wait doubles up to this
	steady    = 30 * time.Second       // a plugin that ran so long starts again with firstRest
)

// supervisor keeps a plugin running.
type supervisor struct {
	program Program
	kind    kind
	options options
	// attend runs beside the calls while the plugin is up, until ctx ends. again:
	// it is a new process after another.
	attend func(ctx context.Context, p *process, again bool)

	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex
	up     *process      // nil while it is down
	turn   chan struct{} // closed when up changes
	outage outage        // valid while it is down
	closed bool
}

// outage says why and since when a plugin is down.
type outage struct {
	since, next time.Time
	reason      string
}

// open starts the plugin, and keeps it running until close.
func (s *supervisor) open(ctx context.Context, program Program, k kind, opts []Option) error {
	s.program, s.kind, s.options = program, k, newOptions(program, opts)
	s.turn, s.done = make(chan struct{}), make(chan struct{})
	p, err := start(ctx, program, k, s.options)
	switch {
	case err == nil:
		s.up = p
		s.options.log.Info("plugin started", "path", program.Path, "pid", p.child.ID())
	case s.options.retry && ctx.Err() == nil:
		s.outage = outage{since: time.Now(), next: time.Now().Add(firstRest), reason: unwrapped(err)}
		s.options.log.Error("plugin not started; trying again", "err", err)
	default:
		return err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx)) // ctx is only for the start; Close ends the plugin
	s.stop = stop
	go s.run(life, p)
	return nil
}

// Close asks the plugin to end, and returns when it has; if it does not end, Close
// kills it. Calls fail from then on.
func (s *supervisor) Close() error {
	s.mu.Lock()
	s.closed = true
	close(s.turn) // for the calls that wait
	s.turn = make(chan struct{})
	s.mu.Unlock()
	s.stop()
	<-s.done
	return nil
}

// run restarts the plugin until ctx ends; p is nil if it is down.
func (s *supervisor) run(ctx context.Context, p *process) {
	defer close(s.done)
	rests := backoff.Backoff{First: firstRest, Most: mostRest}
	for again := false; ; {
		if p == nil {
			if p = s.restart(ctx, &rests); p == nil {
				return
			}
			again = true
		}
		began := time.Now()
		reason := s.serve(ctx, p, again)
		if ctx.Err() != nil {
			s.turnTo(nil, outage{})
			p.end()
			return
		}
		if time.Since(began) > steady {
			rests.Reset()
		}
		s.options.log.Warn("plugin is down and will be started anew", "why", reason)
		s.turnTo(nil, outage{since: time.Now(), next: time.Now().Add(rests.Peek()), reason: reason})
		p.kill()
		p = nil
	}
}

// serve returns when the plugin has ended or hangs, and says why.
func (s *supervisor) serve(ctx context.Context, p *process, again bool) string {
	if s.attend != nil {
		var attending sync.WaitGroup
		life, end := context.WithCancel(ctx)
		attending.Go(func() { s.attend(life, p, again) })
		defer attending.Wait()
		defer end()
	}
	return p.watch(ctx, s.options.times)
}

// restart tries again and again, after a pause each. It returns nil when ctx ends.
func (s *supervisor) restart(ctx context.Context, rests *backoff.Backoff) *process {
	for rests.Wait(ctx) {
		p, err := start(ctx, s.program, s.kind, s.options)
		if err == nil {
			s.turnTo(p, outage{})
			s.options.log.Info("plugin started anew", "path", s.program.Path, "pid", p.child.ID())
			return p
		}
		s.mu.Lock()
		s.outage.reason, s.outage.next = unwrapped(err), time.Now().Add(rests.Peek())
		s.mu.Unlock()
		if ctx.Err() == nil {
			s.options.log.Warn("plugin not started", "err", err)
		}
	}
	return nil
}

// unwrapped returns the text of an error of start without the plugin's name.
func unwrapped(err error) string {
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return err.Error()
}

// turnTo sets the plugin that is up, or with nil why it is down.
func (s *supervisor) turnTo(p *process, o outage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.outage = p, o
	close(s.turn)
	s.turn = make(chan struct{})
}

// now returns the plugin that is up, or why it is down; turn is closed when that
// changes.
func (s *supervisor) now() (p *process, turn <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, s.turn, fmt.Errorf("%v: %w", s.program, os.ErrClosed)
	case s.up == nil:
		return nil, s.turn, errors.New(s.outage.text(s.program))
	}
	return s.up, s.turn, nil
}

func (o outage) text(p Program) string {
	next := "being restarted now"
	if in := time.Until(o.next); in > 0 {
		next = fmt.Sprintf("restarting it, next try in %v", in.Round(100*time.Millisecond))
	}
	return fmt.Sprintf("%v is down since %s (%s); %s", p, o.since.Format(time.TimeOnly), o.reason, next)
}

// await returns the plugin, and waits a little if it is down.
func (s *supervisor) await(ctx context.Context) (*process, error) {
	timer := time.NewTimer(s.options.times.Wait)
	defer timer.Stop()
	for {
		p, turn, err := s.now()
		if err == nil || errors.Is(err, os.ErrClosed) {
			return p, err
		}
		select {
		case <-turn:
		case <-timer.C:
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
}

// call calls the plugin; what names the call, such as "list routes".
func (s *supervisor) call(ctx context.Context, what string, f func(context.Context, grpc.ClientConnInterface) error) error {
	p, err := s.await(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, s.options.times.Call)
	defer cancel()
	return s.judge(ctx, p, what, f(limited, p.conn))
}

// judge draws the conclusions from the end of a call for the plugin, and returns
// the caller's error.
func (s *supervisor) judge(ctx context.Context, p *process, what string, err error) error {
	name, limit := s.program.name(), s.options.times.Call
	code, said := status.Code(err), oneLine(status.Convert(err).Message())
	silent := code == codes.DeadlineExceeded
	gaveUp := ctx.Err()
	if deadline, ok := ctx.Deadline(); err != nil && gaveUp == nil && ok && !time.Now().Before(deadline) {
		gaveUp = context.DeadlineExceeded // the plugin has the same deadline, and may be faster than this timer
	}
	switch {
	case !silent && code != codes.Unavailable && code != codes.Canceled:
		p.strikes.Store(0)
	case silent && gaveUp == nil:
		p.hangs(fmt.Sprintf("it hangs: no answer within %v when asked to %s", limit, what))
	case silent && p.strikes.Add(1) >= enoughStrikes:
		p.hangs(fmt.Sprintf("it hangs: %d calls in a row without an answer", enoughStrikes))
	case code == codes.Unavailable:
		p.doubt.Send()
	}
	switch {
	case err == nil:
		return nil
	case gaveUp != nil:
		return fmt.Errorf("%s: %s: %w", name, what, gaveUp)
	case silent:
		return fmt.Errorf("%s: %s: no answer within %v; it is being killed and started anew", name, what, limit)
	case code == codes.Unavailable:
		return fmt.Errorf("%s: %s: %s; if it has died, it is started anew", name, what, said)
	}
	return fmt.Errorf("%s: %s", name, said)
}

// Diagnose implements [fabric.Diagnoser]: it reports a plugin that is down.
func (s *supervisor) Diagnose(context.Context) []string {
	if _, _, err := s.now(); err != nil && !errors.Is(err, os.ErrClosed) {
		return []string{err.Error()}
	}
	return nil
}
