package peering

import "github.com/osrg/gobgp/v4/api"

// Names of GoBGP's tables and policies.
const (
	GlobalTable = "global"
	ExportName  = "out"
)

// What a statement does with a route that it matches.
const (
	Accept = api.RouteAction_ROUTE_ACTION_ACCEPT
	Reject = api.RouteAction_ROUTE_ACTION_REJECT
)

// Statement is one of a policy, under a name of its own.
func Statement(name string, match *api.Conditions, do api.RouteAction) *api.Statement {
	return &api.Statement{Name: name, Conditions: match, Actions: &api.Actions{RouteAction: do}}
}
