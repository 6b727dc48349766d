package main

import (
	"context"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	// wellIn bounds how long a starting agent waits until all is well before it
	// says that it is ready: a problem is for status to report, and no reason to
	// keep a node from starting. An embedded reflector refuses a restarted agent
	// for 5 s, and the agent's next attempt comes up to 2 s later.
	wellIn   = 10 * time.Second
	wellLook = 50 * time.Millisecond
)

// awaitWell returns when the status says that all is well, when wellIn is over, or
// when ctx ends.
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
