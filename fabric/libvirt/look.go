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
	ctx, cancel := context.WithTimeout(ctx, s.daemon.Times.Call)
	defer cancel()
	c, release, err := s.daemon.Borrow(ctx)
	if err != nil {
		return vm, false, err
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
		return vm, false, nil
	case errors.Is(err, hypervisor.ErrTimeout):
		return vm, false, fmt.Errorf("libvirt: domain %s: no answer on %s in %v; look for a hook that hangs, or restart libvirtd", name, c.path, s.daemon.Times.Call)
	case err != nil:
		return vm, false, fmt.Errorf("libvirt: domain %s: %w; try again", name, err)
	}
	xml := []byte(<-answer)
	if !domxml.MayBeOurs(xml) {
		return vm, false, nil
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
