package etcd

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// note is a [Memory] of a test.
type note struct {
	content []byte
	bad     error
}

func (n *note) Get(v any) (bool, error) {
	if n.bad != nil || n.content == nil {
		return false, n.bad
	}
	return true, json.Unmarshal(n.content, v)
}

func (n *note) Put(v any) (err error) {
	n.content, err = json.Marshal(v)
	return err
}

// newPast makes the past of an agent that starts.
func newPast(m Memory) *past {
	p := &past{cache: &cache{keys: keys{"/vmfabric/msk1/", "node1"}}, memory: m}
	p.remember()
	return p
}

func (p *past) sees(v view) verdict {
	is, _ := p.judge(v, p.ask(), func() {})
	p.save()
	return is
}

// first is a registry as node1 has seen it last.
var first = view{cluster: "c1", rev: 100, is: Incarnation{Number: 1, ID: "a"}, isRev: 2, last: 90}

// changed gives a view that differs from another one.
func changed(v view, how func(v *view)) view {
	how(&v)
	return v
}

// TestRestoredIsRecognised: while an agent runs and after its restart, by what it has
// seen and written.
func TestRestoredIsRecognised(t *testing.T) {
	for name, tt := range map[string]struct {
		sees  view
		want  verdict
		says  string
		marks bool
	}{
		"the same":                           {first, trusted, "", false},
		"later":                              {changed(first, func(v *view) { v.rev, v.last = 200, 150 }), trusted, "", false},
		"older":                              {changed(first, func(v *view) { v.rev = 95 }), doubted, "is older than it was (revision 95, was 100)", true},
		"older, and later than it was since": {changed(first, func(v *view) { v.rev, v.last = 500, 80 }), doubted, "lacks what this node wrote last (at revision 90, it has 80)", true},
		"another cluster":                    {changed(first, func(v *view) { v.cluster = "c2" }), doubted, "is another one than before (cluster id c2, was c1)", true},
		"empty":                              {view{cluster: "c1", rev: 500}, doubted, "has no registry any more (incarnation 1 is gone)", true},
		"begun anew":                         {changed(first, func(v *view) { v.is.ID = "b" }), doubted, "has another registry than before", true},
		"a key that cannot be read":          {changed(first, func(v *view) { v.flaw, v.is = errors.New("key x is damaged"), Incarnation{} }), doubted, "key x is damaged", false},
		"another node says so": {changed(first, func(v *view) {
			v.markRev, v.restored = 99, mark{Node: "node2", Saw: "is older", Number: 1}
		}), doubted, "node node2 says that etcd is older", false},
		"adopted": {changed(first, func(v *view) { v.cluster, v.rev, v.last, v.is = "c2", 10, 0, Incarnation{Number: 2, ID: "b"} }), renewed, "", false},
		"adopted, and restored again": {changed(first, func(v *view) {
			v.is, v.markRev, v.restored = Incarnation{Number: 2, ID: "b"}, 99, mark{Node: "node2", Saw: "is older", Number: 2}
		}), doubted, "node node2 says that etcd is older", false},
	} {
		t.Run(name, func(t *testing.T) {
			var m note
			up := newPast(&m)
			require.Equal(t, trusted, up.sees(first))
			for when, p := range map[string]*past{"up": up, "restarted": newPast(&m)} {
				is, mark := p.judge(tt.sees, p.ask(), func() {})
				assert.Equal(t, tt.want, is, when)
				assert.Equal(t, tt.marks, mark != nil, when)
				if tt.want != doubted {
					require.NoError(t, p.broken(), when)
					continue
				}
				require.ErrorContains(t, p.broken(), tt.says, when)
			}
		})
	}
}

