// Command vmfabric gives every guest of a KVM or LXD cluster its own public
// address over a plain private network. It is the node agent and the tools
// around it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/internal/oneline"
	versions "github.com/vmfabric/vmfabric/internal/version"
)

// Exit codes of the contract.
const (
	exitGood  = 0
	exitBad   = 1
	exitUsage = 2

	exitUnable = 2 // of doctor: it could not look
)

// usageError is a wrong use of the command line.
type usageError struct{ error }

// unableError is why a command could not do what it is for.
type unableError struct{ error }

// errDegraded is a bad result that was printed already.
var errDegraded = errors.New("degraded")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	stdout, stderr = visibleWriter{stdout}, visibleWriter{stderr}
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	var unable unableError
	switch {
	case err == nil:
		return exitGood
	case errors.Is(err, errDegraded):
		return exitBad
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"), strings.HasPrefix(err.Error(), "required flag"):
		fmt.Fprintf(stderr, "vmfabric: %s; see vmfabric help\n", oneline.Of(err.Error()))
		return exitUsage
	}
	for line := range strings.Lines(err.Error() + wayOut(err)) {
		fmt.Fprintf(stderr, "vmfabric: %s\n", strings.TrimRight(line, "\n"))
	}
	if errors.As(err, &unable) {
		return exitUnable
	}
	return exitBad
}

// tool has the flags of the subcommands that talk to an agent.
type tool struct {
	socket string
	json   bool
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmfabric",
		Short: "Every guest its own public address, over a plain private network",
		Long: `vmfabric gives every guest of a KVM (libvirt) or LXD cluster its own public
/32 or /128 over a plain private network between the nodes: a port per guest, a
host route, and an iBGP announcement to the route reflectors.`,
		Example: `  vmfabric demo                                     the whole system in network namespaces
  vmfabric check /etc/vmfabric/cluster.yaml         is the cluster file good?
  vmfabric doctor                                   is this machine fit to be a node?
  vmfabric agent                                    the resident agent of a node
  vmfabric attach web --address 203.0.113.10        a port for a guest, by hand
  vmfabric attach web --pool auto                   with addresses that the pools give
  vmfabric status                                   is this node well?
  vmfabric reflector --name rr1                     a route reflector, for small clusters`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	t := &tool{}
	root.PersistentFlags().StringVar(&t.socket, "socket", hooks.DefaultSocket, "the agent's socket")
	root.PersistentFlags().BoolVar(&t.json, "json", false, "print JSON, for programs")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetVersionTemplate(versions.Line("vmfabric", version) + "\n")
	root.AddCommand(
		agentCommand(t), attachCommand(t), detachCommand(t), listCommand(t), statusCommand(t), whyCommand(t),
		drainCommand(t), undrainCommand(t), movesCommand(t), topCommand(t), blackholeCommand(t), poolCommand(t), addressCommand(t), importCommand(t), registryCommand(t),
		probeCommand(t), guestConfigCommand(t), renderCommand(t), reflectorCommand(), checkCommand(t), doctorCommand(t), kernelProbeCommand(t), portNameCommand(t),
		versionCommand(t), demoCommand(t), initCommand(t), manCommand(),
	)
	return root
}

// arguments turns cobra's error about the number of arguments into wrong usage.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%s: %w", strings.TrimPrefix(cmd.CommandPath(), "vmfabric "), err)}
		}
		return nil
	}
}

// call sends a request to the agent.
func (t *tool) call(ctx context.Context, req hooks.Request) (hooks.Reply, error) {
	return hooks.Client{Socket: t.socket}.Call(ctx, req)
}

// print writes v as JSON if the user asked for that, and reports whether it did.
func (t *tool) print(cmd *cobra.Command, v any) (bool, error) {
	if !t.json {
		return false, nil
	}
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return true, e.Encode(v)
}

// wayOut returns the way out that an error lacks because it is a command of this
// program.
func wayOut(err error) string {
	bad, ok := errors.AsType[*clusterfile.Error](err)
	if ok && bad.Line == 0 && errors.Is(bad, fs.ErrNotExist) { // the file itself, and no other that it names
		return ", or have 'vmfabric init' write a first one, then verify it with 'vmfabric check'"
	}
	return ""
}
