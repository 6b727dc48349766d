package main

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/internal/plural"
	"github.com/vmfabric/vmfabric/internal/trusted"
	versions "github.com/vmfabric/vmfabric/internal/version"
)

// version is set by the linker.
var version = "devel"

const defaultConfig = "/etc/vmfabric/cluster.yaml"

func checkCommand(t *tool) *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a cluster file, and the files and plugins that it names; no side effects",
		Example: `  vmfabric check
  vmfabric check ./cluster.yaml --json`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				config = args[0]
			}
			c, err := clusterfile.Load(config)
			var missing []string
			if err == nil {
				missing, err = checkPlugins(config, c)
			}
			report := struct {
				File     string   `json:"file"`
				OK       bool     `json:"ok"`
				Errors   []string `json:"errors"`
				Warnings []string `json:"warnings"`
			}{config, err == nil, []string{}, []string{}}
			if err != nil {
				report.Errors = strings.Split(err.Error(), "\n")
			} else {
				report.Warnings = slices.Concat(report.Warnings, clusterfile.Warnings(c), missing)
			}
			if done, perr := t.print(cmd, report); done {
				if perr == nil && err != nil {
					perr = errDegraded
				}
				return perr
			}
			if err != nil {
				return err
			}
			for _, w := range report.Warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: cluster %s is good: %s, %s, %s, %s\n",
				config, c.Name, plural.Of(len(c.Pools), "pool", "pools"), plural.Of(len(c.Reflectors), "reflector", "reflectors"), plural.Of(len(c.Core), "core gateway", "core gateways"), plural.Of(len(c.Nodes), "node", "nodes"))
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", defaultConfig, "the cluster file")
	return cmd
}

// checkPlugins reports the cluster's plugins that another user than root and this
// one could change, and as missing those that are not on this machine.
func checkPlugins(config string, c fabric.Cluster) (missing []string, err error) {
	var errs []error
	for _, p := range c.Plugins() {
		err := trusted.Check(p.Path)
		if bad, ok := errors.AsType[*trusted.Error](err); ok {
			errs = append(errs, fmt.Errorf("%s: %s: plugin %w", config, p.Key, bad))
		}
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, fmt.Sprintf("%s: there is no plugin %s on this machine; install it on the nodes, or correct the path", p.Key, p.Path))
		}
	}
	return missing, errors.Join(errs...)
}

func portNameCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:   "port-name VM [N]",
		Short: "Print the link name of a guest's n-th port; no side effects",
		Example: `  vmfabric port-name sea_gold
  vmfabric port-name a-rather-long-name 1`,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			n := 0
			if len(args) == 2 {
				var err error
				if n, err = strconv.Atoi(args[1]); err != nil || n < 0 || n >= fabric.MaxNICs {
					return usageError{fmt.Errorf("%q is not a NIC number; give one from 0 to %d", args[1], fabric.MaxNICs-1)}
				}
			}
			if err := fabric.ValidateName(args[0]); err != nil {
				return err
			}
			p := fabric.Port{VM: args[0], Index: n}
			name := fabric.PortName(args[0], n)
			if done, err := t.print(cmd, map[string]any{
				"vm": args[0], "nic": n, "port": name, "full": p.FullPortName(), "peer": fabric.PeerName(args[0], n),
			}); done {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), name)
			return nil
		},
	}
}

func versionCommand(t *tool) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  vmfabric version --json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if done, err := t.print(cmd, map[string]string{
				"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
			}); done {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), versions.Line("vmfabric", version))
			return nil
		},
	}
}
