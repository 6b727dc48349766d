package capture

// Counts are what the kernel has counted of the frames that went into a link
// (rtnl_link_stats64). A tap counts a frame as sent when the hypervisor reads it.
type Counts struct {
	Sent    uint64
	Dropped uint64 // because the queue was full
}

// queue finds which of the frames that went into a port wait there for the
// hypervisor, oldest first. It knows the length of the queue but for a constant, which
// it takes from the moment at which the queue was shortest: mostly it was empty then.
type queue struct {
	into    uint64 // the frames that have gone in, as the buffer has seen them
	first   uint64 // the number of the first one that may wait, as of the last update
	known   bool
	empty   int64  // the difference of into and the counts when the queue was shortest
	dropped uint64 // the frames dropped until then
}

// readAhead is how many frames a hypervisor may have read and not passed on: while the
// guest has no buffer for it, QEMU keeps the next one.
const readAhead = 2

// update takes counts. The buffer must have seen all frames that are in them.
func (q *queue) update(c Counts) {
	ahead := int64(q.into - c.Sent - c.Dropped)
	if !q.known || ahead <= q.empty {
		q.known, q.empty, q.dropped = true, ahead, c.Dropped
	}
	// Dropped frames have numbers too, and any of those that were dropped since may be
	// behind the first one that waits.
	waiting := uint64(ahead-q.empty) + c.Dropped - q.dropped
	if waiting > 0 {
		waiting += readAhead
	}
	q.first = q.into - min(waiting, q.into)
}

// waits reports whether the frame of a number may wait.
func (q *queue) waits(number uint64) bool { return q.known && number >= q.first }
