package routers

import (
	"context"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Available returns an error if a lab of this process cannot have a router, "bird"
// or "frr".
func Available(ctx context.Context, router string) error {
	if router == "frr" {
		return core.Available(ctx, router, "zebra", "bgpd", "staticd", "bfdd", "vtysh")
	}
	return core.Available(ctx, router, router)
}
