package agent_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// TestNodesWithTwoRegistries: both say so, and name both nodes and both registries, until
// they have one. Two lives of one registry are told when they last.
func TestNodesWithTwoRegistries(t *testing.T) {
	right, wrong := fabric.RegistryIdentity{Name: "etcd, keys below /vmfabric/msk1/", ID: "85cfdd8100112233"}, fabric.RegistryIdentity{Name: "etcd, keys below /other/msk1/", ID: "e5f60718"}
	adopted, unread := right, right
	adopted.ID, unread.ID = "11111111", ""
	r := newRegistry(nil)
	var is [2]atomic.Pointer[fabric.RegistryIdentity]
	is[0].Store(&right)
	is[1].Store(&right)
	of := map[string]*atomic.Pointer[fabric.RegistryIdentity]{"node1": &is[0], "node2": &is[1]}
	pairsOf(t, fake.NewSource, gold(), func(t *testing.T, p *pair) {
		says := func(second fabric.RegistryIdentity, want bool, after time.Duration) {
			t.Helper()
			is[1].Store(&second)
			time.Sleep(after)
			for _, n := range []*node{p.one, p.two} {
				if !want {
					assert.Empty(t, n.problems(), n.name)
					continue
				}
				if assert.Len(t, n.problems(), 1, n.name) {
					text := n.problems()[0]
					for _, part := range []string{"node1", "node2", right.String(), second.String()} {
						assert.Contains(t, text, part)
					}
					assert.True(t, strings.HasPrefix(text, "registry: node "), text)
				}
			}
		}
		says(right, false, 3*time.Minute)
		says(wrong, true, 2*time.Minute)
		says(fabric.RegistryIdentity{Name: "files of its own"}, true, 2*time.Minute)
		says(unread, false, 2*time.Minute)
		says(adopted, false, 10*time.Second) // node1 hears of it, too, some seconds later
		says(right, false, 2*time.Minute)
		says(adopted, true, 4*time.Minute)
		p.ends[p.one].Cut("node2", true)
		p.ends[p.two].Cut("node1", true)
		time.Sleep(10 * time.Minute)
		for _, n := range []*node{p.one, p.two} {
			assert.NotContains(t, strings.Join(n.problems(), " "), "registry", "it may have gone")
		}
	}, func(node string) []agent.Option {
		return []agent.Option{agent.WithRegistry(r), agent.WithRegistryIdentity(func() fabric.RegistryIdentity { return *of[node].Load() })}
	})
}
