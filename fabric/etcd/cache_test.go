package etcd

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/vmfabric/vmfabric/fabric"
)

func testCache() *cache {
	c := fabric.Cluster{Name: "msk1", Registry: fabric.RegistryConfig{Etcd: &fabric.EtcdConfig{}}}.WithDefaults()
	return newCache(&c)
}

func TestKeys(t *testing.T) {
	k := testCache().keys
	for text, key := range map[string]string{
		"203.0.113.10/32":     "/vmfabric/msk1/addr/cb00710a/32",
		"203.0.113.0/28":      "/vmfabric/msk1/addr/cb007100/28",
		"2001:db8:100::9/128": "/vmfabric/msk1/addr/20010db8010000000000000000000009/128",
		"2001:db8:100::/64":   "/vmfabric/msk1/addr/20010db8010000000000000000000000/64",
	} {
		p := netip.MustParsePrefix(text)
		assert.Equal(t, key, k.address(p))
		back, err := k.prefixOf(key)
		require.NoError(t, err)
		assert.Equal(t, p, back)
	}
	for _, key := range []string{"addr/cb00710a", "addr/cb00710a/33", "addr/cb00710a/24", "addr/CB00710A/32", "addr/cb0071/32", "addr/x/32", "guest/x", "prefixes"} {
		_, err := k.prefixOf(k.root + key)
		assert.ErrorContains(t, err, key)
	}
	assert.Equal(t, "/vmfabric/msk1/guest/lxd%20default%2Fweb", k.guest("lxd default/web"))
}

// TestRangeOfAPrefix: it has every address and prefix inside, and neither neighbour.
func TestRangeOfAPrefix(t *testing.T) {
	k := testCache().keys
	for _, tt := range []struct {
		wide    string
		in, out []string
	}{
		{"203.0.113.8/29", []string{"203.0.113.8/32", "203.0.113.15/32", "203.0.113.12/30", "203.0.113.8/29"}, []string{"203.0.113.7/32", "203.0.113.16/32"}},
		{"2001:db8:100:1::/64", []string{"2001:db8:100:1::/128", "2001:db8:100:1:ffff:ffff:ffff:ffff/128", "2001:db8:100:1:8000::/65"}, []string{"2001:db8:100::ffff/128", "2001:db8:100:2::/128"}},
	} {
		first, end := k.inside(netip.MustParsePrefix(tt.wide))
		has := func(p string) bool { key := k.address(netip.MustParsePrefix(p)); return first <= key && key < end }
		for _, p := range tt.in {
			assert.True(t, has(p), p)
		}
		for _, p := range tt.out {
			assert.False(t, has(p), p)
		}
	}
}

// TestCacheTakesNothingOlder: lists, a watch, and what this node wrote or read come in
// any order.
func TestCacheTakesNothingOlder(t *testing.T) {
	c := testCache()
	at := netip.MustParsePrefix("203.0.113.10/32")
	key := c.keys.address(at)
	put := func(guest fabric.Identity, rev int64) change {
		e := entry{Format: format, Allocation: &fabric.Allocation{Prefix: at, State: fabric.Allocated, Guest: guest}}
		return change{key: key, value: []byte(e.encode()), rev: rev}
	}
	holds := func(want ...fabric.Identity) {
		t.Helper()
		all, _ := c.list(fabric.AllocationFilter{})
		guests := []fabric.Identity{}
		for _, a := range all {
			guests = append(guests, a.Guest)
		}
		assert.Equal(t, append([]fabric.Identity{}, want...), guests)
	}
	c.load(nil, 10)
	c.learn([]change{put("a", 12)}) // written
	c.watched([]change{put("b", 11), {key: key, absent: true, rev: 11}})
	holds("a")
	c.learn([]change{{key: key, absent: true, rev: 14}}) // deleted
	c.watched([]change{put("a", 12)})
	holds()
	c.watched([]change{put("c", 13)})
	holds()
	c.watched([]change{{key: key, absent: true, rev: 14}, put("d", 15)})
	holds("d")
	c.watched([]change{{key: key, absent: true, rev: 16}})
	c.learn([]change{put("d", 15)}) // read before, told after
	holds()
	c.load([]*mvccpb.KeyValue{{Key: []byte(key), Value: put("e", 15).value, ModRevision: 15}}, 15)
	holds()
	c.learn([]change{put("f", 20)})
	c.load([]*mvccpb.KeyValue{}, 19) // it began before
	holds("f")
	c.load([]*mvccpb.KeyValue{}, 21)
	holds()
}

