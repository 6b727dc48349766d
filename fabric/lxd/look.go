package lxd

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/vmfabric/vmfabric/fabric"
)

// Describe implements [fabric.Source]. The name is LXC's: that of the instance,
// after its project and an underscore unless that is the default one. If the
// default project has no such instance, Describe looks for one in another project.
func (s *Source) Describe(ctx context.Context, name string) (vm fabric.VM, ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return vm, false, err
	}
	defer release()
	k := keyOf(name)
	i, err := c.instance(ctx, k)
	if hasCode(err, http.StatusNotFound) && k.name == name {
		if k = s.elsewhere(name); k.project != defaultProject {
			i, err = c.instance(ctx, k)
		}
	}
	switch {
	case hasCode(err, http.StatusNotFound):
		return vm, false, nil
	case err != nil:
		return vm, false, fmt.Errorf("%s: instance %s: %w; see the log of %[1]s, and try again", s.name, name, err)
	case !c.holds(i.Location):
		return vm, false, nil
	}
	if vm, ours, err = s.guest(i); err != nil {
		return vm, true, fmt.Errorf("instance %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.known[vm.Name]; ours && other != nil && other.key != k {
		return vm, true, fmt.Errorf("instance %s: %w", name, s.nameConflict(i, other))
	}
	return vm, ours, nil
}

// keyOf splits an LXC name: neither projects nor instances have underscores in
// theirs.
func keyOf(name string) key {
	if project, instance, found := strings.Cut(name, "_"); found {
		return key{project, instance}
	}
	return key{defaultProject, name}
}

// elsewhere returns the guest with a name or, if there is none, the only stopped
// instance with it.
func (s *Source) elsewhere(name string) key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.known[name]; g != nil {
		return g.key
	}
	found := key{defaultProject, name}
	for k := range s.stopped.byKey {
		if k.name == name && found.project != defaultProject {
			return key{defaultProject, name}
		}
		if k.name == name {
			found = k
		}
	}
	return found
}
