package fabric_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// These names are in the links of running nodes: they must never change.
func TestPortNamesAreStable(t *testing.T) {
	for _, tt := range []struct {
		vm    string
		index int
		port  string
		peer  string
	}{
		{"sea_gold", 0, "sea_gold_net0", "sea_gold_peer0"},
		{"sea_gold", 10, "sea_gold_net10", "sea_gold_peer10"},
		{"x", 63, "x_net63", "x_peer63"},
		{"vm.1-a", 1, "vm.1-a_net1", "vm.1-a_peer1"},
		{"tenletters", 0, "tenletters_net0", "tete55b2k_peer0"},
		{"tenletters", 10, "tete55b2k_net10", "tte55b2k_peer10"},
		{"elevenletter", 0, "elegda2grv_net0", "elgda2grv_peer0"},
		{"a-very-long-virtual-machine-name.example.org", 0, "a-vet7fvc4_net0", "a-et7fvc4_peer0"},
		{"web1.example", 0, "webwge5hkc_net0", "wewge5hkc_peer0"},
		{"my vm", 0, "myvq4pknym_net0", "myq4pknym_peer0"},
		{"vm:1", 0, "vm1ndiyzbp_net0", "vmndiyzbp_peer0"},
		{"it's", 0, "itsetho6hf_net0", "itetho6hf_peer0"},
		{"база", 0, "qkww677_net0", "qkww677_peer0"},
		{"база данных", 0, "rhymn44_net0", "rhymn44_peer0"},
		{"日本語", 10, "o5yqv3o_net10", "o5yqv3o_peer10"},
	} {
		assert.Equal(t, tt.port, fabric.PortName(tt.vm, tt.index))
		assert.Equal(t, tt.peer, fabric.PeerName(tt.vm, tt.index))
		assert.Equal(t, fmt.Sprintf("%s_net%d", tt.vm, tt.index), fabric.Port{VM: tt.vm, Index: tt.index}.FullPortName())
	}
}

// A name that begins with '-' is an option to every program that is given it.
func TestPortNamesBeginWithALetterOrADigit(t *testing.T) {
	for vm, port := range map[string][2]string{ // how they were called before, and are now
		"база-1":  {"-1c5gcdxv_net0", "1c5gcdxv_net0"},
		"-web":    {"-web_net0", "webttbriwy_net0"},
		"--":      {"--_net0", "3akwxlq_net0"},
		".web":    {".web_net0", "web36sqbvr_net0"},
		"_web":    {"_web_net0", "webmtozeao_net0"},
		"сервер_": {"_uxmltyu_net0", "uxmltyu_net0"},
	} {
		assert.Equal(t, port, [2]string{fabric.FormerPortName(vm, 0), fabric.PortName(vm, 0)}, vm)
	}
}

var (
	legalLink  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)
	formerLink = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
)

func FuzzPortName(f *testing.F) {
	for _, vm := range []string{"sea_gold", "", "..", "a b", "база", "база-1", "-", "_x", "tenletters", strings.Repeat("x", 180), "\xff", "a/b"} {
		f.Add(vm, uint8(0))
		f.Add(vm, uint8(63))
	}
	f.Fuzz(func(t *testing.T, vm string, n uint8) {
		index := int(n) % fabric.MaxNICs
		port, peer := fabric.PortName(vm, index), fabric.PeerName(vm, index)
		assert.Regexp(t, legalLink, port)
		assert.Regexp(t, legalLink, peer)
		assert.NotEqual(t, port, peer)
		assert.True(t, strings.HasSuffix(port, fmt.Sprintf("_net%d", index)))
		if full := fmt.Sprintf("%s_net%d", vm, index); legalLink.MatchString(full) {
			assert.Equal(t, full, port)
		}
		assert.Equal(t, port, fabric.PortName(vm, index))
		// What is legal now was called so before.
		former := fabric.FormerPortName(vm, index)
		assert.Regexp(t, formerLink, former)
		if legalLink.MatchString(former) {
			assert.Equal(t, former, port)
		}
	})
}

// The hash of 35 bits lets one pair in 3e10 collide, of names with the same
// first letters; in these it does not.
func TestPortNamesOfManyGuestsDiffer(t *testing.T) {
	ports := map[string]string{}
	for i := range 20_000 {
		for _, form := range []string{"vm%d", "customer-%d", "web-%05d.example.org", "сервер-%d", "tenant%d_postgres_replica"} {
			vm := fmt.Sprintf(form, i)
			port := fabric.PortName(vm, 0)
			if other, taken := ports[port]; taken {
				t.Errorf("%s and %s are both %s", other, vm, port)
			}
			ports[port] = vm
		}
	}
	assert.Len(t, ports, 100_000)
}

func TestAlias(t *testing.T) {
	p := fabric.Port{Cluster: "msk1", VM: "sea_gold", Index: 3}
	assert.Equal(t, "vmfabric:msk1:sea_gold:3", p.Alias())
	longest := fabric.Port{Cluster: strings.Repeat("c", 32), VM: strings.Repeat("v", fabric.MaxNameBytes), Index: fabric.MaxNICs - 1}
	assert.Less(t, len(longest.Alias()), 256, "IFALIASZ")

	for _, foreign := range []string{
		"", "vmfabric", "vmfabric:", "vmfabric:msk1", "vmfabric:msk1:web", "vmfabric:msk1:web:", "vmfabric::web:0", "vmfabric:msk1::0",
		"vmfabric:msk1:0", "vmfabric:msk1:web:x", "vmfabric:msk1:web:-1", "vmfabric:msk1:web:+1", "vmfabric:msk1:web:01", "vmfabric:msk1:web:0 ",
		"vmfabric:msk1:web:99999999999999999999", "Vmfabric:msk1:web:0", " vmfabric:msk1:web:0", "other:msk1:web:0", "uplink to msk1",
	} {
		_, _, _, ok := fabric.ParseAlias(foreign)
		assert.False(t, ok, foreign)
	}
}

func FuzzParseAlias(f *testing.F) {
	for _, alias := range []string{"vmfabric:msk1:web:0", "vmfabric:a:b:c:1", "vmfabric::::0", "vmfabric:msk1:сервер:63", "vmfabric:a: :0", "x"} {
		f.Add(alias, "msk1", "web", 0)
	}
	f.Add("", "m", "a:b:1", 63)
	f.Add("", "m", ":", 7)
	f.Fuzz(func(t *testing.T, alias, cluster, vm string, index int) {
		// Whatever is read is what was written.
		if c, v, n, ok := fabric.ParseAlias(alias); ok {
			assert.Equal(t, alias, fabric.Port{Cluster: c, VM: v, Index: n}.Alias())
			assert.NotContains(t, c, ":")
			assert.NotEmpty(t, c)
			assert.NotEmpty(t, v)
			assert.GreaterOrEqual(t, n, 0)
		}
		// Whatever may be written is read.
		if strings.Contains(cluster, ":") || cluster == "" || fabric.ValidateName(vm) != nil || index < 0 {
			return
		}
		c, v, n, ok := fabric.ParseAlias(fabric.Port{Cluster: cluster, VM: vm, Index: index}.Alias())
		require.True(t, ok)
		assert.Equal(t, []any{cluster, vm, index}, []any{c, v, n})
		assert.True(t, utf8.ValidString(v))
	})
}
