package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel"
	"github.com/vmfabric/vmfabric/fabric/libvirt"
	"github.com/vmfabric/vmfabric/internal/doctor"
	"github.com/vmfabric/vmfabric/internal/plural"
	"github.com/vmfabric/vmfabric/packaging"
)

// doctorRounds is how often doctor --fix looks and mends: what is mended can uncover more.
const doctorRounds = 3

type doctorFlags struct {
	config, node, state, libvirt string
	fix, all                     bool
}

func doctorCommand(t *tool) *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [CHECK...]",
		Short: "Look for what keeps this machine from being a good node; before the installation, and after",
		Long: `Doctor looks at the kernel, its settings and who sets them at boot, firewalls, network
managers, hypervisors, the ways to the reflectors and the other nodes, files and keys. It needs
neither an agent nor a cluster file, and says what it could not look at without. Each line says
what is wrong, why it matters and the way out. It changes nothing but for packets of its own.

With --fix it mends what is the fabric's own: the sysctl file, modes and owners of the cluster's
files, the nftables tables of a node without an agent. What belongs to others it leaves alone.

Exit 0: nothing is wrong. 1: something is. 2: it could not look.

The checks: ` + strings.Join(doctor.Names(), ", ") + `.`,
		Example: `  vmfabric doctor
  vmfabric doctor --fix
  vmfabric doctor sysctl forwarding
  vmfabric doctor --json | jq -r '.findings[] | select(.state == "wrong") | .what'`,
		ValidArgs: doctor.Names(),
		Args: func(_ *cobra.Command, args []string) error {
			for _, name := range args {
				if !slices.Contains(doctor.Names(), name) {
					return usageError{fmt.Errorf("doctor: no check is called %q; name some of %s", name, strings.Join(doctor.Names(), ", "))}
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, checks []string) error {
			report, err := f.examine(cmd.Context(), t.socket, cmd.Flags().Changed("config"), checks)
			if report.Findings == nil && err != nil {
				return unableError{err}
			}
			done, perr := t.print(cmd, report)
			if !done {
				printReport(cmd, report, f.all)
			}
			if err = errors.Join(err, perr); err == nil && !report.Healthy {
				err = errDegraded
			}
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", defaultConfig, "the cluster file")
	fl.StringVar(&f.node, "node", "", "which of the cluster's nodes this is (default: that of the agent here, or the host name)")
	fl.StringVar(&f.state, "state", "/var/lib/vmfabric", "the directory of the wanted state")
	fl.StringVar(&f.libvirt, "libvirt", "auto", "libvirt to look at: auto, off (none is wanted), or the path of its socket")
	fl.BoolVar(&f.fix, "fix", false, "mend what is the fabric's own")
	fl.BoolVar(&f.all, "all", false, "print what is good, too")
	return cmd
}

// examine looks, and mends first with --fix.
func (f doctorFlags) examine(ctx context.Context, socket string, named bool, checks []string) (doctor.Report, error) {
	if _, err := os.Stat(f.config); named && err != nil {
		return doctor.Report{}, fmt.Errorf("--config: %w; name the cluster file, or leave the flag out", err)
	}
	if f.fix && os.Geteuid() != 0 {
		return doctor.Report{}, errors.New("doctor --fix changes files and settings of the machine; run it as root")
	}
	cfg := doctor.Config{
		Root: "/", File: f.config, Socket: socket, StateDir: f.state, Settings: packaging.Settings, Hooks: libvirt.DefaultHooks,
		ThisNode: func(c *fabric.Cluster, running string) (fabric.Node, error) {
			return thisNode(c, cmp.Or(f.node, running))
		},
		Kernel: kernelConfig, Features: probeFeatures,
	}
	switch f.libvirt {
	case "auto":
	case "off":
		cfg.NoLibvirt = true
	default:
		cfg.Libvirt = f.libvirt
	}
	report, err := doctor.Examine(ctx, cfg, checks...)
	var mended []string
	for round := 0; err == nil && f.fix && round < doctorRounds; round++ {
		var some []string
		if some, err = report.Fix(); len(some) == 0 {
			break
		}
		mended = append(mended, some...)
		again, failed := doctor.Examine(ctx, cfg, checks...)
		if failed != nil {
			return report, errors.Join(err, failed)
		}
		report = again
	}
	report.Mended = mended
	return report, err
}

// printReport prints what is wrong with its reason and the way out, and one line for
// anything else.
func printReport(cmd *cobra.Command, r doctor.Report, all bool) {
	out := cmd.OutOrStdout()
	for _, m := range r.Mended {
		fmt.Fprintf(out, "mended   %s\n", m)
	}
	counts := map[doctor.State]int{}
	for _, f := range r.Findings {
		counts[f.State]++
		if f.State == doctor.Good && !all {
			continue
		}
		state := string(f.State)
		if f.State == doctor.Wrong {
			state = strings.ToUpper(state)
		}
		fmt.Fprintf(out, "%-8s %s: %s", state, f.Check, strings.TrimPrefix(f.What, f.Check+": "))
		if f.State != doctor.Wrong && f.WayOut != "" {
			fmt.Fprintf(out, "; %s", f.WayOut)
		}
		fmt.Fprintln(out)
		if f.State != doctor.Wrong {
			continue
		}
		fmt.Fprintf(out, "         why: %s\n", f.Why)
		if f.WayOut != "" {
			fmt.Fprintf(out, "         way out: %s\n", f.WayOut)
		}
		if f.Fixable {
			fmt.Fprintf(out, "         vmfabric doctor --fix mends it\n")
		}
	}
	fmt.Fprintf(out, "%d wrong, %d good, %s, %d could not be looked at\n",
		counts[doctor.Wrong], counts[doctor.Good], plural.Of(counts[doctor.Note], "note", "notes"), counts[doctor.Unknown])
}

// probeFor bounds the time of the probe of the kernel.
const probeFor = 30 * time.Second

// probeFeatures runs kernelProbeCommand in a network namespace of its own.
func probeFeatures(ctx context.Context) (found kernel.Probed, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", kernelProbe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return found, fmt.Errorf("a network namespace of its own: %w %s", err, strings.TrimSpace(stderr.String()))
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return found, fmt.Errorf("the probe of the kernel: %w", err)
	}
	return found, nil
}

const kernelProbe = "probe-kernel"

// kernelProbeCommand is for doctor alone, which runs it in an empty network namespace.
func kernelProbeCommand(*tool) *cobra.Command {
	return &cobra.Command{
		Use:     kernelProbe,
		Short:   "Try in this network namespace what a node needs of its kernel; for doctor",
		Hidden:  true,
		Example: "  vmfabric probe-kernel",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if links, err := os.ReadDir("/proc/sys/net/ipv4/conf"); err != nil || len(links) > 3 { // all, default, lo
				return errors.New("this network namespace is in use; vmfabric doctor makes an empty one")
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(kernel.ProbeFeatures(cmd.Context()))
		},
	}
}
