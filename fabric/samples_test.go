package fabric_test

import (
	"net/netip"

	"github.com/vmfabric/vmfabric/fabric/internal/samples"
)

var (
	cluster = samples.Cluster
	guest   = samples.Guest
	web     = samples.Web
	db      = samples.DB
	texts   = samples.Texts
	ip      = netip.MustParseAddr
	prefix  = netip.MustParsePrefix
)
