// Command frr is the speaker of nodes where an FRR talks to the reflectors,
// as a plugin of the agent: `speaker: frr` in the cluster file. What it does is
// in package fabric/frr, how FRR is to be set up `vmfabric render frr` says.
//
// VMFABRIC_FRR_VTYSH names the program vtysh where that is not in PATH, and
// VMFABRIC_FRR_PATHSPACE which of several sets of FRR's daemons it is. It needs
// CAP_NET_ADMIN, and to be let to FRR's daemons (group frrvty).
package main

import (
	"context"
	"os"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/plugins/internal/daemonspeaker"
)

func main() {
	client := frr.Client{Vtysh: os.Getenv("VMFABRIC_FRR_VTYSH"), Pathspace: os.Getenv("VMFABRIC_FRR_PATHSPACE")}
	daemonspeaker.Main(context.Background(), fabric.SpeakerFRR, func(c fabric.Cluster, n fabric.Node, options ...frr.Option) (*frr.Speaker, error) {
		return frr.New(frr.Config{Cluster: c, Node: n, Client: client}, options...)
	})
}
