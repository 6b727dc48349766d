// Command frr is the speaker of nodes whose FRR talks to the reflectors, as a
// plugin of the agent: `speaker: frr` in the cluster file. Package fabric/frr is
// the speaker; `vmfabric render frr` prints the configuration of FRR.
//
// VMFABRIC_FRR_VTYSH names the program vtysh if it is not in PATH, and
// VMFABRIC_FRR_PATHSPACE selects one of several sets of FRR's daemons. The plugin
// needs CAP_NET_ADMIN, and access to FRR's daemons (group frrvty).
package main

import (
	"context"
	"os"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/frr"
	"github.com/vmfabric/vmfabric/plugins/internal/daemonspeaker"
)

var version = "devel" // set by the linker

func main() {
	client := frr.Client{Vtysh: os.Getenv("VMFABRIC_FRR_VTYSH"), Pathspace: os.Getenv("VMFABRIC_FRR_PATHSPACE")}
	daemonspeaker.Main(context.Background(), version, fabric.SpeakerFRR, func(ctx context.Context, c fabric.Cluster, n fabric.Node, options ...frr.Option) (*frr.Speaker, error) {
		return frr.New(ctx, frr.Config{Cluster: c, Node: n, Client: client}, options...)
	})
}
