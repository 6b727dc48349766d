package testenv

// RouterAvailable reports whether a lab of this process can have a router, "bird" or
// "frr", nil when it can.
func RouterAvailable(router string) error {
	if router == "frr" {
		return Available(router, "zebra", "bgpd", "staticd", "bfdd", "vtysh")
	}
	return Available(router, router)
}
