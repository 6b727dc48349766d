package ownership_test

import (
	"math"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	. "github.com/vmfabric/vmfabric/fabric/agent/internal/ownership"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func TestDecide(t *testing.T) {
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	for _, tc := range []struct {
		name         string
		mine, theirs Claim
		verdict      Verdict
		reason       Reason
		opposite     Verdict // of the other node; zero: that of the first, turned
	}{
		{"the same guest, later here", Claim{Identity: "a", Epoch: 8}, Claim{Identity: "a", Epoch: 7}, Keep, RunsLater, 0},
		{"the same guest, later there", Claim{Identity: "a", Epoch: 7}, Claim{Identity: "a", Epoch: 8}, Relinquish, RanEarlier, 0},
		{"the same guest, however long it is here", Claim{Identity: "a", Epoch: 7, Acquired: at(0)}, Claim{Identity: "a", Epoch: 8, Acquired: at(9)}, Relinquish, RanEarlier, 0},
		{"the same guest, both with one epoch", Claim{Identity: "a", Epoch: 7, Node: "node1"}, Claim{Identity: "a", Epoch: 7, Node: "node2"}, Keep, RunsLater, 0},
		{"the same guest with one epoch, attached by hand", Claim{Identity: "a", Epoch: 7, Node: "node2", Manual: true}, Claim{Identity: "a", Epoch: 7, Node: "node1"}, Keep, ByHand, Keep},
		{"the same guest, attached by hand", Claim{Identity: "a", Epoch: 7, Manual: true}, Claim{Identity: "a", Epoch: 8}, Keep, ByHand, Keep},
		{"an agent of before, later there", Claim{Identity: "a", Epoch: 7, Acquired: at(0)}, Claim{Epoch: 8}, Relinquish, RanEarlier, 0},
		{"an agent of before, later here", Claim{Identity: "a", Epoch: 8, Acquired: at(9)}, Claim{Epoch: 7}, Keep, RunsLater, 0},
		{"another guest, which came later", Claim{Identity: "a", Epoch: 7, Acquired: at(0)}, Claim{Identity: "b", Epoch: 8, Acquired: at(1)}, Keep, HadEarlier, 0},
		{"another guest, which was there before", Claim{Identity: "a", Epoch: 9, Acquired: at(1)}, Claim{Identity: "b", Epoch: 8, Acquired: at(0)}, Relinquish, CameLater, 0},
		{"another guest, attached by hand later", Claim{Identity: "a", Acquired: at(0)}, Claim{Identity: "b", Acquired: at(1), Manual: true}, Keep, HadEarlier, 0},
		{"another guest of the same moment", Claim{Identity: "a", Acquired: at(0), Node: "node1"}, Claim{Identity: "b", Acquired: at(0), Node: "node2"}, Keep, HadEarlier, 0},
		{"another guest without a time", Claim{Identity: "a", Acquired: at(0), Node: "node2"}, Claim{Identity: "b", Node: "node1"}, Keep, HadEarlier, 0},
		{"a start of the same guest", Claim{Identity: "a", Starting: true}, Claim{Identity: "a", Epoch: 8}, Keep, Moves, Keep},
		{"a start beside an agent of before", Claim{Identity: "a", Starting: true}, Claim{Epoch: 8}, Keep, Moves, Keep},
		{"a start of another guest", Claim{Identity: "a", Starting: true}, Claim{Identity: "b", Acquired: at(0)}, Refuse, HeldByOther, Keep},
	} {
		t.Run(tc.name, func(t *testing.T) {
			verdict, reason := Decide(tc.mine, tc.theirs)
			assert.Equal(t, tc.verdict.String(), verdict.String())
			assert.Equal(t, tc.reason, reason)
			want := tc.opposite
			if want == 0 {
				want = map[Verdict]Verdict{Keep: Relinquish, Relinquish: Keep}[tc.verdict]
			}
			verdict, _ = Decide(tc.theirs, tc.mine)
			assert.Equal(t, want.String(), verdict.String(), "on the other node")
		})
	}
}

func TestDecideByRoute(t *testing.T) {
	at := func(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }
	for _, tc := range []struct {
		name         string
		mine, theirs Claim
		verdict      Verdict
		reason       Reason
		opposite     Verdict // of the other node
	}{
		{"a route that does not say", Claim{Identity: "a", Acquired: at(0)}, Claim{}, Ask, NoEpoch, Ask},
		{"a node that does not say itself", Claim{}, Claim{Identity: "b", Acquired: at(0)}, Ask, NoEpoch, Ask},
		{"the same guest, however long it is here", Claim{Identity: "a", Acquired: at(0)}, Claim{Identity: "a", Acquired: at(9)}, Ask, NoEpoch, Ask},
		{"the same guest, however long it is there", Claim{Identity: "a", Acquired: at(9)}, Claim{Identity: "a", Acquired: at(0)}, Ask, NoEpoch, Ask},
		{"the same guest, attached by hand", Claim{Identity: "a", Manual: true}, Claim{Identity: "a"}, Ask, NoEpoch, Ask},
		{"another guest, which came later", Claim{Identity: "a", Acquired: at(0)}, Claim{Identity: "b", Acquired: at(1)}, Keep, HadEarlier, Relinquish},
		{"another guest, which was there before", Claim{Identity: "a", Acquired: at(1)}, Claim{Identity: "b", Acquired: at(0)}, Relinquish, CameLater, Keep},
		{"another guest, to one by hand", Claim{Identity: "a", Acquired: at(1), Manual: true}, Claim{Identity: "b", Acquired: at(0)}, Relinquish, CameLater, Keep},
		{"another guest by hand", Claim{Identity: "a", Acquired: at(0)}, Claim{Identity: "b", Acquired: at(1), Manual: true}, Keep, HadEarlier, Relinquish},
		{"another guest of the same second", Claim{Identity: "a", Acquired: at(0), Node: "node1"}, Claim{Identity: "b", Acquired: at(0), Node: "node2"}, Keep, HadEarlier, Relinquish},
		{"another guest without a time", Claim{Identity: "a", Acquired: at(0), Node: "node2"}, Claim{Identity: "b", Node: "node1"}, Keep, HadEarlier, Relinquish},
	} {
		t.Run(tc.name, func(t *testing.T) {
			verdict, reason := DecideByRoute(tc.mine, tc.theirs)
			assert.Equal(t, tc.verdict.String(), verdict.String())
			assert.Equal(t, tc.reason, reason)
			verdict, _ = DecideByRoute(tc.theirs, tc.mine)
			assert.Equal(t, tc.opposite.String(), verdict.String(), "on the other node")
		})
	}
}

func TestEpochs(t *testing.T) {
	now := uint64(noon.UnixMilli())
	far := uint64(noon.Add(Ahead).UnixMilli())
	for _, tc := range []struct {
		name             string
		heard, own, next uint64
	}{
		{"nothing before", 0, 0, now},
		{"lower ones", now - 5, now - 9, now},
		{"a higher one was heard of", now + 5, now + 1, now + 6},
		{"its own is higher", now + 1, now + 5, now + 6},
		{"as far ahead as can be", far, 0, far + 1},
		{"from the far future", far + 1, 0, now},
		{"the last but one", math.MaxUint64 - 1, 0, now},
		{"the last", math.MaxUint64, 0, now},
		{"its own is the last, of an agent of before", 0, math.MaxUint64, now},
	} {
		t.Run(tc.name, func(t *testing.T) {
			assert.Equal(t, tc.next, Next(noon, tc.heard, tc.own))
		})
	}
	assert.True(t, Plausible(0, noon))
	assert.True(t, Plausible(far, noon))
	assert.False(t, Plausible(far+1, noon))
	assert.False(t, Plausible(math.MaxUint64, noon))
	assert.True(t, Plausible(0, time.Unix(-5, 0)), "a clock before 1970")
}

func TestStance(t *testing.T) {
	for _, tc := range []struct {
		name string
		p    Preemption
		want Stance
	}{
		{"it has it", Preemption{Answered: true, Held: true}, Withdrawn},
		{"it does not have it", Preemption{Answered: true}, Announced},
		{"it does not have it, and a late route is there", Preemption{Answered: true, Competing: true}, Announced},
		{"it is not silent", Preemption{}, Withdrawn},
		{"its route went, and it will answer", Preemption{RouteGone: true}, Withdrawn},
		{"silent for a moment", Preemption{Silent: SilentFor - 1}, Withdrawn},
		{"silent for long", Preemption{Silent: SilentFor}, Standby},
		{"silent again, and nothing was said of it", Preemption{Silent: 1, Behind: true}, Standby},
		{"it has it, and it was announced behind", Preemption{Answered: true, Held: true, Behind: true}, Withdrawn},
		{"silent for long, with a better route", Preemption{Silent: time.Hour, Competing: true}, Withdrawn},
		{"silent, and its route went", Preemption{Silent: 1, RouteGone: true}, Standby},
		{"silent, and one of its routes went", Preemption{Silent: 1, RouteGone: true, Competing: true}, Withdrawn},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, tc.want.String(), tc.p.Stance().String()) })
	}
}

