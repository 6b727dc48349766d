package testenv

import (
	"context"
	"fmt"
	"time"
)

// Until calls f again and again until it returns nil, or ctx ends; then it
// gives the last error of f, and that of ctx.
func Until(ctx context.Context, f func() error) error {
	wait := time.Millisecond
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-time.After(wait):
		}
		wait = min(2*wait, 50*time.Millisecond)
	}
}
