package fabric_test

import (
	"encoding/json"
	"fmt"
	"go/build"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// Whoever brings a speaker and a dataplane of his own compiles nothing else. The
// decisions that are taken apart from the rest are bound by the same.
func TestPackageImportsTheStandardLibraryOnly(t *testing.T) {
	const own = "github.com/vmfabric/vmfabric/fabric/internal/"
	for dirs := []string{"."}; len(dirs) > 0; dirs = dirs[1:] {
		pkg, err := build.ImportDir(dirs[0], 0)
		require.NoError(t, err)
		require.NotEmpty(t, pkg.Imports)
		for _, path := range pkg.Imports {
			if part, ours := strings.CutPrefix(path, own); ours {
				dirs = append(dirs, "internal/"+part)
				continue
			}
			first, _, _ := strings.Cut(path, "/")
			assert.NotContains(t, first, ".", "import %q in %s", path, dirs[0])
			assert.NotEqual(t, "C", path)
		}
	}
}

func TestStateAsText(t *testing.T) {
	for state, text := range map[fabric.State]string{fabric.Absent: "absent", fabric.Wired: "wired", fabric.Live: "live"} {
		assert.Equal(t, text, state.String())
		b, err := state.MarshalText()
		require.NoError(t, err)
		assert.Equal(t, text, string(b))
		var back fabric.State
		require.NoError(t, back.UnmarshalText(b))
		assert.Equal(t, state, back)
	}
	assert.Less(t, fabric.Absent, fabric.Wired)
	assert.Less(t, fabric.Wired, fabric.Live)

	for _, none := range []fabric.State{0, 4} {
		assert.Equal(t, fmt.Sprintf("State(%d)", none), none.String())
		_, err := none.MarshalText()
		require.EqualError(t, err, fmt.Sprintf("state %d is not one of absent, wired, live", none))
	}
	s := fabric.Live
	require.EqualError(t, s.UnmarshalText([]byte("Live")), `state "Live" is not one of absent, wired, live`)
	require.Error(t, s.UnmarshalText(nil))
	assert.Equal(t, fabric.Live, s, "an error changes nothing")
}

func TestParseKind(t *testing.T) {
	for _, k := range []fabric.Kind{fabric.Tap, fabric.Veth, fabric.Adopt} {
		got, err := fabric.ParseKind(string(k))
		require.NoError(t, err)
		assert.Equal(t, k, got)
	}
	for _, s := range []string{"", "TAP", "bridge"} {
		_, err := fabric.ParseKind(s)
		require.EqualError(t, err, fmt.Sprintf("kind %q is not one of tap, veth, adopt", s))
	}
}

// The state on disk is in this form, and must be read by every version to come.
func TestDesiredAsJSON(t *testing.T) {
	since := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	d := fabric.Desired{
		VM: fabric.VM{Name: "web", UUID: "6d3c", Origin: "libvirt", NICs: []fabric.NIC{
			{
				Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}, Routes: []netip.Prefix{prefix("198.51.100.0/29")},
				Kind: fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 1}, Queues: 4, MTU: 9000,
			},
			{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.11")}},
		}},
		State: fabric.Live, Incoming: true, Since: since, Boot: "b1",
	}
	b, err := json.Marshal(d)
	require.NoError(t, err)
	assert.JSONEq(t, `{
		"vm": {"name": "web", "uuid": "6d3c", "origin": "libvirt", "nics": [
			{"addresses": ["203.0.113.10", "2001:db8:100::10"], "routes": ["198.51.100.0/29"], "kind": "tap", "mac": "52:54:00:00:00:01", "queues": 4, "mtu": 9000},
			{"addresses": ["203.0.113.11"]}
		]},
		"state": "live", "incoming": true, "since": "2026-11-22T20:00:00Z", "boot": "b1"
	}`, string(b))
	var back fabric.Desired
	require.NoError(t, json.Unmarshal(b, &back))
	assert.Equal(t, d, back)
	require.Error(t, json.Unmarshal([]byte(`{"state": ""}`), &back), "a forgotten state removes nobody")
}

func TestPorts(t *testing.T) {
	c := cluster()
	vm := guest("web", "203.0.113.10 2001:db8:100:1::10", "203.0.113.11 198.51.100.0/29 veth")
	ports := vm.Ports(&c)
	require.Len(t, ports, 2)
	assert.Equal(t, fabric.Port{
		Name: "web_net0", Cluster: "msk1", VM: "web", Index: 0, Gateway: c.Gateway,
		NIC: fabric.NIC{Addresses: vm.NICs[0].Addresses, Kind: fabric.Tap},
	}, ports[0])
	assert.Equal(t, fabric.Port{Name: "web_net1", Cluster: "msk1", VM: "web", Index: 1, Gateway: c.Gateway, NIC: vm.NICs[1]}, ports[1])
	assert.Empty(t, vm.NICs[0].Kind, "the guest itself stays as it is")

	assert.Equal(t, []string{"203.0.113.10/32", "2001:db8:100:1::10/128", "203.0.113.11/32", "198.51.100.0/29"}, texts(vm.Prefixes()))
	assert.Empty(t, fabric.VM{Name: "web"}.Ports(&c))
}

func TestVia(t *testing.T) {
	nic := guest("", "203.0.113.10 203.0.113.11 2001:db8:100:1::10 2001:db8:100:1::11").NICs[0]
	assert.Equal(t, "203.0.113.10", nic.Via(prefix("198.51.100.0/29")).String())
	assert.Equal(t, "2001:db8:100:1::10", nic.Via(prefix("2001:db8:200::/64")).String())
	assert.False(t, guest("", "203.0.113.10").NICs[0].Via(prefix("2001:db8:200::/64")).IsValid())
	assert.False(t, guest("", "2001:db8:100:1::10").NICs[0].Via(prefix("198.51.100.0/29")).IsValid())
}

