package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/internal/hypervisor"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
)

// Describe implements [fabric.Source]. It reads the domain by its name, defined or
// running. It is for people and not for hooks: a hook that waits for libvirt, which
// waits for the hook, would hang.
func (s *Source) Describe(ctx context.Context, name string) (vm fabric.VM, ours bool, err error) {
	xml, err := s.readXML(ctx, name)
	if err != nil || !domxml.MayBeOurs(xml) {
		return vm, false, err
	}
	d, err := domxml.Parse(bytes.NewReader(xml))
	if err != nil {
		return vm, true, fmt.Errorf("domain %s: %w", name, err)
	}
	if !d.Ours {
		return vm, false, nil
	}
	if d.Resolve {
		err = d.Plugged() // its NICs are the interfaces that Plugged checks
	}
	return d.VM(), true, err
}

// readXML returns the XML of the domain of a name; empty: there is none.
func (s *Source) readXML(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	answer := make(chan string, 1)
	err = c.call(ctx, question{}, func() error {
		dom, err := c.lv.DomainLookupByName(name)
		if err != nil {
			return err
		}
		xml, err := c.lv.DomainGetXMLDesc(dom, 0)
		answer <- xml
		return err
	})
	switch {
	case isNoDomain(err):
		return nil, nil
	case errors.Is(err, hypervisor.ErrTimeout):
		return nil, fmt.Errorf("libvirt: domain %s: no answer on %s in %v; look for a hook that hangs, or restart libvirtd", name, c.path, s.daemon.Times.Call)
	case err != nil:
		return nil, fmt.Errorf("libvirt: domain %s: %w; try again", name, err)
	}
	return []byte(<-answer), nil
}

// UserData implements [fabric.Source]: it is what the domain has beside <fabric:vm>, see
// [domxml.UserData].
func (s *Source) UserData(ctx context.Context, vm fabric.VM) ([]byte, error) {
	xml, err := s.readXML(ctx, vm.Name)
	if err != nil || len(xml) == 0 {
		return nil, err
	}
	data, uuid, err := domxml.UserData(xml)
	switch {
	case err != nil:
		return nil, fmt.Errorf("libvirt: domain %s: %w", vm.Name, err)
	case uuid != vm.UUID:
		return nil, fmt.Errorf("libvirt: domain %s is another one by now (%s)", vm.Name, uuid)
	}
	return data, nil
}
