package routers

import "github.com/vmfabric/vmfabric/testenv/lab/core"

// Available reports whether a lab of this process can have a router, "bird" or
// "frr", nil when it can.
func Available(router string) error {
	if router == "frr" {
		return core.Available(router, "zebra", "bgpd", "staticd", "bfdd", "vtysh")
	}
	return core.Available(router, router)
}
