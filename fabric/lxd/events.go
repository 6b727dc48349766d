package lxd

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// event is an event of /1.0/events.
type event struct {
	Type, Location, Project string
	Metadata                struct {
		Action, Source string // of a lifecycle event
		Context        struct {
			OldName string `json:"old_name"`
		}
		Description string // of an operation
		Code        int    `json:"status_code"`
		Resources   json.RawMessage
	}
}

// hear handles an event. It waits for nothing, because the next event waits for it.
func (s *Source) hear(c *conn, message []byte) {
	var e event
	if err := json.Unmarshal(message, &e); err != nil {
		s.log.Warn("event not understood; listing instances instead", "err", err)
		s.queue.PutLost()
		return
	}
	switch e.Type {
	case "operation":
		s.noteMigration(c, e)
		return
	case "lifecycle":
	default:
		return
	}
	s.daemon.Heard()
	s.log.Debug(s.name+" event", "action", e.Metadata.Action, "source", e.Metadata.Source, "project", e.Project, "location", e.Location)
	what, name, project := c.subject(e.Metadata.Source, e.Project)
	switch what {
	case "instances", "containers", "virtual-machines":
	case "profiles", "projects", "cluster":
		s.queue.PutLost() // many instances may have changed
		return
	default:
		return
	}
	for _, n := range []string{name, e.Metadata.Context.OldName} {
		if n == "" || s.passing(n) {
			continue
		}
		here := c.holds(e.Location)
		keys := s.named(project, n)
		room := len(keys) > 0 || !here
		for _, k := range keys {
			switch {
			case here && e.says("created"):
				s.returned(k)
				room = c.request(k, nil) && room
			case here && e.says("deleted"):
				room = c.request(k, s.deletedAs(k)) && room
			case here || s.minds(k) || e.says("migrated"):
				// Within a cluster, Incus reports a move as one of the member that the
				// instance left, and nothing for this one if it came here.
				room = c.request(k, nil) && room
			}
		}
		if !room {
			s.queue.PutLost()
		}
	}
}

// subject finds the object of an event in its source, such as
// /1.0/instances/web/snapshots/a?project=shop. The project is empty if the daemon
// does not send it (before LXD 4.0.9).
func (c *conn) subject(source, ofEvent string) (what, name, project string) {
	u, err := url.Parse(source)
	if err != nil {
		return "", "", ""
	}
	rest, _ := strings.CutPrefix(u.Path, c.api+"/")
	what, name, _ = strings.Cut(rest, "/")
	name, _, _ = strings.Cut(name, "/")
	return what, name, cmp.Or(ofEvent, u.Query().Get("project"))
}

// named returns the instances that a name may mean; without a project, all that
// were read.
func (s *Source) named(project, name string) []key {
	if project != "" {
		return []key{{project, name}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []key
	for k := range s.read {
		if k.name == name {
			keys = append(keys, k)
		}
	}
	return keys
}

// minds reports whether the source has anything to report when an instance is gone
// from here.
func (s *Source) minds(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, bad := s.conditions[k]
	_, stopped := s.stopped.byKey[k]
	return bad || stopped || s.owns(k)
}

// follow reads an instance and emits its state, and which instances of its name are
// gone for good.
func (s *Source) follow(ctx context.Context, c *conn, k key, gone deleted) {
	began := time.Now()
	reading, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	i, err := c.instance(reading, k)
	if err == nil && !c.holds(i.Location) {
		_, err = c.ask(reading) // this member may have another name by now
	}
	switch {
	case ctx.Err() != nil: // the list after the next connection makes up for it
	case hasCode(err, http.StatusNotFound), err == nil && !c.holds(i.Location):
		s.vanished(k, began)
	case err != nil:
		s.log.Warn(s.name+" does not tell of an instance; listing all instead", "vm", k.name, "err", err)
		s.queue.PutLost()
	default:
		s.arrived(i, began)
	}
	s.emitGone(ctx, c, k, gone, began)
}

// arrived takes an instance that was read, and emits its state.
func (s *Source) arrived(i instance, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.owns(i.key())
	d, ours := s.take(i, at)
	if !ours && i.Code == codeStopped && s.known[i.Name] == nil {
		// The agent may know it from before its keys were removed.
		d, ours = absent(s.bare(i), at), true
	}
	if ours {
		s.emit(i.key(), d, mine)
	}
}

// vanished emits that an instance is not here any more.
func (s *Source) vanished(k key, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read[k].After(at) {
		return
	}
	s.read[k] = at // so that an older list does not bring it back
	delete(s.conditions, k)
	s.stopped.remove(k)
	gone, mine := absent(fabric.VM{Name: k.name, Origin: s.name}, at), s.owns(k)
	if mine {
		gone.VM = s.known[k.name].vm
		delete(s.known, k.name)
	}
	if s.known[k.name] == nil {
		s.emit(k, gone, mine)
	}
}

// emit emits a guest's state; was: the source knew the guest before.
func (v *view) emit(k key, d fabric.Desired, was bool) {
	// A hook may have attached a guest that the source never saw, so emit that it
	// is absent. But before the first list the guest of that name may be another
	// instance.
	if d.State != fabric.Absent || was || v.listed {
		v.queue.Put(d)
	}
	if d.State == fabric.Absent && was && v.conflicts(k.name) {
		v.queue.PutLost()
	}
}

// conflicts reports whether instances of other projects wait for the name.
func (v *view) conflicts(name string) bool {
	for k, c := range v.conditions {
		if k.name == name && c.nameConflict {
			return true
		}
	}
	return false
}
