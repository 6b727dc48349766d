package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/render"
)

func renderCommand(t *tool) *cobra.Command {
	var config, name, role string
	var check bool
	var e etcdFlags
	cmd := &cobra.Command{
		Use:   "render bird|frr|junos|etcd --for NAME",
		Short: "Print the configuration of a reflector, core gateway, node or member of etcd; no side effects",
		Long: `Render prints the complete configuration of one machine of the cluster, made
from the cluster file alone. What the machine is, the file says: it is looked up
among the reflectors, the core gateways and the nodes.

  bird    bird.conf of BIRD 2
  frr     frr.conf
  junos   commands in set form, for core gateways
  etcd    a member of the etcd that has the registry of addresses: --part environment,
          unit, certificates, users, backup, restore or replace

A member of etcd is the machine of the cluster that has the address of an endpoint, such as
a reflector, or else the host of the endpoint. Its --check compares this machine with what is
printed, and asks all members how they are.

The text of routers has the passwords of the sessions in it.`,
		Example: `  vmfabric render bird --for rr1
  vmfabric render frr --for core1 --check > frr.conf.new
  vmfabric render junos --for core1
  vmfabric render etcd --for rr1 > /etc/default/etcd
  vmfabric render etcd --for rr1 --part certificates | sh
  vmfabric render etcd --for rr1 --check`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case args[0] == "etcd" && role != "":
				return usageError{errors.New("--role is for routers")}
			case args[0] == "etcd":
				return renderEtcd(cmd, t, config, name, check, e)
			case e != etcdFlags{part: string(render.EtcdEnvironment)}:
				return usageError{errors.New("--part and --restored are for etcd")}
			}
			return renderRouter(cmd, t, config, name, args[0], role, check)
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultConfig, "the cluster file")
	cmd.Flags().StringVar(&name, "for", "", "the machine's name in the cluster file")
	cmd.Flags().StringVar(&role, "role", "", "reflector, core or node, where several have that name")
	cmd.Flags().BoolVar(&check, "check", false, "have the daemon on this machine check it first, and print nothing that it rejects")
	cmd.Flags().StringVar(&e.part, "part", string(render.EtcdEnvironment), "of etcd: which file or script")
	cmd.Flags().IntVar(&e.restored, "restored", 0, "of etcd: how often it was restored from a backup")
	_ = cmd.RegisterFlagCompletionFunc("part", cobra.FixedCompletions(etcdParts(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagRequired("for")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"reflector", "core", "node"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgs = []string{"bird", "frr", "junos", "etcd"}
	return cmd
}

// renderRouter prints the configuration of the routing daemon of a machine, which has a
// role by its name if none is given.
func renderRouter(cmd *cobra.Command, t *tool, config, name, format, role string, check bool) error {
	f, err := render.ParseRouterFormat(format)
	if err != nil {
		return usageError{err}
	}
	if role != "" {
		if _, err := render.ParseRole(role); err != nil {
			return usageError{fmt.Errorf("--role: %w", err)}
		}
	}
	c, err := clusterfile.Load(config, clusterfile.WithoutKey())
	if err != nil {
		return err
	}
	as := render.Role(role)
	if role == "" {
		if as, err = render.RoleOf(c, name); err != nil {
			return err
		}
	}
	text, err := render.RouterAs(c, f, name, as)
	if err != nil {
		return err
	}
	if check {
		if err := render.CheckRouter(cmd.Context(), f, text); err != nil {
			return err
		}
	}
	if done, err := t.print(cmd, map[string]any{"for": name, "role": as, "format": f, "text": text}); done {
		return err
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

// etcdFlags are the flags of render for a member of etcd.
type etcdFlags struct {
	part     string
	restored int
}

func etcdParts() (names []string) {
	for _, p := range render.EtcdParts {
		names = append(names, string(p))
	}
	return names
}

// renderEtcd prints a part of the configuration of a member of etcd.
func renderEtcd(cmd *cobra.Command, t *tool, config, name string, check bool, e etcdFlags) error {
	part, err := render.ParseEtcdPart(e.part)
	if err == nil && e.restored < 0 {
		err = errors.New("--restored counts from 0")
	}
	if err != nil {
		return usageError{err}
	}
	c, err := clusterfile.Load(config, clusterfile.WithoutKey())
	if err != nil {
		return err
	}
	text, err := render.Etcd(c, name, part, e.restored)
	if err != nil {
		return err
	}
	if check {
		if err := render.CheckEtcd(cmd.Context(), c, name, "/"); err != nil {
			return err
		}
	}
	if done, err := t.print(cmd, map[string]any{"for": name, "format": "etcd", "part": part, "text": text}); done {
		return err
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}
