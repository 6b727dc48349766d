package libvirt

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Run connects, and connects again whenever the connection is lost, until ctx
// ends; then it returns nil. It waits for libvirt quietly where there is none.
// Call it once.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.box.Deliver(ctx) })

	wait := s.times.retryMin
	for ctx.Err() == nil {
		connected, err := s.once(ctx)
		if ctx.Err() != nil {
			break
		}
		s.silent(err)
		if connected {
			wait = s.times.retryMin
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, s.times.retryMax)
	}
	return nil
}

// once connects and follows what happens until the connection is lost. Its
// error is a *silence.
func (s *Source) once(ctx context.Context) (connected bool, err error) {
	c, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	defer c.close()
	subscribing, cancel := context.WithTimeout(ctx, s.times.call)
	defer cancel()
	if err := c.subscribe(subscribing, func(e golibvirt.DomainEventLifecycleMsg) { s.hear(c, e) }); err != nil {
		return false, &silence{c.path, err}
	}
	if err := c.call(subscribing, c.askVersion); err != nil {
		return false, &silence{c.path, err}
	}
	s.hookProblem(c) // that it knows the hook is noted before the hook is replaced
	s.mu.Lock()
	s.conn, s.since, s.was, s.outage = c, time.Now(), true, ""
	s.mu.Unlock()
	s.log.Info("libvirt connected", "socket", c.path)
	// Only now: what happens from here on is heard.
	s.box.PutLost()

	err = s.watch(ctx, c)
	s.mu.Lock()
	s.conn, s.since = nil, time.Now()
	s.mu.Unlock()
	return true, &silence{c.path, err}
}

// watch proves that libvirtd is alive until it is not, and tells why.
func (s *Source) watch(ctx context.Context, c *conn) error {
	ticker := time.NewTicker(s.times.ping)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.gone:
			return c.reason()
		case <-ticker.C:
		}
		pinging, cancel := context.WithTimeout(ctx, s.times.call)
		err := c.call(pinging, c.askVersion)
		cancel()
		if err != nil {
			return err
		}
	}
}

// askVersion asks for what any libvirtd that is alive answers.
func (c *conn) askVersion() error {
	version, err := c.lv.ConnectGetLibVersion()
	c.version.Store(version)
	return err
}

// silent notes why there is no connection.
func (s *Source) silent(err error) {
	var why *silence
	if !errors.As(err, &why) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, stat := os.Stat(why.path); !s.was && errors.Is(stat, fs.ErrNotExist) {
		s.outage = ""
		return
	}
	if s.outage == "" {
		s.log.Warn("libvirt does not answer", "err", err)
	}
	s.outage = why.since(" since " + s.since.Format(time.TimeOnly))
}
