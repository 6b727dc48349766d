// Prepare fills the lab's cache with the kernel, which comes from a package mirror,
// and the initial file system of the guests. Then no test downloads anything in its
// own time.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if _, err := hypervisors.GuestImage(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "prepare: %v\n", err)
		os.Exit(1)
	}
}
