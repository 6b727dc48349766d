package ledger

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmfabric/vmfabric/fabric"
)

var (
	a4  = netip.MustParsePrefix("203.0.113.10/32")
	a6  = netip.MustParsePrefix("2001:db8:100::10/128")
	day = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
)

func counts(n ...uint64) (c Counts) {
	for i := range n {
		c[i] = fabric.Count{Packets: n[i], Bytes: 100 * n[i]}
	}
	return c
}

func of(t *testing.T, l *Ledger, vm string, p netip.Prefix) Counts {
	t.Helper()
	return l.Totals[vm][p].Counts
}

func TestReadingsAddUp(t *testing.T) {
	var l Ledger
	l.Own(a4, "web", day)
	l.Own(a6, "web", day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(1, 2, 3, 4), a6: counts(5)}, nil, day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(2, 2, 3, 9)}, nil, day)
	assert.Equal(t, counts(2, 2, 3, 9), of(t, &l, "web", a4))
	assert.Equal(t, counts(5), of(t, &l, "web", a6))
	assert.Equal(t, []fabric.Traffic{
		{
			VM: "web", Prefix: a4, Sent: fabric.ByScope{Internal: fabric.Count{Packets: 2, Bytes: 200}, External: fabric.Count{Packets: 2, Bytes: 200}},
			Received: fabric.ByScope{Internal: fabric.Count{Packets: 3, Bytes: 300}, External: fabric.Count{Packets: 9, Bytes: 900}},
		},
		{VM: "web", Prefix: a6, Sent: fabric.ByScope{Internal: fabric.Count{Packets: 5, Bytes: 500}}},
	}, l.Traffic())
}

// TestRestartOfAgent: what was kept goes on where the kernel's counters have gone on.
func TestRestartOfAgent(t *testing.T) {
	var l Ledger
	l.Own(a4, "web", day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(10)}, nil, day)
	text, err := json.Marshal(l)
	require.NoError(t, err)
	var next Ledger
	require.NoError(t, json.Unmarshal(text, &next))
	next.Settle("t1", map[netip.Prefix]Counts{a4: counts(15)}, nil, day)
	assert.Equal(t, counts(15), of(t, &next, "web", a4))
	// After a boot, or when somebody flushed the table, other counters began at zero, and
	// may be beyond the former ones by now.
	next.Settle("t2", map[netip.Prefix]Counts{a4: counts(100)}, nil, day)
	assert.Equal(t, counts(115), of(t, &next, "web", a4))
	next.Settle("t2", map[netip.Prefix]Counts{a4: counts(1)}, nil, day) // nft reset
	assert.Equal(t, counts(116), of(t, &next, "web", a4))
}

func TestAddressGoesToAnotherGuest(t *testing.T) {
	var l Ledger
	l.Own(a4, "web", day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(10)}, nil, day)
	l.Own(a4, "db", day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(13)}, nil, day)
	assert.Equal(t, counts(10), of(t, &l, "web", a4))
	assert.Equal(t, counts(3), of(t, &l, "db", a4))
	l.Forget(a4)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(20)}, nil, day)
	assert.Equal(t, counts(3), of(t, &l, "db", a4), "nobody's")
}

// TestSentAgain: the other node counts what is sent to it again, whether this one has
// read it before or not.
func TestSentAgain(t *testing.T) {
	held := map[netip.Prefix]bool{a4: true}
	var l Ledger
	l.Own(a4, "web", day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(0, 0, 0, 10)}, nil, day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(0, 0, 0, 18)}, held, day)
	assert.Equal(t, counts(0, 0, 0, 10), of(t, &l, "web", a4), "not read while it may have to be taken back")
	l.SentAgain(a4, counts(0, 0, 0, 3))
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(0, 0, 0, 18)}, nil, day)
	assert.Equal(t, counts(0, 0, 0, 15), of(t, &l, "web", a4))
	// More than has come since: the rest is left out of what comes when it is back.
	l.SentAgain(a4, counts(0, 0, 0, 2))
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(0, 0, 0, 18)}, nil, day)
	assert.Equal(t, counts(0, 0, 0, 15), of(t, &l, "web", a4), "a total never decreases")
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(0, 0, 0, 23)}, nil, day)
	assert.Equal(t, counts(0, 0, 0, 18), of(t, &l, "web", a4))
	l.SentAgain(a6, counts(1)) // of no port: nothing
	assert.Len(t, l.Marks, 1)
}

