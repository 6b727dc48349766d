// Command frr is the speaker of nodes where an FRR talks to the reflectors,
// as a plugin of the agent: `speaker: frr` in the cluster file. What it does is
// in package fabric/frr, how FRR is to be set up `vmfabric render frr` says.
//
// VMFABRIC_FRR_VTYSH names the program vtysh where that is not in PATH, and
// VMFABRIC_FRR_PATHSPACE which of several sets of FRR's daemons it is. It needs
// CAP_NET_ADMIN, and to be let to FRR's daemons (group frrvty).
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/plugins"
)

func main() {
	s, err := speaker(plugins.Environment())
	if err != nil {
		fmt.Fprintln(os.Stderr, "plugin frr:", err)
		os.Exit(1)
	}
	plugins.Serve(plugins.Config{Speaker: s})
	_ = s.Close() // what is announced stays, as of an agent that is restarted
}

func speaker(place plugins.Place) (*frr.Speaker, error) {
	if place.Config == "" || place.Node == "" {
		return nil, errors.New("the vmfabric agent starts this program, and tells it where it is (" +
			plugins.VariableConfig + ", " + plugins.VariableNode + "); write speaker: frr into the cluster file and restart the agent")
	}
	cluster, err := clusterfile.Load(place.Config, clusterfile.WithoutKey())
	if err != nil {
		return nil, err
	}
	node, err := cluster.Node(place.Node)
	if err != nil {
		return nil, err
	}
	return frr.New(frr.Config{
		Cluster: cluster, Node: node,
		Client: frr.Client{Vtysh: os.Getenv("VMFABRIC_FRR_VTYSH"), Pathspace: os.Getenv("VMFABRIC_FRR_PATHSPACE")},
	}, frr.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
}