// TestDoubtStays: until the registry is adopted, also when its revision has passed what it
// was, and after a restart of the agent.
func TestDoubtStays(t *testing.T) {
	var m note
	p := newPast(&m)
	require.Equal(t, trusted, p.sees(first))
	require.Equal(t, doubted, p.sees(changed(first, func(v *view) { v.rev = 95 })))
	is, mark := p.judge(changed(first, func(v *view) { v.rev = 300 }), p.ask(), func() {})
	assert.Equal(t, doubted, is)
	assert.Nil(t, mark, "nothing of what is seen now proves it: it may be another etcd behind the endpoints")
	p.save()
	p = newPast(&m)
	require.ErrorContains(t, p.broken(), "is older than it was (revision 95, was 100)")
	assert.Equal(t, doubted, p.sees(changed(first, func(v *view) { v.rev = 400 })))

	taken := 0
	next := view{cluster: "c1", rev: 401, is: Incarnation{Number: 2, ID: "b"}, isRev: 401}
	p.cache.known = 400
	before := p.ask()
	is, _ = p.judge(next, before, func() { taken++ })
	assert.Equal(t, renewed, is)
	assert.Zero(t, p.cache.revision(), "forgotten")
	assert.Equal(t, 1, taken)
	require.NoError(t, p.broken())
	assert.EqualValues(t, 2, p.incarnation())
	late, _ := p.judge(changed(first, func(v *view) { v.rev = 402 }), before, func() { taken++ })
	assert.Equal(t, outdated, late)
	require.NoError(t, p.check(&etcdserverpb.ResponseHeader{ClusterId: 0xc1, Revision: 3}, before), "it was asked of the registry before")
	assert.Equal(t, 1, taken)
	p.save()
	assert.Equal(t, trusted, newPast(&note{content: m.content}).sees(next), "it was kept: %s", m.content)
}

// TestAnswersInAnotherOrder than the questions are no restored backup.
func TestAnswersInAnotherOrder(t *testing.T) {
	p := newPast(nil)
	empty := view{cluster: "1", rev: 9}
	require.Equal(t, unfounded, p.sees(empty))
	first := p.ask()
	require.Equal(t, trusted, p.sees(view{cluster: "1", rev: 10, is: Incarnation{Number: 1}, isRev: 10}))
	header := func(cluster uint64, rev int64) *etcdserverpb.ResponseHeader {
		return &etcdserverpb.ResponseHeader{ClusterId: cluster, Revision: rev}
	}
	is, _ := p.judge(empty, first, func() { t.Error("taken") })
	assert.Equal(t, outdated, is, "it was asked before another node began")
	early := p.ask()
	require.NoError(t, p.check(header(1, 13), p.ask()))
	p.wrote(p.guard(), 13)
	require.NoError(t, p.check(header(1, 11), early), "asked before, answered after")
	is, _ = p.judge(view{cluster: "1", rev: 11, is: Incarnation{Number: 1}, isRev: 10, last: 0}, early, func() {})
	assert.Equal(t, trusted, is, "likewise")
	assert.EqualValues(t, 13, p.guard().wrote)
	require.ErrorContains(t, p.check(header(1, 11), p.ask()), "etcd is older than it was (revision 11, was 13)")
	require.Error(t, p.check(header(1, 99), p.ask()), "until it is adopted")
}

// TestAnotherPrefix proves nothing about the registry that was seen: the node gives no
// addresses by what is there, and goes on when the prefix is corrected.
func TestAnotherPrefix(t *testing.T) {
	var m note
	require.Equal(t, trusted, newPast(&m).sees(first))
	kept := m.content
	other := func() *past {
		p := &past{cache: &cache{keys: keys{"/other/msk1/", "node1"}}, memory: &m}
		p.remember()
		return p
	}
	p := other()
	for _, v := range []view{{cluster: "c1", rev: 120}, changed(first, func(v *view) { v.is.ID, v.last = "b", 0 })} {
		is, mark := p.judge(v, p.ask(), func() { t.Error("taken") })
		p.save()
		assert.Equal(t, doubted, is)
		assert.Nil(t, mark, "it may be the registry of others")
		require.ErrorContains(t, p.broken(), "its keys are below /other/msk1/ by the cluster file, and this node knows those below /vmfabric/msk1/")
	}
	assert.Equal(t, kept, m.content)
	assert.Equal(t, trusted, newPast(&m).sees(first))

	p = other()
	p.trust() // it is adopted
	assert.Equal(t, trusted, p.sees(first))
	require.NoError(t, other().broken())
	require.Error(t, newPast(&m).broken())
}

// TestUnreadableMemory is no empty one.
func TestUnreadableMemory(t *testing.T) {
	m := note{bad: errors.New("seen.json: damaged; remove it")}
	p := newPast(&m)
	require.ErrorContains(t, p.broken(), "seen.json: damaged; remove it")
	assert.Equal(t, doubted, p.sees(first))
	assert.Equal(t, doubted, p.sees(view{cluster: "c1", rev: 3}), "it begins nothing")
	assert.Nil(t, m.content)
	p.trust()
	assert.Equal(t, trusted, p.sees(first))
	assert.NotNil(t, m.content)
}