// TestPure: nothing here waits, locks, logs or looks at the clock.
func TestPure(t *testing.T) {
	text, err := os.ReadFile("ownership.go")
	require.NoError(t, err)
	for _, word := range []string{`"sync"`, `"context"`, `"log`, `"net"`, `time\.Now`, `time\.Since`, `time\.Until`} {
		assert.NotRegexp(t, regexp.MustCompile(word), string(text))
	}
}

// TestEpochsOfRegistries are above those of clocks, and count on without them.
func TestEpochsOfRegistries(t *testing.T) {
	const least = fabric.RegistryEpoch
	for _, tc := range []struct {
		name                      string
		granted, heard, own, next uint64
	}{
		{"granted", least + 7, 0, 0, least + 7},
		{"granted after others", least + 7, least + 6, least + 3, least + 7},
		{"not granted, and nothing before", 0, 0, 0, least},
		{"not granted, after one of a clock", 0, uint64(noon.UnixMilli()), 0, least},
		{"not granted, after another node", 0, least + 6, least + 3, least + 7},
		{"not granted, after itself", 0, least + 3, least + 6, least + 7},
		{"something later was heard of since", least + 7, least + 9, 0, least + 10},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, tc.next, Following(tc.granted, tc.heard, tc.own)) })
	}
	assert.True(t, Plausible(least, noon))
	assert.True(t, Plausible(MostAdoptions*least, noon))
	assert.False(t, Plausible((MostAdoptions+1)*least, noon))
	assert.False(t, ByRegistry(uint64(time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())))
	assert.Equal(t, uint64(least+5), Next(noon, least+4, 0), "a node without the registry goes on from it")
}
