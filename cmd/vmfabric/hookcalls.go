package main

import (
	"context"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/libvirt"
	"github.com/vmfabric/vmfabric/hooks"
)

// hookCalls is an agent that tells libvirt's source when libvirt has called the
// hook.
type hookCalls struct {
	hooks.Agent
	libvirt *libvirt.Source
}

// heard returns the agent for the hooks' socket.
func heard(agent hooks.Agent, sources []source) hooks.Agent {
	for _, s := range sources {
		if l, ok := s.(*libvirt.Source); ok {
			return hookCalls{agent, l}
		}
	}
	return agent
}

func (h hookCalls) note(vm fabric.VM) {
	if vm.Origin == h.libvirt.Name() {
		h.libvirt.HookCalled()
	}
}

func (h hookCalls) Apply(ctx context.Context, vm fabric.VM, s fabric.State) error {
	h.note(vm)
	return h.Agent.Apply(ctx, vm, s)
}

func (h hookCalls) Started(ctx context.Context, vm fabric.VM) error {
	h.note(vm)
	return h.Agent.Started(ctx, vm)
}
