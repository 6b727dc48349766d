package agent

import "github.com/vmfabric/vmfabric/fabric/agent/internal/plan"

// missingHops asks the dataplane for which families the node has no next hop.
func (a *Agent) missingHops() plan.MissingHops {
	return plan.MissingHops{V4: a.dataplane.NextHop(false), V6: a.dataplane.NextHop(true)}
}
