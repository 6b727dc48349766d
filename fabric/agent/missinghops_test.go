package agent_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestNextHop: a family whose next hop is gone is announced for no guest, those
// that start meanwhile among them, and is announced again when it is back.
func TestNextHop(t *testing.T) {
	for v6, family := range map[bool]string{false: "203.0.113.", true: "2001:db8:"} {
		t.Run(family, func(t *testing.T) {
			of := func(lines []string, same bool) (some []string) {
				for _, l := range lines {
					_, object, _ := strings.Cut(l, " ")
					if strings.Contains(object, ":") == v6 == same {
						some = append(some, l)
					}
				}
				return some
			}
			runs(t, nil, func(t *testing.T, n *node) {
				n.apply(web(), fabric.Live)
				moment()
				n.journal.Take()
				gone := errors.New("no next hop")
				n.dataplane.SetNextHop(v6, gone)
				moment()
				did := n.journal.Take()
				assert.ElementsMatch(t, of(webWithdrawn, true), slices.DeleteFunc(slices.Clone(did), func(l string) bool { return !strings.HasPrefix(l, "withdraw") }))
				assert.Empty(t, slices.DeleteFunc(did, func(l string) bool { return strings.HasPrefix(l, "withdraw") }))
				assert.Contains(t, n.problems(), "no next hop")
				faults, err := n.CheckForwarding(t.Context())
				require.NoError(t, err)
				assert.Equal(t, []fabric.ForwardingFault{{Family: map[bool]string{false: "IPv4", true: "IPv6"}[v6], Text: "no next hop", Withdrawn: true}}, faults)

				// One that begins, and one that is asked for again.
				n.apply(db(), fabric.Live)
				n.apply(web(), fabric.Live)
				moment()
				assert.ElementsMatch(t, of([]string{"announce 203.0.113.20/32"}, false), slices.DeleteFunc(n.journal.Take(), func(l string) bool { return !strings.HasPrefix(l, "announce") }))
				moment()
				assert.Empty(t, n.journal.Take(), "nothing is left to repair")

				n.dataplane.SetNextHop(v6, nil)
				moment()
				assert.ElementsMatch(t, append(of(webAnnounced, true), of([]string{"announce 203.0.113.20/32"}, true)...), slices.DeleteFunc(n.journal.Take(), func(l string) bool { return !strings.HasPrefix(l, "announce") }))
				n.holds(want{web(), fabric.Live}, want{db(), fabric.Live})
				assert.Empty(t, n.problems())
			})
		})
	}
}
