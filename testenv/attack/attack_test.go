package attack_test

import (
	"flag"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/attack"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// cast are machines as a laboratory has them.
func cast() attack.Cast {
	at := func(v4, v6 string) attack.Pair {
		return attack.Pair{V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6)}
	}
	guest := func(n byte, v4, v6 string) attack.Guest {
		return attack.Guest{Pair: at(v4, v6), MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, n}}
	}
	return attack.Cast{
		Self: guest(1, "203.0.113.1", "2001:db8:100::1"), Gone: at("203.0.113.2", "2001:db8:100::2"),
		Other: guest(3, "203.0.113.3", "2001:db8:100::3"), Gateway: guest(4, "169.254.1.1", "fe80::1"),
		Node: guest(5, "10.10.0.21", "fd00:10:10::21"), Neighbor: at("10.10.0.77", "fd00:10:10::77"),
		Reflector: at("10.10.0.11", "fd00:10:10::11"), Core: at("10.10.0.1", "fd00:10:10::1"),
		Client: at("192.0.2.2", "2001:db8:ffff::2"), Free: at("203.0.113.9", "2001:db8:100::9"),
	}
}

// TestKinds: each kind has a name of its own, frames in each family that it has, and a
// promise; a token of each frame is found in it.
func TestKinds(t *testing.T) {
	kinds := attack.Kinds()
	assert.GreaterOrEqual(t, len(kinds), 60)
	sound(t, kinds)
	sound(t, attack.StrangerKinds)
}

func sound(t *testing.T, kinds []attack.Kind) {
	t.Helper()
	names := map[string]bool{}
	for n, k := range kinds {
		assert.False(t, names[k.Name], "%q twice", k.Name)
		names[k.Name] = true
		assert.True(t, k.Never != 0 || k.Keeps, "%q promises nothing", k.Name)
		for _, f := range attack.Families {
			if !k.Has(f) {
				continue
			}
			hostile := attack.NewVolley(cast(), f, n, 't', false)
			k.Hostile(hostile)
			require.NotEmpty(t, hostile.Frames, "%q, %s", k.Name, f)
			assert.Equal(t, hostile.Tokens, tokens(hostile), "%q, %s", k.Name, f)
			assert.True(t, len(hostile.Tokens) > 0 || k.Keeps, "%q, %s shows nothing", k.Name, f)
			honest := attack.NewVolley(cast(), f, n, 't', true)
			control, at := k.Control()
			control(honest)
			assert.Equal(t, honest.Tokens, tokens(honest), "%q, %s", k.Name, f)
			assert.NotEmpty(t, honest.Tokens)
			assert.NotZero(t, at)
			for _, frame := range append(hostile.Frames, honest.Frames...) {
				assert.GreaterOrEqual(t, len(frame), 14)
				assert.LessOrEqual(t, len(frame), 1514)
			}
		}
	}
}

// tokens lists those in the frames of a volley, each once.
func tokens(v *attack.Volley) (found []string) {
	seen := map[string]bool{}
	for _, f := range v.Frames {
		for _, t := range attack.TokensIn(f) {
			if !seen[t] {
				found = append(found, t)
			}
			seen[t] = true
		}
	}
	return found
}

// TestJudge: what is wrong is told, with the packet filter and without.
func TestJudge(t *testing.T) {
	at := map[string]attack.Place{"a": attack.Underlay, "b": attack.NodeItself}
	seen := func(token string) attack.Place { return at[token] }
	k := attack.Kind{Name: "a kind", Never: attack.Underlay | attack.OtherGuest, Alone: []attack.Family{attack.IPv6}}
	of := func(f attack.Family, tokens ...string) attack.Finding {
		return attack.Finding{Family: f, Tokens: tokens}
	}
	assert.Equal(t, []string{"a kind, IPv4: frame 1 reached the underlay"}, k.Judge(of(attack.IPv4, "a", "b", "c"), true, seen))
	assert.Equal(t, []string{
		"a kind, IPv4: frame 2 reached nothing without the packet filter, so its check shows nothing",
	}, k.Judge(of(attack.IPv4, "a", "b"), false, seen))
	assert.Equal(t, []string{"a kind, IPv6: frame 1 reached the underlay"}, k.Judge(of(attack.IPv6, "a", "b"), false, seen))
	keeps := attack.Kind{Name: "another", Keeps: true}
	assert.Equal(t, []string{"another, IPv4: changed a route"}, keeps.Judge(attack.Finding{Family: attack.IPv4, Changed: "a route"}, true, seen))
	assert.Equal(t, []string{"another, IPv4: changed nothing without the packet filter, so its check shows nothing"}, keeps.Judge(attack.Finding{Family: attack.IPv4}, false, seen))
	assert.Empty(t, keeps.Judge(attack.Finding{Family: attack.IPv4}, true, seen))
}

var update = flag.Bool("update", false, "write the tables of docs/security.md anew")

// TestDocumentation: docs/security.md has the tables of this package, and each test that
// they name exists.
func TestDocumentation(t *testing.T) {
	labtest.Documented(t, "../../docs/security.md", "testenv/attack", attack.Table(), *update)
	for _, r := range attack.Rows {
		require.NotEmpty(t, r.Shown, r.Attack)
		labtest.Declared(t, "../..", r.Shown...)
	}
	labtest.Declared(t, "../..", "internal/e2e TestHostileFrames", "internal/e2e TestFloods", "internal/e2e TestUnderlayStranger")
}
