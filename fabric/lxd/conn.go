package lxd

import (
	"context"
	"sync"

	"github.com/coder/websocket"
)

const (
	slots = 4 // requests about single instances at a time
	// maxJobs is how many instances may have news that was not read yet; one
	// list costs less than more of them.
	maxJobs = 64
)

// conn is a subscription to events, and the work that they cause.
type conn struct {
	*client
	ws    *websocket.Conn
	slots chan struct{}
	wg    sync.WaitGroup // of every goroutine that uses the conn

	mu    sync.Mutex
	about server
	jobs  map[key]*job
}

// subscribe opens a connection for events.
func (s *Source) subscribe(ctx context.Context) (*conn, error) {
	cl, about, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	c := &conn{client: cl, about: about, slots: make(chan struct{}, slots), jobs: map[key]*job{}}
	ctx, cancel := context.WithTimeout(ctx, s.times.call)
	defer cancel()
	if c.ws, err = cl.events(ctx, about); err != nil {
		return nil, &silence{s.name, cl.path, err}
	}
	return c, nil
}

// holds reports whether an instance or an event is of this member.
func (c *conn) holds(location string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.about.holds(location)
}

// ask has the daemon tell of itself anew.
func (c *conn) ask(ctx context.Context) (server, error) {
	about, err := c.server(ctx)
	if err == nil {
		c.mu.Lock()
		c.about = about
		c.mu.Unlock()
	}
	return about, err
}

// job is the work on the news of one instance.
type job struct {
	again bool // there was more news meanwhile
}

// touch has an instance read. Each instance has one who reads, and never two:
// whatever happens meanwhile is one more read. It reports whether there was
// room for the work.
func (s *Source) touch(ctx context.Context, c *conn, k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j := c.jobs[k]; j != nil {
		j.again = true
		return true
	}
	if len(c.jobs) >= maxJobs {
		return false
	}
	c.jobs[k] = &job{}
	c.wg.Go(func() { s.work(ctx, c, k) })
	return true
}

func (s *Source) work(ctx context.Context, c *conn, k key) {
	for {
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		j := c.jobs[k]
		j.again = false
		c.mu.Unlock()

		s.follow(ctx, c, k)
		<-c.slots

		c.mu.Lock()
		if !j.again {
			delete(c.jobs, k)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}
