package main

import (
	"context"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// wellIn bounds how long whoever started the agent waits for it to be well: what
	// is ill is for status to say, and no reason to keep a node from starting. An
	// embedded reflector refuses an agent that was restarted for 5 s, and takes its
	// next call, which comes up to 2 s later.
	wellIn   = 10 * time.Second
	wellLook = 50 * time.Millisecond
)

// awaitWell returns once the status says that all is well, after a while without
// that, or when ctx ends.
func awaitWell(ctx context.Context, status func(context.Context) (fabric.Status, error)) {
	ctx, cancel := context.WithTimeout(ctx, wellIn)
	defer cancel()
	ticks := time.NewTicker(wellLook)
	defer ticks.Stop()
	for {
		if st, err := status(ctx); err == nil && st.Healthy {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}
