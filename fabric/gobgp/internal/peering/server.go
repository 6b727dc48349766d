package peering

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Serve starts a GoBGP server in g. It is running when Serve returns, until [Leave]
// or [Stop].
func Serve(ctx context.Context, log *slog.Logger, g *Group, global *api.Global) (*server.BgpServer, error) {
	b := server.NewBgpServer(server.LoggerOption(log, &slog.LevelVar{}))
	g.Go(b.Serve)
	if err := b.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		err = errors.Join(err, Stop(ctx, b))
		g.Wait()
		return nil, err
	}
	return b, nil
}

// Fault returns err, or nil if err says only that ctx has ended: to end a part
// while it starts is no fault.
func Fault(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// Leave ends a server and its sessions. A session with graceful restart ends
// without a Cease notification: its peer keeps the routes for the restart time.
func Leave(ctx context.Context, b *server.BgpServer) error {
	return stop(ctx, b, &api.StopBgpRequest{AllowGracefulRestart: true})
}

// Stop ends a server and its sessions, each with a Cease notification.
func Stop(ctx context.Context, b *server.BgpServer) error {
	return stop(ctx, b, &api.StopBgpRequest{})
}

// stop does not use ctx itself, which has mostly ended by then. GoBGP waits only
// for its own goroutines, and they end with the server.
func stop(ctx context.Context, b *server.BgpServer, r *api.StopBgpRequest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBound)
	defer cancel()
	return b.StopBgp(ctx, r)
}

// stopBound is far longer than a server takes to end.
const stopBound = 10 * time.Second
