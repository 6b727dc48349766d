package agent_test

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
	prefix  = netip.MustParsePrefix
)
