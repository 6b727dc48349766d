package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

func TestPrintMove(t *testing.T) {
	at := func(ms int) time.Time {
		return time.Date(2026, 11, 26, 15, 33, 50, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond)
	}
	for _, tt := range []struct {
		name string
		move fabric.Move
		want string
	}{
		{"whole", fabric.Move{
			VM: "web", From: "node1", To: "node2", Outcome: "moved", Expected: at(-400), PortReady: at(-390), Learned: at(-389),
			Stopped: at(0), Diverted: at(1), Resent: 3, ResentAt: at(2), Running: at(50), RunningBy: "frame", Announced: at(51),
			Seen: map[string]time.Time{"rr1": at(53)}, Withdrawn: at(2000), Normal: at(2002),
		}, `web  node1 -> node2  2026-11-26 15:33:49  moved
    -400.0 ms  the destination's hook announced it
    -390.0 ms  port ready at the destination
    -389.0 ms  the source knows the destination
      +0.0 ms  guest stopped at the source
      +1.0 ms  packets go from the source to the destination
      +2.0 ms  3 frames sent again
     +50.0 ms  guest runs at the destination (told by frame)
     +51.0 ms  announced by the destination
     +53.0 ms  seen back from reflector rr1
   +2000.0 ms  withdrawn by the source
   +2002.0 ms  everybody has let go, preference normal
`},
		{"begun", fabric.Move{VM: "web", To: "node2", Outcome: "under way", Expected: at(0)}, `web  ? -> node2  2026-11-26 15:33:50  under way
  15:33:50.000  the destination's hook announced it
`},
		{"nothing known", fabric.Move{VM: "web", Outcome: "under way"}, "web  ? -> ?  -  under way\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			require.NoError(t, printMove(&out, tt.move))
			squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
			assert.Equal(t, squeeze(tt.want), squeeze(out.String()))
		})
	}
}
