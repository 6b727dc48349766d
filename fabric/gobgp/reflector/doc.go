// Package reflector is the route reflector (RFC 4456) of laboratories and small
// clusters, over an embedded GoBGP. Package gobgp is the speaker of a node.
package reflector
