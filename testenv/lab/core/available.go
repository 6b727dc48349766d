package core

import (
	"fmt"
	"os"

	"github.com/vmfabric/vmfabric/internal/daemons"
)

// Available reports whether a lab of this process can have a thing that needs
// these programs, and root as all do, nil when it can.
func Available(thing string, programs ...string) error {
	for _, p := range programs {
		if _, err := daemons.Find(p); err != nil {
			return fmt.Errorf("no %s here: %w", thing, err)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("no %s here: not root; run as root", thing)
	}
	return nil
}
