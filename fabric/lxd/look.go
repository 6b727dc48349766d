package lxd

import (
	"cmp"
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
	i, k, err := s.readInstance(ctx, keyOf(name), name)
	if err != nil || i == nil {
		return vm, false, err
	}
	if vm, ours, err = s.guest(*i); err != nil {
		return vm, true, fmt.Errorf("instance %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.known[vm.Name]; ours && other != nil && other.key != k {
		return vm, true, fmt.Errorf("instance %s: %w", name, s.nameConflict(*i, other))
	}
	return vm, ours, nil
}

// readInstance reads the instance of a key or, if the default project has none of a plain name, of
// another project; nil: there is none on this member of the cluster.
func (s *Source) readInstance(ctx context.Context, k key, name string) (*instance, key, error) {
	ctx, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return nil, k, err
	}
	defer release()
	i, err := c.instance(ctx, k)
	if hasCode(err, http.StatusNotFound) && k.name == name {
		if k = s.elsewhere(name); k.project != defaultProject {
			i, err = c.instance(ctx, k)
		}
	}
	switch {
	case hasCode(err, http.StatusNotFound):
		return nil, k, nil
	case err != nil:
		return nil, k, fmt.Errorf("%s: instance %s: %w; see the log of %[1]s, and try again", s.name, name, err)
	case !c.holds(i.Location):
		return nil, k, nil
	}
	return &i, k, nil
}

// Keys of an instance in which its owner leaves something for cloud-init. Of both, LXD
// prefers the first, which came later.
const (
	userDataKey       = "cloud-init.user-data"
	formerUserDataKey = "user.user-data"
)

// UserData implements [fabric.Source]. It is what LXD gives cloud-init, also from profiles.
func (s *Source) UserData(ctx context.Context, vm fabric.VM) ([]byte, error) {
	i, _, err := s.readInstance(ctx, s.elsewhere(vm.Name), vm.Name)
	if err != nil || i == nil {
		return nil, err
	}
	if i.uuid() != vm.UUID {
		return nil, fmt.Errorf("%s: instance %s is another one by now (%s)", s.name, vm.Name, i.uuid())
	}
	if text := cmp.Or(i.ExpandedConfig[userDataKey], i.ExpandedConfig[formerUserDataKey]); text != "" {
		return []byte(text), nil
	}
	return nil, nil
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
