package lxd

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// deleted has the UUIDs of instances that were deleted.
type deleted []string

// says reports whether an event says this of an instance, and not of a part of it such as
// a snapshot. An older LXD calls instances containers.
func (e event) says(what string) bool {
	switch kind, _ := strings.CutSuffix(e.Metadata.Action, "-"+what); kind {
	case "instance", "container", "virtual-machine":
		return true
	}
	return false
}

// afterMigration is how long after its migration the deletion of an instance belongs to
// that: `lxc move` to another server deletes the instance here when it is there.
const afterMigration = 10 * time.Minute

// noteMigration notes an operation that sends an instance to another server.
func (s *Source) noteMigration(c *conn, e event) {
	var on struct{ Instances, Containers []string }
	if !strings.HasPrefix(e.Metadata.Description, "Migrating ") || json.Unmarshal(e.Metadata.Resources, &on) != nil || !c.holds(e.Location) {
		return
	}
	for _, source := range append(on.Instances, on.Containers...) {
		_, name, project := c.subject(source, e.Project)
		for _, k := range s.named(project, name) {
			s.migrates(k, e.Metadata.Code)
		}
	}
}

// migrates notes the state of an instance's migration to another server.
func (s *Source) migrates(k key, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch code {
	case codeSuccess:
		s.migrations[k] = time.Now()
	case codeFailure, codeCancelled:
		delete(s.migrations, k)
	default:
		s.migrations[k] = time.Time{}
	}
}

// returned notes that there is an instance of that name again.
func (s *Source) returned(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.migrations, k)
}

// migrated reports whether an instance is being sent to another server, or was sent
// there lately.
func (v *view) migrated(k key) bool {
	ended, sent := v.migrations[k]
	return sent && (ended.IsZero() || time.Since(ended) < afterMigration)
}

// deletedAs returns the UUID of the instance that was deleted under a name, unless it
// went to another server or is not known.
func (s *Source) deletedAs(k key) deleted {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.migrated(k) {
		return nil
	}
	if was, known := s.seen[k]; known {
		return deleted{was.uuid}
	}
	return nil
}

// lastSeen is an instance as it was last read. It outlives the instance, since LXD
// reports late that it was deleted.
type lastSeen struct {
	uuid string
	at   time.Time
}

// forgetAfter is how long after an instance was last read the source forgets its UUID.
const forgetAfter = time.Minute

// emitGone emits that deleted instances are gone for good, unless the daemon has them
// elsewhere: a move within a cluster, or to another project, deletes the instance under
// its name, and makes it known under that again.
func (s *Source) emitGone(ctx context.Context, c *conn, k key, gone deleted, at time.Time) {
	if len(gone) == 0 || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.list)
	defer cancel()
	about, err := c.ask(ctx)
	var all []instance
	if err == nil {
		all, err = c.instances(ctx, about)
	}
	if err != nil {
		s.log.Warn(s.name+" does not tell whether a deleted instance moved; its addresses stay its own", "vm", k.name, "err", err)
		return
	}
	for _, uuid := range gone {
		if slices.ContainsFunc(all, func(i instance) bool { return i.uuid() == uuid || s.passing(i.Name) && i.ExpandedConfig[uuidKey] == "" }) {
			continue
		}
		s.queue.PutGone(absent(fabric.VM{Name: k.name, UUID: uuid, Origin: s.name}, at))
	}
}
