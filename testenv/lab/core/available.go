package core

import (
	"context"
	"fmt"
	"os"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// Available returns an error if a lab of this process cannot have a thing that
// needs these programs, or if the process is not root, which every thing needs.
func Available(ctx context.Context, thing string, programs ...string) error {
	for _, p := range programs {
		if _, err := daemons.Find(ctx, p); err != nil {
			return fmt.Errorf("no %s here: %w", thing, err)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("no %s here: not root; run as root", thing)
	}
	return nil
}
