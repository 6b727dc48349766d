package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/render"
)

func renderCommand(t *tool) *cobra.Command {
	var config, name, role string
	var check bool
	cmd := &cobra.Command{
		Use:   "render bird|frr|junos --for NAME",
		Short: "Print the configuration of a reflector, core gateway or node; no side effects",
		Long: `Render prints the complete configuration of one machine of the cluster, made
from the cluster file alone. What the machine is, the file says: it is looked up
among the reflectors, the core gateways and the nodes.

  bird    bird.conf of BIRD 2
  frr     frr.conf
  junos   commands in set form, for core gateways

The text has the passwords of the sessions in it.`,
		Example: `  vmfabric render bird --for rr1
  vmfabric render frr --for core1 --check > frr.conf.new
  vmfabric render junos --for core1`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := render.ParseRouterFormat(args[0])
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
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultConfig, "the cluster file")
	cmd.Flags().StringVar(&name, "for", "", "the machine's name in the cluster file")
	cmd.Flags().StringVar(&role, "role", "", "reflector, core or node, where several have that name")
	cmd.Flags().BoolVar(&check, "check", false, "have the daemon on this machine check it first, and print nothing that it rejects")
	_ = cmd.MarkFlagRequired("for")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"reflector", "core", "node"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgs = []string{"bird", "frr", "junos"}
	return cmd
}
