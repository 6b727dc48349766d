package capture

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// TestPace: a history of frames to and from a guest, and how far before the last
// one from it something may not have been taken.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	start := time.Unix(1_000_000, 0)
	// steady sends a frame every millisecond, to a guest that answers at once, up to
	// a time.
	steady := func(p *pace, from, to time.Duration) {
		for at := from; at < to; at += ms {
			p.sent(start.Add(at))
			p.heard(start.Add(at + ms/2))
		}
	}
	// stall sends a frame every millisecond to a guest that takes none.
	stall := func(p *pace, from, to time.Duration) {
		for at := from; at < to; at += ms {
			p.sent(start.Add(at))
		}
	}
	for name, c := range map[string]struct {
		history func(p *pace)
		behind  time.Duration
	}{
		"it answers at once": {func(p *pace) { steady(p, 0, 400*ms) }, reaction},
		"nothing was sent":   {func(p *pace) { p.heard(start); p.heard(start.Add(300 * ms)) }, reaction},
		"seldom, and answered": {func(p *pace) {
			p.sent(start)
			p.heard(start.Add(ms))
			p.sent(start.Add(200 * ms))
			p.heard(start.Add(201 * ms))
		}, reaction},
		"it stalled once": {func(p *pace) {
			steady(p, 0, 100*ms)
			stall(p, 100*ms, 180*ms)
			steady(p, 180*ms, 200*ms)
		}, reaction + 80*ms + ms/2},
		"it stalled twice, and did not catch up between": {func(p *pace) {
			stall(p, 0, 60*ms)
			p.heard(start.Add(60 * ms))
			stall(p, 61*ms, 121*ms)
			p.heard(start.Add(121 * ms))
		}, reaction + 120*ms},
		"it stalled long ago": {func(p *pace) {
			stall(p, 0, 80*ms)
			steady(p, 80*ms, 80*ms+recordFor+2*ms)
		}, reaction},
		"it has answered nothing for long": {func(p *pace) {
			stall(p, 0, 5000*ms)
			p.heard(start.Add(5000 * ms))
		}, recordFor},
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			c.history(&p)
			assert.Equal(t, c.behind, p.last.Sub(p.taken()))
		})
	}
	assert.True(t, new(pace).taken().Before(start), "one that was never heard has taken nothing")
}
