package agent_test

import (
	"os"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/testenv/fake"
)

// looking runs an agent that follows a source called lxd.
func looking(t *testing.T, f func(t *testing.T, n *node, src *fake.Source)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		src := fake.NewSource("lxd")
		n := fresh(t, agent.WithSources(src))
		n.run(func() { f(t, n, src) })
	})
}

func TestStartingAndEnded(t *testing.T) {
	vm := from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 veth"))
	looking(t, func(t *testing.T, n *node, src *fake.Source) {
		src.Know("shop_web", vm)
		require.NoError(t, n.Starting(t.Context(), "lxd", "shop_web"))
		n.did("store web live", "wire web_net0", "announce 203.0.113.10/32 fresh", "announce 2001:db8:100:1::10/128 fresh")
		n.holds(want{vm, fabric.Live})
		require.NoError(t, n.Ended(t.Context(), "lxd", "shop_web"))
		n.did("withdraw 203.0.113.10/32", "withdraw 2001:db8:100:1::10/128", "store web wired")
		n.holds(want{vm, fabric.Wired})

		for _, do := range []func() error{
			func() error { return n.Starting(t.Context(), "lxd", "web") },
			func() error { return n.Ended(t.Context(), "lxd", "web") },
		} {
			require.NoError(t, do(), "none of ours")
			n.did()
		}
	})
}

func TestStartingIsRefused(t *testing.T) {
	looking(t, func(t *testing.T, n *node, src *fake.Source) {
		n.apply(db(), fabric.Live)
		n.journal.Take()
		src.Know("web", from("lxd", guest("web", "203.0.113.20 veth")))
		err := n.Starting(t.Context(), "lxd", "web")
		require.ErrorIs(t, err, fabric.ErrRefused)
		assert.ErrorContains(t, err, `held by VM "db"`)
		err = n.Starting(t.Context(), "incus", "web")
		require.NotErrorIs(t, err, fabric.ErrRefused)
		require.EqualError(t, err, "guest web: this agent does not follow incus; start it with --incus auto")
		require.ErrorContains(t, n.Ended(t.Context(), "incus", "web"), "does not follow incus")

		src.Fail("look", errBoom)
		err = n.Starting(t.Context(), "lxd", "web")
		require.ErrorIs(t, err, errBoom)
		require.NotErrorIs(t, err, fabric.ErrRefused, "nobody knows whether it is ours")
		require.ErrorIs(t, n.Ended(t.Context(), "lxd", "web"), errBoom)
		src.Fail("look", nil)

		// What was begun for a start that then fails is undone.
		free := from("lxd", guest("free", "203.0.113.30 2001:db8:100:1::30 veth"))
		src.Know("free", free)
		n.speaker.Fail("announce 2001:db8:100:1::30/128", errBoom)
		require.ErrorIs(t, n.Starting(t.Context(), "lxd", "free"), errBoom)
		n.speaker.Fail("announce 2001:db8:100:1::30/128", nil)
		n.journal.Take()
		n.holds(want{db(), fabric.Live})
	})
}

func TestDescribe(t *testing.T) {
	asleep := from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"))
	looking(t, func(t *testing.T, n *node, src *fake.Source) {
		src.Know("web", asleep)
		n.apply(db(), fabric.Live)
		for name, want := range map[string]fabric.VM{"web": asleep, "db": db()} {
			vm, gw, err := n.Describe(t.Context(), name)
			require.NoError(t, err)
			assert.Equal(t, want, vm)
			assert.True(t, gw.Gateway.IPv4.IsValid())
			assert.True(t, gw.Gateway.IPv6.IsValid())
		}
		_, _, err := n.Describe(t.Context(), "nobody")
		require.ErrorIs(t, err, os.ErrNotExist)
		require.ErrorContains(t, err, "guest nobody: ")

		n.apply(asleep, fabric.Live)
		src.Fail("look", errBoom)
		vm, _, err := n.Describe(t.Context(), "web")
		require.NoError(t, err, "its hypervisor is away")
		assert.Equal(t, asleep, vm)
		_, _, err = n.Describe(t.Context(), "nobody")
		require.EqualError(t, err, "guest nobody: boom")
		src.Fail("look", os.ErrNotExist)
		_, _, err = n.Describe(t.Context(), "nobody")
		require.ErrorContains(t, err, "no hypervisor of this node has one of the fabric")
	})
}

// TestUserDataOfAGuest: the source of the guest is asked, and no other.
func TestUserDataOfAGuest(t *testing.T) {
	looking(t, func(t *testing.T, n *node, src *fake.Source) {
		web := from("lxd", guest("web", "203.0.113.10 2001:db8:100:1::10 adopt"))
		n.apply(web, fabric.Live)
		n.apply(db(), fabric.Live)
		vm, known := n.Guest("web")
		assert.True(t, known)
		assert.Equal(t, web, vm)
		_, known = n.Guest("nobody")
		assert.False(t, known)

		src.SetUserData(web.Identity(), []byte("#cloud-config"))
		src.SetUserData(db().Identity(), []byte("another's"))
		data, err := n.UserData(t.Context(), web)
		require.NoError(t, err)
		assert.Equal(t, "#cloud-config", string(data))
		data, err = n.UserData(t.Context(), db())
		require.NoError(t, err)
		assert.Empty(t, data, "attached by hand")

		src.SetUserData(web.Identity(), make([]byte, fabric.MaxUserData))
		data, err = n.UserData(t.Context(), web)
		require.NoError(t, err)
		assert.Len(t, data, fabric.MaxUserData)
		src.SetUserData(web.Identity(), make([]byte, fabric.MaxUserData+1))
		data, err = n.UserData(t.Context(), web)
		require.EqualError(t, err, "guest web: user data of 65537 bytes; at most 65536, compress it")
		assert.Empty(t, data)
		src.Fail("user data of web", errBoom)
		_, err = n.UserData(t.Context(), web)
		require.ErrorIs(t, err, errBoom)
	})
}
