package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

// tenant is a guest of TestEndure, by whoever runs it. What is done to it may fail, as
// something else fails meanwhile: its hypervisor says afterwards where it is.
type tenant interface {
	start(ctx context.Context, node string) error
	ready(ctx context.Context) error // waits until a guest that was started serves its addresses
	stop(ctx context.Context) error
	crash(ctx context.Context) error
	move(ctx context.Context, to string) error
	// where finds out on which node the guest runs; "": on none. It mends what an
	// operator would have to, when the hypervisors are left with two halves of a guest.
	where(ctx context.Context) (node string, err error)
	// forget removes a guest that does not run from its hypervisor.
	forget(ctx context.Context) error
}

// settling is how long hypervisors may take to be at one about a guest, before somebody
// decides for them.
const settling = 30 * time.Second

// domainTenant is a guest of libvirt.
type domainTenant struct {
	o  hypervisors.DomainOptions
	lv map[string]*hypervisors.Libvirt
	d  *hypervisors.Domain // nil: it is defined nowhere
}

func (g *domainTenant) start(ctx context.Context, node string) error {
	var err error
	switch to := g.lv[node]; {
	case g.d == nil:
		g.d, err = to.Define(ctx, g.o)
	case g.d.Libvirt() != to:
		err = g.d.StartMigration(ctx, to, hypervisors.MigrateOptions{Offline: true}).Wait()
	}
	if err != nil {
		return err
	}
	return g.d.Start(ctx)
}

func (g *domainTenant) ready(ctx context.Context) error { return g.d.WaitReady(ctx) }
func (g *domainTenant) stop(ctx context.Context) error  { return g.d.Destroy(ctx) }

