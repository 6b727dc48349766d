// Command bird is the speaker of nodes whose BIRD 2 talks to the reflectors, as a
// plugin of the agent: `speaker: bird` in the cluster file. Package fabric/bird is
// the speaker; `vmfabric render bird` prints the configuration of BIRD.
//
// VMFABRIC_BIRD_SOCKET names BIRD's control socket if it is not /run/bird/bird.ctl.
// The plugin needs CAP_NET_ADMIN, and access to BIRD's socket.
package main

import (
	"context"
	"os"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/plugins/internal/daemonspeaker"
)

var version = "devel" // set by the linker

func main() {
	daemonspeaker.Main(context.Background(), version, fabric.SpeakerBIRD, func(ctx context.Context, c fabric.Cluster, n fabric.Node, options ...bird.Option) (*bird.Speaker, error) {
		return bird.New(ctx, bird.Config{Cluster: c, Node: n, Socket: os.Getenv("VMFABRIC_BIRD_SOCKET")}, options...)
	})
}
