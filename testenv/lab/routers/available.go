package routers

import "github.com/vmfabric/vmfabric/testenv/lab/core"

// Available returns an error if a lab of this process cannot have a router, "bird"
// or "frr".
func Available(router string) error {
	if router == "frr" {
		return core.Available(router, "zebra", "bgpd", "staticd", "bfdd", "vtysh")
	}
	return core.Available(router, router)
}
