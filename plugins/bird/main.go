// Command bird is the speaker of nodes where a BIRD 2 talks to the reflectors,
// as a plugin of the agent: `speaker: bird` in the cluster file. What it does is
// in package fabric/bird, how BIRD is to be set up `vmfabric render bird` says.
//
// VMFABRIC_BIRD_SOCKET names BIRD's control socket where that is not
// /run/bird/bird.ctl. It needs CAP_NET_ADMIN, and to be let into BIRD's socket.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/plugins"
)

func main() {
	s, err := speaker(plugins.Environment())
	if err != nil {
		fmt.Fprintln(os.Stderr, "plugin bird:", err)
		os.Exit(1)
	}
	plugins.Serve(plugins.Config{Speaker: s})
	_ = s.Close() // what is announced stays, as of an agent that is restarted
}

func speaker(place plugins.Place) (*bird.Speaker, error) {
	if place.Config == "" || place.Node == "" {
		return nil, errors.New("the vmfabric agent starts this program, and tells it where it is (" +
			plugins.VariableConfig + ", " + plugins.VariableNode + "); write speaker: bird into the cluster file and restart the agent")
	}
	cluster, err := clusterfile.Load(place.Config, clusterfile.WithoutKey())
	if err != nil {
		return nil, err
	}
	node, err := cluster.Node(place.Node)
	if err != nil {
		return nil, err
	}
	return bird.New(bird.Config{Cluster: cluster, Node: node, Socket: os.Getenv("VMFABRIC_BIRD_SOCKET")},
		bird.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
}
