// Package gobgp implements [fabric.Speaker] over an embedded GoBGP. Package
// reflector beside it is the route reflector of laboratories and small clusters,
// and package router the core gateway of demonstrations.
package gobgp