func TestOldTotalsGo(t *testing.T) {
	var l Ledger
	l.Own(a4, "web", day)
	l.Own(a6, "gone", day)
	l.Settle("t1", map[netip.Prefix]Counts{a4: counts(1), a6: counts(1)}, nil, day)
	l.Forget(a6)
	l.Settle("t1", nil, nil, day.Add(keepFor))
	assert.Len(t, l.Totals, 2)
	l.Settle("t1", nil, nil, day.Add(keepFor+1))
	require.Len(t, l.Totals, 1, "of a guest that is here they stay")
	assert.Contains(t, l.Totals, "web")

	for i := range most + 100 {
		l.add(fmt.Sprintf("x%06d", i), a6, Counts{}, day.Add(time.Duration(i)))
	}
	l.Settle("t1", nil, nil, day.Add(time.Hour))
	assert.Len(t, l.Totals, most)
	assert.Equal(t, counts(1), of(t, &l, "web", a4))
	assert.NotContains(t, l.Totals, "x000100", "those that did not change for longest go")
	assert.Contains(t, l.Totals, "x000101")
}

// TestNoPacketIsLostOrTwice: over readings, restarts, owners and rebuilt tables in any
// order, the totals are what was counted, and none of them ever decreases.
func TestNoPacketIsLostOrTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Ledger
		kernel, table, owner, all := map[netip.Prefix]Counts{}, 0, map[netip.Prefix]string{}, Counts{}
		own := func(p netip.Prefix, vm string) { owner[p] = vm; l.Own(p, vm, day) }
		own(a4, "web")
		own(a6, "web")
		settle := func() { l.Settle(fmt.Sprint(table), kernel, nil, day) }
		was := map[string]Counts{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			p := rapid.SampledFrom([]netip.Prefix{a4, a6}).Draw(t, "prefix")
			switch rapid.SampledFrom([]string{"packets", "packets", "read", "owner", "restart", "rebuild"}).Draw(t, "step") {
			case "packets":
				i, n := rapid.IntRange(0, int(counters)-1).Draw(t, "counter"), rapid.Uint64Range(1, 9).Draw(t, "n")
				k, c := kernel[p], fabric.Count{Packets: n, Bytes: 60 * n}
				k[i], all[i] = k[i].Plus(c), all[i].Plus(c)
				kernel[p] = k
			case "read":
				settle()
			case "owner":
				settle()
				own(p, rapid.SampledFrom([]string{"web", "db"}).Draw(t, "vm"))
			case "restart":
				settle()
				text, err := json.Marshal(l)
				require.NoError(t, err)
				l = Ledger{}
				require.NoError(t, json.Unmarshal(text, &l))
			case "rebuild":
				settle()
				table++
				clear(kernel)
			}
			for _, vm := range []string{"web", "db"} {
				for _, p := range []netip.Prefix{a4, a6} {
					have := l.Totals[vm][p].Counts
					for i := range have {
						require.GreaterOrEqual(t, have[i].Packets, was[vm+p.String()][i].Packets)
					}
					was[vm+p.String()] = have
				}
			}
		}
		settle()
		var sum Counts
		for _, prefixes := range l.Totals {
			for _, have := range prefixes {
				for i := range sum {
					sum[i] = sum[i].Plus(have.Counts[i])
				}
			}
		}
		require.Equal(t, all, sum)
	})
}
