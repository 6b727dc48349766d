// Package daemonspeaker is the program of the plugins that are speakers over a
// routing daemon.
package daemonspeaker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/routingd"
	versions "github.com/vmfabric/vmfabric/internal/version"
	"github.com/vmfabric/vmfabric/plugins"
)

// Open makes the speaker of a node.
type Open func(context.Context, fabric.Cluster, fabric.Node, ...routingd.Option) (*routingd.Speaker, error)

// Main serves the speaker with this name in the cluster file, until the agent ends
// the plugin, or prints the program's version if that is asked for. If it cannot, the program exits with 1.
func Main(ctx context.Context, version, name string, open Open) {
	if versions.Asked(os.Args) {
		fmt.Println(versions.Line("vmfabric-plugin-"+name, version))
		return
	}
	if err := serve(ctx, plugins.Environment(), name, open); err != nil {
		fmt.Fprintf(os.Stderr, "plugin %s: %v\n", name, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, place plugins.Place, name string, open Open) error {
	if place.Config == "" || place.Node == "" {
		return fmt.Errorf("the vmfabric agent starts this program, with its place in the cluster (%s, %s); write speaker: %s into the cluster file and restart the agent",
			plugins.VariableConfig, plugins.VariableNode, name)
	}
	cluster, err := clusterfile.Load(place.Config, clusterfile.WithoutKey())
	if err != nil {
		return err
	}
	node, err := cluster.Node(place.Node)
	if err != nil {
		return err
	}
	s, err := open(ctx, cluster, node, routingd.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))),
		routingd.WithPrinted(fmt.Sprintf("vmfabric render %s --for %s", name, node.Name)))
	if err != nil {
		return err
	}
	defer s.Close() // the announcements stay, as when an agent restarts
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = s.Run(ctx) }) // nil when ctx ends
	plugins.Serve(plugins.Config{Speaker: s})
	return nil
}
