package capture

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestQueue: a history of frames into a port, and the number of the first that waits
// there.
func TestQueue(t *testing.T) {
	type step struct {
		into, sent, dropped uint64 // since the step before
	}
	for name, c := range map[string]struct {
		history []step
		first   uint64
	}{
		"nothing came":            {[]step{{}}, 0},
		"all were read":           {[]step{{}, {10, 10, 0}, {10, 10, 0}}, 20},
		"none was read":           {[]step{{}, {10, 10, 0}, {10, 0, 0}}, 10 - readAhead},
		"some were read":          {[]step{{}, {10, 4, 0}, {10, 3, 0}}, 7 - readAhead},
		"it caught up":            {[]step{{}, {10, 4, 0}, {0, 6, 0}, {5, 0, 0}}, 10 - readAhead},
		"some did not fit":        {[]step{{}, {10, 10, 0}, {10, 2, 5}}, 12 - readAhead},
		"some did not fit before": {[]step{{}, {10, 2, 5}, {0, 3, 0}, {4, 1, 0}}, 11 - readAhead},
		"frames of before the recording waited, which is known once they were read": {[]step{{}, {10, 12, 0}, {5, 5, 0}, {7, 2, 0}}, 15 + 2 - readAhead},
	} {
		t.Run(name, func(t *testing.T) {
			counts := Counts{Sent: 1000, Dropped: 7} // of before
			var q queue
			assert.False(t, q.waits(0))
			for _, s := range c.history {
				q.into += s.into
				counts.Sent += s.sent
				counts.Dropped += s.dropped
				q.update(counts)
			}
			assert.Equal(t, c.first, q.first)
			assert.True(t, q.waits(c.first))
			assert.False(t, c.first > 0 && q.waits(c.first-1))
		})
	}
}
