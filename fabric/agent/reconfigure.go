package agent

import (
	"errors"
	"fmt"

	"github.com/vmfabric/vmfabric/fabric"
)

// cluster is the cluster that the agent goes by now. It is another one after
// [Agent.Reconfigure], and never changes itself.
func (f *facts) cluster() *fabric.Cluster { return f.current.Load() }

// fit returns an error that lists all faults of a cluster, or says that it has no such
// node.
func fit(c *fabric.Cluster, node string) error {
	if ps := c.Validate(); len(ps) > 0 {
		errs := make([]error, len(ps))
		for i, p := range ps {
			errs[i] = p
		}
		return fmt.Errorf("cluster %s: %w", c.Name, errors.Join(errs...))
	}
	_, err := c.Node(node)
	return err
}

// Reconfigure has an agent that runs go by another cluster, such as
// [fabric.Cluster.Reload] gives: who reconfigures its backends calls it last. Every
// request from then on is judged by it. A guest that is here keeps what it has, as it does
// over a restart, and the status says what the cluster does not permit any more. After an
// error, which is one of [New], nothing has changed.
func (a *Agent) Reconfigure(c fabric.Cluster) error {
	c = c.WithDefaults()
	if err := fit(&c, a.node); err != nil {
		return err
	}
	a.current.Store(&c)
	s, done := a.state.open()
	for _, vm := range sortedKeys(s.guests) {
		a.permitted(s.guests[vm].want.VM)
	}
	done()
	signal(a.review) // there may be other nodes now
	a.signal()
	return nil
}

// Cluster gives the cluster that the agent goes by now. It must not be changed.
func (a *Agent) Cluster() *fabric.Cluster { return a.cluster() }

// permitted keeps the condition that the cluster does not permit what a guest has.
func (a *Agent) permitted(vm fabric.VM) {
	if err := a.cluster().Permits(vm); err != nil {
		a.conditions.say(permitKey(vm.Name), fmt.Sprintf("guest %s: %v (it keeps what it had until it is detached)", vm.Name, err))
		return
	}
	a.conditions.clear(permitKey(vm.Name))
}

func permitKey(vm string) string { return "permit " + vm }
