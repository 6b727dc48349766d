package lxd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"
)

// Run connects, and connects again whenever the connection is lost, until ctx
// ends; then it returns nil. It waits for LXD quietly where there is none.
// Call it once.
func (s *Source) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.box.Deliver(ctx) })
	wg.Go(func() { s.watchLinks(ctx) })

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
	c, err := s.subscribe(ctx)
	if err != nil {
		return false, err
	}
	defer c.wg.Wait()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer c.ws.CloseNow()
	c.wg.Go(func() { end(s.listen(ctx, c)) })

	// The daemon says that it switches protocols before it begins to send
	// events, and answers a ping after.
	if err := s.ping(ctx, c); err != nil {
		return false, &silence{s.name, c.path, err}
	}
	s.mu.Lock()
	s.conn, s.since, s.was, s.outage, s.unlisted, s.listed = c, time.Now(), true, "", "", false
	s.mu.Unlock()
	s.log.Info(s.name+" connected", "socket", c.path)
	// Only now: what happens from here on is heard.
	s.box.PutLost()

	err = s.watch(ctx, c)
	s.mu.Lock()
	s.conn, s.since = nil, time.Now()
	s.mu.Unlock()
	return true, &silence{s.name, c.path, err}
}

// watch proves that the daemon is alive until it is not, and tells why.
func (s *Source) watch(ctx context.Context, c *conn) error {
	ticker := time.NewTicker(s.times.ping)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
		if err := s.ping(ctx, c); err != nil {
			return err
		}
		s.search()
	}
}

func (s *Source) ping(ctx context.Context, c *conn) error {
	pinging, cancel := context.WithTimeout(ctx, s.times.call)
	defer cancel()
	switch err := c.ws.Ping(pinging); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return reason(err)
	}
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
		s.log.Warn(s.name+" does not answer", "err", err)
	}
	s.outage = why.since(" since " + s.since.Format(time.TimeOnly))
}
