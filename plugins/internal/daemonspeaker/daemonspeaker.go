// Package daemonspeaker is the program of the plugins that are speakers over a
// routing daemon.
package daemonspeaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/routingd"
	"github.com/vmfabric/vmfabric/plugins"
)

// Open makes the speaker of a node.
type Open func(c fabric.Cluster, n fabric.Node, opts ...routingd.Option) (*routingd.Speaker, error)

// Main serves the speaker that is called name in the cluster file, until the
// agent is done with it. The program exits with 1 where there can be none.
func Main(ctx context.Context, name string, open Open) {
	s, err := speaker(plugins.Environment(), name, open)
	if err != nil {
		fmt.Fprintf(os.Stderr, "plugin %s: %v\n", name, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) }) // nil when ctx ends
	plugins.Serve(plugins.Config{Speaker: s})
	cancel()
	running.Wait()
	_ = s.Close() // what is announced stays, as of an agent that is restarted
}

func speaker(place plugins.Place, name string, open Open) (*routingd.Speaker, error) {
	if place.Config == "" || place.Node == "" {
		return nil, errors.New("the vmfabric agent starts this program, and tells it where it is (" +
			plugins.VariableConfig + ", " + plugins.VariableNode + "); write speaker: " + name + " into the cluster file and restart the agent")
	}
	cluster, err := clusterfile.Load(place.Config, clusterfile.WithoutKey())
	if err != nil {
		return nil, err
	}
	node, err := cluster.Node(place.Node)
	if err != nil {
		return nil, err
	}
	return open(cluster, node, routingd.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
}
