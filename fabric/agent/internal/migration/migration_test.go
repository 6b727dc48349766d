package migration_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/vmfabric/vmfabric/fabric/agent/internal/migration"
)

var (
	allStates = []State{Staying, Awaited, Stopped, Diverted, Confirmed}
	allEvents = []Event{
		DestinationReady, DestinationRuns, DestinationClaims, DestinationCancelled,
		SourceStopped, SourceResumed, SourceStarted, WordUnconfirmed,
	}
)

// TestEveryPair: each event in each state has one transition, or a reason why it
// has none.
func TestEveryPair(t *testing.T) {
	for _, s := range allStates {
		for _, e := range allEvents {
			in := 0
			for _, tr := range Table {
				if tr.From == s && tr.On == e {
					in++
					assert.Equal(t, tr, Next(s, e))
				}
			}
			reason, ignored := Ignored[s][e]
			if ignored {
				assert.NotEmpty(t, reason)
				assert.Equal(t, Transition{From: s, On: e, To: s}, Next(s, e))
				in++
			}
			assert.Equal(t, 1, in, "%v: %v", s, e)
		}
	}
	n := len(Table)
	for _, ignored := range Ignored {
		n += len(ignored)
	}
	assert.Equal(t, len(allStates)*len(allEvents), n)
}

// TestPacketsGoOneWay follows every sequence of five events: packets go to the
// destination exactly in the states that say so, the hypervisor's stop is known
// exactly in those that say so, and nothing is left recorded of a guest that stays.
func TestPacketsGoOneWay(t *testing.T) {
	type world struct{ diverts, stops, records bool }
	var walk func(s State, w world, story []string, left int)
	walk = func(s State, w world, story []string, left int) {
		require.Equal(t, s.Diverts(), w.diverts, "%v: %v", s, story)
		require.Equal(t, s.Stops(), w.stops, "%v: %v", s, story)
		if s == Staying {
			require.False(t, w.records, "%v", story)
		}
		if left == 0 {
			return
		}
		for _, e := range allEvents {
			next, is := Next(s, e), w
			for _, effect := range next.Effects {
				switch effect {
				case Record:
					is.records = true
				case Divert:
					is.diverts = true
				case Return:
					is.diverts = false
				case Restore:
					is.diverts, is.records = false, false
				}
			}
			switch e {
			case SourceStopped:
				is.stops = true
			case SourceResumed, SourceStarted:
				is.stops = false
			case DestinationCancelled:
				is.stops = is.stops && next.To != Staying
			}
			walk(next.To, is, append(story, e.String()), left-1)
		}
	}
	walk(Staying, world{}, nil, 5)
}

// TestEveryStateEnds: whatever a move came to, it is over when the guest goes on here.
func TestEveryStateEnds(t *testing.T) {
	for _, s := range allStates {
		assert.Equal(t, Staying, Next(s, SourceResumed).To, "%v", s)
	}
}

// TestDiagrams holds docs/moves.md to the tables.
func TestDiagrams(t *testing.T) {
	const file = "../../../../docs/moves.md"
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	rest := string(text)
	for _, expected := range []string{diagram(), arrivals()} {
		_, after, found := strings.Cut(rest, "```mermaid\n")
		require.True(t, found, "put this into docs/moves.md:\n%s", expected)
		drawn, left, _ := strings.Cut(after, "```")
		require.Equal(t, expected, drawn, "put this into docs/moves.md:\n%s", expected)
		rest = left
	}
}

// diagram draws the table in Mermaid's language.
func diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> staying\n")
	for _, tr := range Table {
		fmt.Fprintf(&b, "    %v --> %v: %v", tr.From, tr.To, tr.On)
		for i, effect := range tr.Effects {
			b.WriteString(map[bool]string{true: " / ", false: ", "}[i == 0] + effect.String())
		}
		b.WriteString("\n")
	}
	return b.String()
}
