package core

import (
	"context"
	"fmt"
	"time"

	"github.com/vmfabric/vmfabric/internal/backoff"
)

// Until calls f again and again until it returns nil, or ctx ends. Then the error
// has the last one of f, and that of ctx.
func Until(ctx context.Context, f func() error) error {
	var last error
	waits := backoff.Backoff{First: time.Millisecond, Most: 50 * time.Millisecond}
	for {
		err := f()
		if err == nil {
			return nil
		}
		// The error of an f that the end of ctx interrupted says little.
		if last != nil && ctx.Err() != nil {
			err = last
		}
		last = err
		if !waits.Wait(ctx) {
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}
