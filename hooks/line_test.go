package hooks

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/oneline"
)

func TestListOfNothingIsNotNull(t *testing.T) {
	b, err := encode(Reply{Ports: []fabric.PortEntry{}})
	require.NoError(t, err)
	assert.Contains(t, string(b), `"ports":[]`)
}

// The largest guest that fabric allows fits a line.
func TestLargestGuestFits(t *testing.T) {
	vm := fabric.VM{Name: strings.Repeat("x", fabric.MaxNameBytes), NICs: make([]fabric.NIC, fabric.MaxNICs)}
	long := netip.MustParseAddr("2001:db8:1234:5678:9abc:def0:1234:5678")
	for n := range vm.NICs {
		for range fabric.MaxAddresses {
			vm.NICs[n].Addresses = append(vm.NICs[n].Addresses, long)
			vm.NICs[n].Routes = append(vm.NICs[n].Routes, fabric.HostPrefix(long))
		}
	}
	b, err := encode(Request{V: Version, Op: Wire, VM: vm})
	require.NoError(t, err)
	assert.Less(t, len(b), maxRequest)
	req, err := decode(b)
	require.NoError(t, err)
	assert.Equal(t, vm, req.VM)
}

// A guest that is to be resolved says so: an agent that does not know the key
// refuses it, rather than wire a guest without addresses.
func TestUnresolvedGuest(t *testing.T) {
	vm := fabric.VM{Name: "web", Resolve: true, NICs: []fabric.NIC{{Kind: fabric.Tap}}}
	b, err := encode(Request{V: Version, Op: Wire, VM: vm})
	require.NoError(t, err)
	assert.Equal(t, `{"v":1,"op":"wire","vm":{"name":"web","nics":[{"addresses":null,"kind":"tap"}],"resolve":true}}`+"\n", string(b))
	req, err := decode(b)
	require.NoError(t, err)
	assert.Equal(t, vm, req.VM)
	_, err = decode([]byte(`{"v":1,"op":"wire","vm":{"name":"web","nics":[{"addresses":null}],"resolves":true}}`))
	require.ErrorContains(t, err, `unknown field "resolves"`)
}

// What a guest turns off is in a line only then: an agent that does not know the keys
// refuses such a guest alone.
func TestGuestWithoutAnswers(t *testing.T) {
	vm := fabric.VM{Name: "web", NoDHCP: true, NoRA: true}
	b, err := encode(Request{V: Version, Op: Wire, VM: vm})
	require.NoError(t, err)
	assert.Equal(t, `{"v":1,"op":"wire","vm":{"name":"web","nics":null,"no_dhcp":true,"no_ra":true}}`+"\n", string(b))
	req, err := decode(b)
	require.NoError(t, err)
	assert.Equal(t, vm, req.VM)
	b, err = encode(Request{V: Version, Op: Wire, VM: fabric.VM{Name: "web"}})
	require.NoError(t, err)
	assert.Equal(t, `{"v":1,"op":"wire","vm":{"name":"web","nics":null}}`+"\n", string(b))
}

func FuzzRequest(f *testing.F) {
	for _, req := range []Request{{V: 1, Op: Wire, VM: guest}, {V: 1, Op: List}, {V: 1, Op: Remove, VM: fabric.VM{Name: "web"}}} {
		b, err := encode(req)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte(`{"v":2,"op":"wire","more":[]}`))
	f.Add([]byte(`{"v":1,"op":"wire","vm":{"name":"web","resolve":true,"nics":[{"addresses":null,"kind":"tap"}]}}`))
	f.Add([]byte(`{"v":1,"op":"wire","vm":{"name":"a","nics":[{"addresses":["fe80::1%eth0",""],"mac":""}]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		req, err := decode(line)
		if err != nil {
			assert.NotContains(t, oneline.Of(err.Error()), "\n")
			return
		}
		assert.Equal(t, Version, req.V)
		b, err := encode(req)
		require.NoError(t, err)
		assert.Equal(t, 1, bytes.Count(b, []byte("\n")))
		again, err := decode(b)
		require.NoError(t, err)
		twice, err := encode(again)
		require.NoError(t, err)
		assert.Equal(t, string(b), string(twice))
	})
}

func BenchmarkLine(b *testing.B) {
	for b.Loop() {
		line, err := encode(Request{V: Version, Op: Wire, VM: guest})
		if err != nil {
			b.Fatal(err)
		}
		if _, err = decode(line); err != nil {
			b.Fatal(err)
		}
	}
}
