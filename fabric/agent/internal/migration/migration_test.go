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
	everyPair(t, allStates, allEvents, Table, Ignored, Next)
	everyPair(t, allArrivals, allArrivalEvents, Arrivals, ArrivalsIgnored, NextArrival)
}

func everyPair[S, E comparable, F any](t *testing.T, states []S, events []E, table []Step[S, E, F], ignored map[S]map[E]string, next func(S, E) Step[S, E, F]) {
	t.Helper()
	n := len(table)
	for _, s := range states {
		n += len(ignored[s])
		for _, e := range events {
			in := 0
			for _, tr := range table {
				if tr.From == s && tr.On == e {
					in++
					assert.Equal(t, tr, next(s, e))
				}
			}
			if reason, is := ignored[s][e]; is {
				in++
				assert.NotEmpty(t, reason)
				assert.Equal(t, Step[S, E, F]{From: s, On: e, To: s}, next(s, e))
			}
			assert.Equal(t, 1, in, "%v: %v", s, e)
		}
	}
	assert.Equal(t, len(states)*len(events), n)
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
	for _, expected := range []string{diagram(Staying, Table), diagram(NoArrival, Arrivals)} {
		_, after, found := strings.Cut(rest, "```mermaid\n")
		require.True(t, found, "put this into docs/moves.md:\n%s", expected)
		drawn, left, _ := strings.Cut(after, "```")
		require.Equal(t, expected, drawn, "put this into docs/moves.md:\n%s", expected)
		rest = left
	}
}

// diagram draws a table in Mermaid's language.
func diagram[S, E comparable, F any](first S, table []Step[S, E, F]) string {
	var b strings.Builder
	name := func(s S) string { return strings.ReplaceAll(fmt.Sprint(s), " ", "_") }
	fmt.Fprintf(&b, "stateDiagram-v2\n    [*] --> %s\n", name(first))
	for _, tr := range table {
		fmt.Fprintf(&b, "    %s --> %s: %v", name(tr.From), name(tr.To), tr.On)
		for i, effect := range tr.Effects {
			b.WriteString(map[bool]string{true: " / ", false: ", "}[i == 0] + fmt.Sprint(effect))
		}
		b.WriteString("\n")
	}
	return b.String()
}
