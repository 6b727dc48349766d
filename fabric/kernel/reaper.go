package kernel

import (
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// doomedGroup is the group of links that the reaper is about to remove together. No
// person would choose its number, and no other link is ever in it.
const doomedGroup = 0x766d6661

// reaper removes links. For each removal the kernel waits for grace periods, about
// 20 ms, whether it is of one link or of a thousand. So the reaper collects the
// removals that callers ask for while one is under way, and makes them together, by
// group.
type reaper struct {
	rtnl *socket

	mu      sync.Mutex
	waiting []*removal
	busy    bool
}

type removal struct {
	links []int32
	err   error
	done  chan struct{}
}

// remove removes links, and returns when they are gone.
func (r *reaper) remove(links ...int32) error {
	job := &removal{links: links, done: make(chan struct{})}
	r.mu.Lock()
	r.waiting = append(r.waiting, job)
	if r.busy {
		r.mu.Unlock()
		<-job.done
		return job.err
	}
	r.busy = true
	for len(r.waiting) > 0 {
		jobs := r.waiting
		r.waiting = nil
		r.mu.Unlock()
		r.reap(jobs)
		r.mu.Lock()
	}
	r.busy = false
	r.mu.Unlock()
	return job.err
}

func (r *reaper) reap(jobs []*removal) {
	var links []int32
	for _, j := range jobs {
		links = append(links, j.links...)
	}
	var err error
	if len(links) == 1 {
		_, err = r.rtnl.Do(rtnl.Message(unix.RTM_DELLINK, netlink.Acknowledge, rtnl.IfInfoMsg(links[0], 0, 0), nil))
	} else {
		err = r.reapGroup(links)
	}
	if e := rtnl.Errno(err); e == unix.ENODEV {
		err = nil // the link went by itself
	}
	for _, j := range jobs {
		j.err = err
		close(j.done)
	}
}

func (r *reaper) reapGroup(links []int32) error {
	msgs := make([]netlink.Message, len(links))
	for i, index := range links {
		msgs[i] = rtnl.Message(unix.RTM_SETLINK, netlink.Acknowledge, rtnl.IfInfoMsg(index, 0, 0), func(ae *netlink.AttributeEncoder) {
			ae.Uint32(unix.IFLA_GROUP, doomedGroup)
		})
	}
	errs, err := r.rtnl.Batch(msgs...)
	if err != nil {
		return err
	}
	for _, err := range errs {
		if err != nil && rtnl.Errno(err) != unix.ENODEV {
			return fmt.Errorf("remove links: %w", err)
		}
	}
	_, err = r.rtnl.Do(rtnl.Message(unix.RTM_DELLINK, netlink.Acknowledge, rtnl.IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_GROUP, doomedGroup)
	}))
	if errors.Is(err, unix.EINVAL) || rtnl.Errno(err) == unix.ENODEV {
		return nil // all of them went by themselves
	}
	return err
}
