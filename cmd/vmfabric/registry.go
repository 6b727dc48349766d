package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/agent"
	"github.com/vmfabric/vmfabric/fabric/disk"
	"github.com/vmfabric/vmfabric/fabric/etcd"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/plural"
	"github.com/vmfabric/vmfabric/internal/signal"
)

// addressRegistry is the registry of a node, with what it needs at work and at its end.
type addressRegistry struct {
	fabric.Registry
	run      func(ctx context.Context) error
	close    func() error
	adoption agent.Adoption
	// reconfigure has it go by other pools.
	reconfigure func(fabric.Cluster)
	epoch       func() uint64 // the highest that it gave, as far as this node has seen
	identity    func() fabric.RegistryIdentity
}

func (r addressRegistry) Close() error { return r.close() }

// openRegistry opens the registry that the cluster names, or else the node's own in its
// state directory.
func openRegistry(state string, c *fabric.Cluster, node string) (addressRegistry, error) {
	if c.Registry.Etcd != nil {
		return openEtcd(state, c, node)
	}
	r, err := disk.OpenRegistry(state, c, node)
	if err != nil {
		return addressRegistry{}, err
	}
	return addressRegistry{
		Registry: r, run: func(context.Context) error { return nil }, close: r.Close, reconfigure: r.Reconfigure,
		epoch: func() uint64 { return 0 }, identity: ofNode,
	}, nil
}

// ofNode is the identity of a registry that its node alone has.
func ofNode() fabric.RegistryIdentity {
	return fabric.RegistryIdentity{Name: "files of its own (no key registry in its cluster file)"}
}

// openEtcd opens the registry in etcd, and what this node remembers of it.
func openEtcd(state string, c *fabric.Cluster, node string) (addressRegistry, error) {
	seen, err := disk.OpenValue(state, "etcd", "seen")
	if err != nil {
		return addressRegistry{}, err
	}
	own, err := disk.OpenValue(state, "etcd", "own")
	if err != nil {
		return addressRegistry{}, errors.Join(err, seen.Close())
	}
	closeAll := func() error { return errors.Join(seen.Close(), own.Close()) }
	adopted := signal.New()
	r, err := etcd.New(c, etcd.WithMemory(node, seen), etcd.WithOwn(own), etcd.WithAdopted(adopted.Send))
	if err != nil {
		return addressRegistry{}, errors.Join(err, closeAll())
	}
	return addressRegistry{
		Registry: etcdRegistry{r, []*disk.Value{seen, own}}, run: r.Run, close: closeAll, reconfigure: r.Reconfigure,
		adoption: agent.Adoption{Adopt: r.Adopt, Adopted: adopted}, epoch: r.Epoch, identity: r.Identity,
	}, nil
}

// etcdRegistry is a registry in etcd that tells the way out by commands.
type etcdRegistry struct {
	*etcd.Registry
	values []*disk.Value // that it keeps
}

// Diagnose implements [fabric.Diagnoser].
func (r etcdRegistry) Diagnose(ctx context.Context) []string {
	texts := r.Registry.Diagnose(ctx)
	if r.Doubted() {
		texts[0] += ": vmfabric registry adopt"
	}
	for _, v := range r.values {
		for _, text := range v.Diagnose(ctx) {
			texts = append(texts, "registry: "+text)
		}
	}
	return texts
}

func registryCommand(t *tool) *cobra.Command {
	return group("registry", "Adopt a registry of addresses that was restored or replaced", "  vmfabric registry adopt", adoptCommand(t))
}

func adoptCommand(t *tool) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "adopt [--yes]",
		Short: "Trust an etcd that was restored from a backup, or replaced",
		Long: `Adopt says why the nodes do not trust the registry of addresses, and what the guests
of this node have of which it says something else. With --yes the registry is the right
one from now on: the agents of all nodes trust it without a restart, and record in it what their
guests have. Addresses are given from the pools again a minute later.`,
		Example: "  vmfabric registry adopt\n  vmfabric registry adopt --yes",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := t.call(cmd.Context(), hooks.Request{Op: hooks.AdoptRegistry, Write: yes})
			if err != nil {
				return err
			}
			if done, err := t.print(cmd, reply.Adoption); done {
				return err
			}
			printAdoption(cmd, *reply.Adoption)
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func printAdoption(cmd *cobra.Command, is fabric.Adoption) {
	say := func(format string, args ...any) { fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...) }
	if is.Doubt == "" {
		say("The registry (incarnation %d, with %s) is the one that it was; nothing is to adopt.", is.Incarnation, plural.Of(is.Addresses, "address", "addresses"))
		return
	}
	say("%s", is.Doubt)
	say("It has %s.", plural.Of(is.Addresses, "address", "addresses"))
	for _, text := range is.Differences {
		say("  %s", text)
	}
	if is.Adopted {
		say("Adopted: incarnation %d has begun. All nodes record what their guests have; vmfabric status says what cannot be.", is.Next)
		return
	}
	say("Nothing was changed. With --yes it is the right one from now on, incarnation %d.", is.Next)
}
