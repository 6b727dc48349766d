// Command bird is the speaker of nodes where a BIRD 2 talks to the reflectors,
// as a plugin of the agent: `speaker: bird` in the cluster file. What it does is
// in package fabric/bird, how BIRD is to be set up `vmfabric render bird` says.
//
// VMFABRIC_BIRD_SOCKET names BIRD's control socket where that is not
// /run/bird/bird.ctl. It needs CAP_NET_ADMIN, and to be let into BIRD's socket.
package main

import (
	"context"
	"os"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/bird"
	"github.com/vmfabric/vmfabric/plugins/internal/daemonspeaker"
)

func main() {
	daemonspeaker.Main(context.Background(), fabric.SpeakerBIRD, func(c fabric.Cluster, n fabric.Node, options ...bird.Option) (*bird.Speaker, error) {
		return bird.New(bird.Config{Cluster: c, Node: n, Socket: os.Getenv("VMFABRIC_BIRD_SOCKET")}, options...)
	})
}
