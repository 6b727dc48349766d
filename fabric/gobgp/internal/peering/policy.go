package peering

import "github.com/osrg/gobgp/v4/api"

// Names of GoBGP's tables and policies.
const (
	GlobalTable = "global"
	ExportName  = "out"
)

// The actions of a statement on a route that it matches.
const (
	Accept = api.RouteAction_ROUTE_ACTION_ACCEPT
	Reject = api.RouteAction_ROUTE_ACTION_REJECT
)

// Statement returns a statement of a policy. The name must be unique.
func Statement(name string, match *api.Conditions, do api.RouteAction) *api.Statement {
	return &api.Statement{Name: name, Conditions: match, Actions: &api.Actions{RouteAction: do}}
}
