package peering

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Serve starts a GoBGP server. It is running when it returns.
func Serve(log *slog.Logger, wg *sync.WaitGroup, global *api.Global) (*server.BgpServer, error) {
	b := server.NewBgpServer(server.LoggerOption(log, &slog.LevelVar{}))
	wg.Go(b.Serve)
	if err := b.StartBgp(context.Background(), &api.StartBgpRequest{Global: global}); err != nil {
		err = errors.Join(err, b.StopBgp(context.Background(), &api.StopBgpRequest{}))
		wg.Wait()
		return nil, err
	}
	return b, nil
}
