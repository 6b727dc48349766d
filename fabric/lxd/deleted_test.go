package lxd

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// requireGone takes changes until one says that a guest is gone for good. Before that
// it may have been absent.
func requireGone(t *testing.T, s *Source, name, uuid string) {
	t.Helper()
	c := next(t, s)
	for !c.Gone {
		require.Equal(t, fabric.Absent, c.Guest.State, "%+v", c)
		c = next(t, s)
	}
	require.False(t, c.Lost)
	require.Equal(t, fabric.VM{Name: name, UUID: uuid, Origin: "lxd"}, c.Guest.VM)
	require.Equal(t, fabric.Absent, c.Guest.State)
	require.WithinDuration(t, time.Now(), c.Guest.Since, patience)
}

// requireNotGone takes what comes, and none of it says that a guest is gone for good.
func requireNotGone(t *testing.T, s *Source) {
	t.Helper()
	for {
		select {
		case c := <-s.Changes():
			require.False(t, c.Gone, "%+v", c)
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}

// operation sends an event of an operation on an instance of the default project.
func (d *daemon) operation(description string, code int, path string) {
	d.send(map[string]any{"type": "operation", "project": "default", "metadata": map[string]any{
		"description": description, "status_code": code, "resources": map[string][]string{"instances": {path}},
	}}, "", "", nil)
}

func TestDeletedInstanceIsGone(t *testing.T) {
	for name, i := range map[string]instance{
		"p2p": p2p("web", 10), "physical": physical("web", 10), "another's": with(p2p("web", 10), func(i *instance) {
			i.ExpandedConfig = config("user.other=x")
		}),
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t).start()
			d.set(stopped(i))
			s := follow(t, d)
			list(t, s)
			d.remove(key{"default", "web"})
			d.tell("instance-snapshot-deleted", "web/snapshots/a")
			requireNotGone(t, s)
			list(t, s) // comes before LXD's late event, and does not have it any more
			d.tell("instance-deleted", "web")
			requireGone(t, s, "web", "uuid of web")
			requireQuiet(t, s)
		})
	}

	t.Run("also when another has its name", func(t *testing.T) {
		d := newDaemon(t).start()
		d.set(stopped(p2p("web", 10)))
		s := follow(t, d)
		list(t, s)
		d.set(p2p("web", 11))
		d.mu.Lock()
		d.instances[key{"default", "web"}].ExpandedConfig["volatile.uuid"] = "another"
		d.mu.Unlock()
		d.tell("instance-deleted", "web")
		var told []fabric.Change
		for len(told) < 2 {
			told = append(told, next(t, s))
		}
		if told[1].Gone {
			told[0], told[1] = told[1], told[0]
		}
		assert.True(t, told[0].Gone)
		assert.Equal(t, "uuid of web", told[0].Guest.VM.UUID)
		assert.Equal(t, fabric.Live, told[1].Guest.State)
		assert.Equal(t, "another", told[1].Guest.VM.UUID)
	})
}

// What LXD deletes under one name it may have under another, on another member, or on
// another server.
func TestInstanceThatMovedIsNotGone(t *testing.T) {
	const path = "/1.0/instances/web"
	web := key{"default", "web"}
	for name, happens := range map[string]func(d *daemon){
		"renamed": func(d *daemon) {
			d.set(stopped(p2p("www", 10)))
			d.instances[key{"default", "www"}].ExpandedConfig["volatile.uuid"] = "uuid of web"
		},
		"in another project":        func(d *daemon) { d.set(in("shop", stopped(p2p("web", 10)))) },
		"on another member":         func(d *daemon) { d.set(with(stopped(p2p("web", 10)), func(i *instance) { i.Location = "node2" })) },
		"on its way to a member":    func(d *daemon) { d.set(instance{Name: "lxd-move-of-1", Code: codeError, Location: "node2"}) },
		"to another server":         func(d *daemon) { d.operation("Migrating instance", codeSuccess, path) },
		"of LXD 4.0":                func(d *daemon) { d.operation("Migrating container", codeSuccess, "/1.0/containers/web") },
		"to another server, by way": func(d *daemon) { d.operation("Migrating instance", 103, path) },
		"of which LXD lists nothing": func(d *daemon) {
			d.fail("/1.0/instances", http.StatusInternalServerError)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			d.cluster("node1")
			d.start()
			d.set(stopped(p2p("web", 10)))
			s := follow(t, d)
			list(t, s)
			d.remove(web)
			happens(d)
			d.tell("instance-deleted", "web")
			requireNotGone(t, s)
		})
	}
}

func TestInstanceThatDidNotMoveIsGone(t *testing.T) {
	const path = "/1.0/instances/web"
	for name, happens := range map[string]func(d *daemon, s *Source){
		"failed":       func(d *daemon, _ *Source) { d.operation("Migrating instance", codeFailure, path) },
		"cancelled":    func(d *daemon, _ *Source) { d.operation("Migrating instance", codeCancelled, path) },
		"another's":    func(d *daemon, _ *Source) { d.operation("Migrating instance", codeSuccess, path+"2") },
		"no migration": func(d *daemon, _ *Source) { d.operation("Updating instance", codeSuccess, path) },
		"no one's": func(d *daemon, _ *Source) {
			d.send(map[string]any{"type": "operation", "metadata": map[string]any{"description": "Migrating pool", "resources": nil}}, "", "", nil)
		},
		"long ago": func(_ *daemon, s *Source) {
			s.mu.Lock()
			s.migrations[key{"default", "web"}] = time.Now().Add(-2 * afterMigration)
			s.mu.Unlock()
		},
		"and came back": func(d *daemon, _ *Source) {
			d.operation("Migrating instance", codeSuccess, path)
			d.tell("instance-created", "web")
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t).start()
			d.set(stopped(p2p("web", 10)))
			s := follow(t, d)
			list(t, s)
			happens(d, s)
			d.remove(key{"default", "web"})
			d.tell("instance-deleted", "web")
			requireGone(t, s, "web", "uuid of web")
		})
	}
}

// What the source knows of instances that are gone is bounded.
func TestDeletedInstancesAreForgotten(t *testing.T) {
	d := newDaemon(t).start()
	d.set(stopped(p2p("web", 10)))
	d.set(p2p("db", 11))
	s := follow(t, d)
	list(t, s)
	d.remove(key{"default", "web"})
	s.mu.Lock()
	s.migrations[key{"default", "web"}] = time.Now().Add(-2 * afterMigration)
	s.seen[key{"default", "web"}] = lastSeen{"uuid of web", time.Now().Add(-2 * forgetAfter)}
	s.mu.Unlock()
	list(t, s)
	s.mu.Lock()
	defer s.mu.Unlock()
	assert.Empty(t, s.migrations)
	assert.Len(t, s.seen, 1)
	assert.Contains(t, s.seen, key{"default", "db"})
}