func TestVMIsValid(t *testing.T) {
	for _, vm := range []fabric.VM{
		web(), db(),
		guest("сервер 1", "203.0.113.10"),
		guest("a:b", "2001:db8:100:1::10 adopt"),
		guest(strings.Repeat("x", fabric.MaxNameBytes), "203.0.113.10"),
		{Name: "web", NICs: []fabric.NIC{{Addresses: db().NICs[0].Addresses, MTU: 1280}, {Addresses: web().NICs[0].Addresses, MTU: 65521}}},
	} {
		assert.NoError(t, vm.Validate(), vm.Name)
	}
}

func TestPoolsOfAGuest(t *testing.T) {
	for _, pool := range []string{"public4", fabric.AutoPool, "a.b_c-d", strings.Repeat("x", 32)} {
		vm := fabric.VM{Name: "web", NICs: []fabric.NIC{{Pools: []string{pool}}}}
		assert.NoError(t, fabric.ValidatePool(pool))
		assert.NoError(t, vm.Validate())
		assert.True(t, vm.Unresolved())
	}
	for _, pool := range []string{"", " ", "a b", ".a", "-a", "a,b", "a/b", "a\nb", "é", strings.Repeat("x", 33)} {
		err := fabric.ValidatePool(pool)
		require.EqualError(t, err, fmt.Sprintf("%q is not the name of a pool; write one such as public4, or auto", pool))
		vm := fabric.VM{Name: "web", NICs: []fabric.NIC{{Pools: []string{"public4"}}, {Pools: []string{pool}}}}
		assert.EqualError(t, vm.Validate(), "NIC 1: "+err.Error())
	}
}

// A name that looks like another, or blank, or turns around what is shown beside it, is
// refused; letters of every script are not.
func TestNamesCanBeSeen(t *testing.T) {
	for _, r := range []rune{
		0x00a0, 0x1160, 0x1680, 0x17b4, 0x2000, 0x2003, 0x2009, 0x200a, 0x202f, 0x205f, 0x2800, 0x3000, 0xffa0, 0x16fe4, 0x1d159, // empty, or a space
		0x00ad, 0x034f, 0x061c, 0x115f, 0x180e, 0x200b, 0x200c, 0x200d, 0x200e, 0x200f, 0x2028, 0x2029,
		0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2060, 0x2064, 0x2066, 0x2067, 0x2068, 0x2069, 0x3164, 0xfe0f, 0xfeff, 0xfff9, 0x1d173, 0xe0001, 0xe0041, 0xe0100,
	} {
		for _, name := range []string{"web" + string(r), string(r) + "web", "we" + string(r) + "b", string(r)} {
			err := fabric.ValidateName(name)
			require.ErrorContains(t, err, fmt.Sprintf("has %U, which cannot be seen, looks like a space or turns text around; rename the VM", r))
			assert.True(t, utf8.ValidString(err.Error()) && !strings.ContainsRune(err.Error(), r), "%q", err)
			assert.Error(t, guest(name, "203.0.113.10").Validate())
		}
	}
	for _, name := range []string{" ", " web", "web ", "  "} {
		assert.ErrorContains(t, fabric.ValidateName(name), "begins or ends with a space", "%q", name)
	}
	for _, name := range []string{"сервер", "日本語", "שרת", "خادم", "वेब", "web 1", "café", "한국어", "ខ្មែរ", "⠓⠊", "web🙂"} {
		assert.NoError(t, fabric.ValidateName(name), name)
	}
}

// TestAllocatedPart tells what the registry gave a NIC from what its description has.
func TestAllocatedPart(t *testing.T) {
	ip := netip.MustParseAddr
	described := fabric.NIC{Addresses: []netip.Addr{ip("203.0.113.9")}, Routes: []netip.Prefix{prefix("198.51.100.0/29")}, MTU: 1400}
	is := described.
		WithAllocated(fabric.Allocation{Prefix: prefix("203.0.113.10/32")}).
		WithAllocated(fabric.Allocation{Prefix: prefix("2001:db8:100:5::/64")}).
		WithAllocated(fabric.Allocation{Prefix: prefix("203.0.113.64/29")})
	assert.Equal(t, []netip.Addr{ip("203.0.113.9"), ip("203.0.113.10"), ip("2001:db8:100:5::1"), ip("203.0.113.65")}, is.Addresses)
	assert.Equal(t, []netip.Prefix{prefix("198.51.100.0/29"), prefix("2001:db8:100:5::/64"), prefix("203.0.113.64/29")}, is.Routes)
	assert.Equal(t, []netip.Prefix{prefix("203.0.113.10/32"), prefix("2001:db8:100:5::/64"), prefix("203.0.113.64/29")}, is.Allocated())
	assert.Equal(t, described, is.Static())
	assert.NoError(t, fabric.VM{Name: "web", NICs: []fabric.NIC{is}}.Validate())
	bare := is.WithAllocated(fabric.Allocation{Prefix: prefix("2001:db8:100:6::/64"), NoAddress: true})
	assert.Equal(t, is.Addresses, bare.Addresses)
	assert.Equal(t, append(is.Allocated(), prefix("2001:db8:100:6::/64")), bare.Allocated())
	assert.Equal(t, []bool{false, true}, []bool{bare.Bare(prefix("2001:db8:100:5::/64")), bare.Bare(prefix("2001:db8:100:6::/64"))})
	assert.Equal(t, described, bare.Static())
	is.DynamicRoutes = 4
	assert.EqualError(t, fabric.VM{Name: "web", NICs: []fabric.NIC{is}}.Validate(), "NIC 0: 3 of 4 addresses and 4 of 3 routes are said to come from pools")
}
