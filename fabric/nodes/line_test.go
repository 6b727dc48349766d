package nodes

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// TestLaterKinds: an agent is asked what it said that it answers.
func TestLaterKinds(t *testing.T) {
	of := func(kind fabric.NoticeKind) fabric.Notice {
		return fabric.Notice{Kind: kind, VM: "web", Identity: "libvirt 1"}
	}
	between, now := hello{First: maxFirst}, hello{First: maxFirst, Asks: laterKinds}
	for _, kind := range laterKinds {
		_, err := between.understood(of(kind))
		require.ErrorIs(t, err, errors.ErrUnsupported)
		require.ErrorContains(t, err, "its agent is older and does not ")
		told, err := now.understood(of(kind))
		require.NoError(t, err)
		require.Equal(t, of(kind), told)
	}
	for _, kind := range []fabric.NoticeKind{fabric.Acquiring, fabric.Claimed} {
		told, err := between.understood(of(kind))
		require.NoError(t, err)
		require.Equal(t, of(kind), told)
	}
}

// FuzzQuestion: whatever a node asks, it is answered or refused in one line, and
// only what is a notice of a node gets to the agent.
func FuzzQuestion(f *testing.F) {
	const good = `{"v":1,"to":"node1","nonce":"n","from":{"name":"node2","address":"10.10.0.22"},"notice":{"kind":"claimed","vm":"web","prefixes":["203.0.113.10/32","2001:db8:100::10/128"]}}`
	for _, s := range []string{
		good, "", "{}", "null", "[]", strings.Replace(good, "claimed", "x", 1), strings.Replace(good, `"v":1`, `"v":9`, 1),
		strings.Replace(good, `"claimed","vm":"web"`, `"listing","vm":""`, 1), strings.Replace(good, `"claimed","vm":"web"`, `"explaining","vm":""`, 1),
		strings.Replace(good, "node2", "node3", 1), strings.Replace(good, "node2", "node9", 1), strings.Replace(good, "10.10.0.22", "fd00::1%eth0", 1),
		strings.Replace(good, `"prefixes"`, `"move":{"vm":"web","prefixes":null,"outcome":"","resent":0,"seen":{"rr1":"2026-11-22T12:03:04Z"}},"prefixes"`, 1),
	} {
		f.Add([]byte(s))
	}
	c := core.SmallCluster(3)
	f.Fuzz(func(t *testing.T, body []byte) {
		n := New(Config{Cluster: c, Node: c.Nodes[0]})
		asked := false
		d := &dialogue{Conn: &flood{}, source: c.Nodes[1].Address, lines: &reader{}}
		require.True(t, n.admit(d.source, d.Conn))
		r := n.answer(t.Context(), d, body, func(_ context.Context, from fabric.Node, notice fabric.Notice) fabric.Answer {
			asked = true
			require.Equal(t, c.Nodes[1].Name, from.Name)
			require.Equal(t, c.Nodes[1].Address, from.Address)
			require.NoError(t, notice.Validate())
			return fabric.Answer{}
		})
		require.Equal(t, r.Error == "", r.Answer != nil)
		require.False(t, asked && r.Error != "")
		require.Equal(t, r.Error == "", d.lines.trusted)
		require.NotContains(t, r.Error, "\n")
	})
}
