package allocator

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestRowsKeepAllocations as they are.
func TestRowsKeepAllocations(t *testing.T) {
	var r rows
	text := rapid.SampledFrom([]string{"", "web", "node1", "a b", "Ünicode", "0"})
	identity := rapid.SampledFrom([]fabric.Identity{
		"", "libvirt aaaaaaaa-0000-4000-8000-000000000001", "libvirt AAAAAAAA-0000-4000-8000-000000000001", "lxd default/web aaaaaaaa-0000-4000-8000-000000000002",
		"attached web", "aaaaaaaa-0000-4000-8000-000000000001", "libvirt aaaaaaaa00004000800000000000000000001", " aaaaaaaa-0000-4000-8000-000000000001",
	})
	prefix := rapid.SampledFrom([]netip.Prefix{
		netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("2001:db8::1/128"), netip.MustParsePrefix("2001:db8::/48"), netip.MustParsePrefix("::ffff:1.2.3.4/128"),
	})
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		return rapid.SampledFrom([]time.Time{{}, time.Unix(0, 0).UTC(), time.Unix(1796023941, 123456789).UTC(), time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)}).Draw(t, "time")
	})
	rapid.Check(t, func(t *rapid.T) {
		a := fabric.Allocation{
			Prefix: prefix.Draw(t, "prefix"), Pool: text.Draw(t, "pool"), State: rapid.SampledFrom([]fabric.AllocationState{fabric.Allocated, fabric.Reserved, fabric.Quarantined}).Draw(t, "state"),
			Guest: identity.Draw(t, "guest"), VM: text.Draw(t, "vm"), NIC: rapid.IntRange(-1, 300).Draw(t, "nic"), N: rapid.IntRange(0, 300).Draw(t, "n"),
			Dynamic: rapid.Bool().Draw(t, "dynamic"), Node: text.Draw(t, "node"), Epoch: rapid.Uint64().Draw(t, "epoch"), Note: text.Draw(t, "note"),
			Reserved: rapid.Bool().Draw(t, "reserved"), NoAddress: rapid.Bool().Draw(t, "no address"), Since: moment.Draw(t, "since"), Until: moment.Draw(t, "until"),
		}
		r.put(a)
		is, there := r.get(a.Prefix)
		if !there || is != a {
			t.Fatalf("%+v is %+v", a, is)
		}
		owner := fabric.Owner{Node: text.Draw(t, "owner"), Epoch: a.Epoch}
		r.setOwner(a.Guest, owner)
		if got, known := r.owner(a.Guest); got != owner || known != (owner != fabric.Owner{}) {
			t.Fatalf("%v is owned by %v", a.Guest, got)
		}
	})
}

// TestRowsAreSmall: 20,000 addresses of 10,000 guests with UUIDs take at most 120 bytes each.
func TestRowsAreSmall(t *testing.T) {
	const n = 20_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := new(Table)
	for i := range n {
		a := fabric.Allocation{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Pool: "public4", State: fabric.Allocated,
			Guest: fabric.Identity(fmt.Sprintf("libvirt %08x-0000-4000-8000-%012d", uint32(i/2)*2654435761, i/2)), VM: fmt.Sprintf("guest%06d", i/2), N: i % 2,
			Dynamic: true, Node: fmt.Sprintf("node%d", i%1000), Epoch: 1<<44 + uint64(i), Since: time.Unix(1796023941, int64(i)).UTC(),
		}
		if i%2 == 1 {
			a.Pool, a.Prefix = "public6", netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 1, 0, byte(i * 7919 >> 8), byte(i * 7919), 9: byte(i >> 16), 10: byte(i >> 8), 15: byte(i)}), 128)
		}
		table.Put(a)
		table.SetOwner(a.Guest, a.Owner())
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	took := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes each", took)
	assert.Less(t, took, int64(120))
	require.Len(t, table.List(fabric.AllocationFilter{}), n)
}
