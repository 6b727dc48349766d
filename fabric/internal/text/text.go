// Package text writes values the way people write them.
package text

import "net/netip"

// Prefix writes a host prefix as its address, and any other as it is.
func Prefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
