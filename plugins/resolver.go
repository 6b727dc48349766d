package plugins

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/vmfabric/vmfabric/fabric"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// Resolver is a [fabric.Resolver] in a plugin.
type Resolver struct{ supervisor }

var (
	_ fabric.Resolver  = (*Resolver)(nil)
	_ fabric.Diagnoser = (*Resolver)(nil)
)

// OpenResolver starts a plugin that is a resolver, like [OpenSpeaker].
func OpenResolver(ctx context.Context, p Program, opts ...Option) (*Resolver, error) {
	r := &Resolver{}
	if err := r.open(ctx, p, resolver, opts); err != nil {
		return nil, err
	}
	return r, nil
}

// Resolve implements [fabric.Resolver]. The agent checks whether the answer fits
// the guest.
func (r *Resolver) Resolve(ctx context.Context, q fabric.Query) ([]fabric.NIC, error) {
	var reply *pb.ResolveReply
	err := r.call(ctx, "resolve "+q.VM, func(ctx context.Context, c grpc.ClientConnInterface) (err error) {
		reply, err = pb.NewResolverClient(c).Resolve(ctx, queryOut(q))
		return err
	})
	if err != nil {
		return nil, err
	}
	nics, err := nicsIn(reply.GetNics())
	if err != nil {
		return nil, fmt.Errorf("%s: its answer for VM %q: %w; correct the inventory, or the plugin", r.program.name(), q.VM, err)
	}
	return nics, nil
}