func TestUnreadableValuesKeepTheirAddresses(t *testing.T) {
	for text, want := range map[string]string{
		`{"format":2,"allocation":{}}`: "is of a later version (2)",
		`{"format":1}`:                 "is damaged; release 203.0.113.10 when the guest runs that has it, or if none has",
		`x`:                            "is damaged; release 203.0.113.10 when the guest runs that has it, or if none has",
		`{"format":1,"allocation":{"prefix":"203.0.113.11/32","state":"allocated","guest":"a"}}`: "is of 203.0.113.11/32 by what is in it",
		`{"format":1,"allocation":{"prefix":"203.0.113.10/32","state":"lost"}}`:                  `is damaged (state "lost", guest "")`,
		`{"format":1,"allocation":{"prefix":"203.0.113.10/32","state":"allocated"}}`:             `is damaged (state "allocated", guest "")`,
	} {
		c := testCache()
		at := netip.MustParsePrefix("203.0.113.10/32")
		c.load([]*mvccpb.KeyValue{{Key: []byte(c.keys.address(at)), Value: []byte(text), ModRevision: 3}}, 3)
		require.Len(t, c.problems(), 1, text)
		assert.Contains(t, c.problems()[0], want)
		_, err := c.decide(request{allocate: &fabric.AllocationRequest{Guest: "b", Wants: []fabric.Want{{Prefix: at}}}}, time.Now())
		require.ErrorIs(t, err, fabric.ErrRefused, text)
		held, is := errors.AsType[*fabric.AllocationError](err)
		require.True(t, is, text)
		assert.Contains(t, held.Holder.Flaw, want, "no agent gives it back by itself")
		assert.ErrorContains(t, err, "203.0.113.10 may be another guest's: key /vmfabric/msk1/addr/cb00710a/32 ")
		assert.ErrorContains(t, err, want)
		p, err := c.decide(request{release: &fabric.ReleaseRequest{Prefix: at}}, time.Now())
		require.NoError(t, err)
		for _, put := range p.change.Put {
			assert.Empty(t, put.Flaw, "it is never recorded")
		}
		p, err = c.decide(request{release: &fabric.ReleaseRequest{Prefix: at, Now: true}}, time.Now())
		require.NoError(t, err)
		assert.Equal(t, []netip.Prefix{at}, p.change.Delete, "the way out")
		c.watched([]change{{key: c.keys.address(at), absent: true, rev: 4}})
		assert.Empty(t, c.problems())
	}
}

// TestUnreadableGuest: what cannot be read of a guest is told, until its next owner has
// written it anew.
func TestUnreadableGuest(t *testing.T) {
	for text, want := range map[string]string{
		"x":            "key /vmfabric/msk1/guest/a is damaged; stop and start its guest",
		`{"format":2}`: "key /vmfabric/msk1/guest/a is of a later version (2); bring this node to the version of the others",
	} {
		c := testCache()
		c.load([]*mvccpb.KeyValue{{Key: []byte(c.keys.guest("a")), Value: []byte(text), ModRevision: 3}}, 3)
		assert.Equal(t, []string{want}, c.problems())
		c.watched([]change{{key: c.keys.guest("a"), value: []byte(entry{Format: format, VM: "a"}.encode()), rev: 4}})
		assert.Empty(t, c.problems())
	}
}

// TestLostAnswer: a transaction whose answer was lost is known by what it wrote.
func TestLostAnswer(t *testing.T) {
	c := testCache()
	c.load(nil, 1)
	p, err := c.decide(request{allocate: &fabric.AllocationRequest{Guest: "a", VM: "a", Wants: []fabric.Want{{Prefix: netip.MustParsePrefix("192.0.2.1/32")}}}}, time.Now())
	require.NoError(t, err)
	mine, other := p.operation("mine", nil, false), p.operation("other", nil, false)
	assert.True(t, mine.happened(mine.written(7)))
	assert.False(t, mine.happened(other.written(7)))
	assert.False(t, mine.happened(nil))
	c.learn(mine.written(7))
	p, err = c.decide(request{release: &fabric.ReleaseRequest{Guest: "a", Now: true}}, time.Now())
	require.NoError(t, err)
	ends := p.operation("ends", nil, false)
	assert.True(t, ends.happened(ends.written(8)), "all that it deletes is gone")
	assert.False(t, ends.happened(mine.written(7)))
}

