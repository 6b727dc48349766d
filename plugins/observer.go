package plugins

import (
	"context"

	"google.golang.org/grpc"

	"github.com/vmfabric/vmfabric/fabric"
	pb "github.com/vmfabric/vmfabric/plugins/internal/pluginpb"
)

// Observer is a [fabric.Observer] in a plugin.
type Observer struct{ supervisor }

var (
	_ fabric.Observer  = (*Observer)(nil)
	_ fabric.Diagnoser = (*Observer)(nil)
)

// OpenObserver starts a plugin that is an observer, like [OpenSpeaker].
func OpenObserver(ctx context.Context, p Program, opts ...Option) (*Observer, error) {
	o := &Observer{}
	if err := o.open(ctx, p, observer, opts); err != nil {
		return nil, err
	}
	return o, nil
}

// Observe implements [fabric.Observer].
func (o *Observer) Observe(ctx context.Context, e fabric.Event) error {
	return o.call(ctx, "observe "+string(e.Kind), func(ctx context.Context, c grpc.ClientConnInterface) error {
		_, err := pb.NewObserverClient(c).Observe(ctx, &pb.ObserveRequest{Event: eventOut(e)})
		return err
	})
}