func (g *domainTenant) crash(context.Context) error {
	pid, err := g.d.Pid()
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func (g *domainTenant) move(ctx context.Context, to string) error {
	return g.d.StartMigration(ctx, g.lv[to], hypervisors.MigrateOptions{Bandwidth: 32}).Wait()
}

// states gives libvirt's word for the guest on each node that knows it.
func (g *domainTenant) states(ctx context.Context) (map[string]string, error) {
	states := map[string]string{}
	for node, lv := range g.lv {
		state, err := lv.Virsh(ctx, "domstate", g.o.Name)
		if err == nil {
			states[node] = strings.TrimSpace(state)
		} else if !strings.Contains(err.Error(), "failed to get domain") {
			return nil, err
		}
	}
	return states, nil
}

func (g *domainTenant) where(ctx context.Context) (string, error) {
	var on string
	atOne, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	err := core.Until(atOne, func() error {
		states, err := g.states(atOne)
		if err != nil {
			return err
		}
		if len(states) != 1 {
			return fmt.Errorf("domain %s is known to %v", g.o.Name, states)
		}
		for node, state := range states {
			switch {
			case state != "running" && state != "shut off":
				return fmt.Errorf("domain %s is %s on %s", g.o.Name, state, node)
			case g.d.Libvirt() != g.lv[node] && state == "running":
				err = g.d.Locate(atOne, g.lv[node])
			case g.d.Libvirt() != g.lv[node]:
				return fmt.Errorf("domain %s ended on %s", g.o.Name, node)
			}
			if on = ""; state == "running" {
				on = node
			}
		}
		return err
	})
	if err == nil || ctx.Err() != nil {
		return on, err
	}
	if failed := g.forget(ctx); failed != nil {
		return "", failed
	}
	return "", &mended{err}
}

// forget removes the guest from every libvirt.
func (g *domainTenant) forget(ctx context.Context) error {
	states, err := g.states(ctx)
	for node, state := range states {
		if state != "shut off" {
			_, ended := g.lv[node].Virsh(ctx, "destroy", g.o.Name)
			err = errors.Join(err, ended)
		}
		_, gone := g.lv[node].Virsh(ctx, "undefine", g.o.Name)
		err = errors.Join(err, gone)
	}
	g.d = nil
	return err
}

// mended is what hypervisors were left with, and that was removed.
type mended struct{ was error }

func (m *mended) Error() string { return "mended by hand: " + m.was.Error() }

// instanceTenant is a guest of LXD.
type instanceTenant struct {
	o  hypervisors.ContainerOptions
	lx map[string]*hypervisors.LXD
	c  *hypervisors.Container // nil: no LXD has it
}

func (g *instanceTenant) start(ctx context.Context, node string) error {
	var err error
	switch to := g.lx[node]; {
	case g.c == nil:
		g.c, err = to.Init(ctx, g.o)
	case g.c.LXD() != to:
		err = g.c.Move(ctx, to)
	}
	if err != nil {
		return err
	}
	return g.c.Start(ctx)
}

func (g *instanceTenant) ready(ctx context.Context) error { return g.c.WaitReady(ctx) }
func (g *instanceTenant) stop(ctx context.Context) error  { return g.c.Destroy(ctx) }

func (g *instanceTenant) crash(ctx context.Context) error {
	pid, err := g.c.Pid(ctx)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func (g *instanceTenant) move(ctx context.Context, to string) error {
	if err := g.c.Move(ctx, g.lx[to], "--stateless"); err != nil {
		return err
	}
	return g.c.WaitReady(ctx)
}

// states gives LXD's word for the guest on each node that has it.
func (g *instanceTenant) states(ctx context.Context) (map[string]string, error) {
	states := map[string]string{}
	for node, lx := range g.lx {
		line, err := lx.Lxc(ctx, "list", "^"+g.o.Name+"$", "--format", "csv", "-c", "s")
		if err != nil {
			return nil, err
		}
		if line = strings.TrimSpace(line); line != "" {
			states[node] = line
		}
	}
	return states, nil
}

func (g *instanceTenant) where(ctx context.Context) (string, error) {
	var on string
	atOne, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	err := core.Until(atOne, func() error {
		states, err := g.states(atOne)
		if err != nil {
			return err
		}
		if len(states) != 1 {
			return fmt.Errorf("instance %s is on %v", g.o.Name, states)
		}
		for node, state := range states {
			switch {
			case state != "RUNNING" && state != "STOPPED":
				return fmt.Errorf("instance %s is %s on %s", g.o.Name, state, node)
			case g.c.LXD() != g.lx[node]:
				return fmt.Errorf("instance %s came to %s, and lxc did not say so", g.o.Name, node)
			}
			if on = ""; state == "RUNNING" {
				on = node
			}
		}
		return nil
	})
	if err == nil || ctx.Err() != nil {
		return on, err
	}
	if failed := g.forget(ctx); failed != nil {
		return "", failed
	}
	return "", &mended{err}
}

// forget removes the guest from every LXD.
func (g *instanceTenant) forget(ctx context.Context) error {
	states, err := g.states(ctx)
	for node := range states {
		_, gone := g.lx[node].Lxc(ctx, "delete", g.o.Name, "--force")
		err = errors.Join(err, gone)
	}
	g.c = nil
	return err
}

// attachedTenant is a guest without a hypervisor. Whoever attaches it, or detaches it,
// repeats that until the agent has done it.
type attachedTenant struct {
	s    *system
	vm   fabric.VM
	g    *core.Guest
	want string // the node that is to have it
	has  string // the node that had it when that was last asked for with success
}

func (g *attachedTenant) apply(ctx context.Context) error {
	if g.has != "" && g.has != g.want {
		if err := g.ask(ctx, g.has, hooks.Remove); err != nil {
			return err
		}
		g.has = ""
	}
	if g.want == "" || g.has == g.want {
		return nil
	}
	err := g.ask(ctx, g.want, hooks.Wire)
	if err != nil {
		return err
	}
	switch node := g.s.top.Nodes[g.want]; {
	case g.g == nil:
		g.g, err = g.s.lab.AddGuest(node, g.vm, g.s.cluster.Gateway)
	case node.HasLink(fabric.PeerName(g.vm.Name, 0)):
		err = g.g.Plug(node)
	}
	if err == nil {
		err = g.ask(ctx, g.want, hooks.Live)
	}
	if err == nil {
		g.has = g.want
	}
	return err
}

func (g *attachedTenant) ask(ctx context.Context, node string, op hooks.Op) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := hooks.Call(ctx, g.s.agents[node].socket, hooks.Request{Op: op, VM: g.vm})
	return err
}

func (g *attachedTenant) start(ctx context.Context, node string) error {
	g.want = node
	return g.apply(ctx)
}

func (g *attachedTenant) stop(ctx context.Context) error {
	g.want = ""
	return g.apply(ctx)
}

func (g *attachedTenant) ready(context.Context) error     { return nil }
func (g *attachedTenant) forget(context.Context) error    { return nil }
func (g *attachedTenant) crash(ctx context.Context) error { return g.stop(ctx) }

func (g *attachedTenant) move(ctx context.Context, to string) error { return g.start(ctx, to) }

func (g *attachedTenant) where(ctx context.Context) (string, error) {
	return g.want, core.Until(ctx, func() error { return g.apply(ctx) })
}