// TestPrefixesDoNotMeet: guests that get a prefix and an address each from the same pools
// at the same time do not get in each other's way, once a prefix of that length was given.
// The first one of a length makes everybody decide anew.
func TestPrefixesDoNotMeet(t *testing.T) {
	cluster := fabric.Cluster{Name: "msk1", Registry: fabric.RegistryConfig{Etcd: &fabric.EtcdConfig{}}, Pools: []fabric.Pool{
		{Name: "own4", Prefix: netip.MustParsePrefix("203.0.113.0/24"), PerGuest: 29},
		{Name: "own6", Prefix: netip.MustParsePrefix("2001:db8:100::/48"), PerGuest: 64},
		{Name: "many4", Prefix: netip.MustParsePrefix("198.51.0.0/16")},
		{Name: "many6", Prefix: netip.MustParsePrefix("2001:db8:200::/48")},
	}}.WithDefaults()
	c := newCache(&cluster)
	c.load(nil, 1)
	plans := func(guest fabric.Identity, pools ...string) (*plan, operation) {
		a := fabric.AllocationRequest{Guest: guest, VM: string(guest)}
		for n, pool := range pools {
			a.Wants = append(a.Wants, fabric.Want{N: n, Pool: pool})
		}
		p, err := c.decide(request{allocate: &a}, time.Now())
		require.NoError(t, err)
		return p, p.operation(string(guest), nil, false)
	}
	meet := func(p *plan, o operation) bool {
		return slices.ContainsFunc(o.writes, func(w change) bool {
			_, depends := p.revs[w.key]
			return depends
		})
	}
	all := []string{"own4", "own6", "many4", "many6"}
	one, first := plans("a", all...)
	two, _ := plans("b", "many4")
	require.True(t, meet(two, first))
	require.False(t, two.narrow([]change{{key: c.keys.prefixes(), rev: 2}}), "more has changed than it read")

	c.learn(first.written(2))
	require.Equal(t, prefixesOf(one.answer), prefixesOf(allocationsOf(c, "a")))
	one, first = plans("b", all...)
	two, second := plans("c", all...)
	require.False(t, meet(two, first) || meet(one, second))
	for _, w := range one.wide {
		assert.Zero(t, c.revs.of(c.keys.address(w)))
	}
	// What may be around an address is one of the prefixes in use.
	at := netip.MustParsePrefix("2001:db8:300:5::7/128")
	p, err := c.decide(request{allocate: &fabric.AllocationRequest{Guest: "d", Wants: []fabric.Want{{Prefix: at}}}}, time.Now())
	require.NoError(t, err)
	_, depends := p.revs[c.keys.address(netip.MustParsePrefix("2001:db8:300:5::/64"))]
	assert.True(t, depends)
	assert.Len(t, p.revs, 4, "the address, the prefix around it, the guest, and the lengths of prefixes")

	// The lengths are known to a node that lists all anew, and as long as their keys are there.
	again := newCache(&cluster)
	again.watched(append(first.written(3), change{key: c.keys.length(length{128, 56}), value: []byte("{}"), rev: 4}))
	assert.Equal(t, map[length]bool{{128, 56}: true}, again.lengths)
	again.load(nil, 5)
	assert.Empty(t, again.lengths)
	for _, key := range []string{"prefixes", "prefixes/128", "prefixes/128/064", "prefixes/x/64", "addr/128/64"} {
		_, is := c.keys.readLength(c.keys.root + key)
		assert.False(t, is, key)
	}
}

func allocationsOf(c *cache, guest fabric.Identity) (all []fabric.Allocation) {
	known, _ := c.list(fabric.AllocationFilter{})
	for _, a := range known {
		if a.Guest == guest {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(x, y fabric.Allocation) int { return x.N - y.N })
	return all
}

func prefixesOf(all []fabric.Allocation) (ps []netip.Prefix) {
	for _, a := range all {
		ps = append(ps, a.Prefix)
	}
	return ps
}
