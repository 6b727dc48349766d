// Package reflector is the route reflector (RFC 4456) of laboratories and small
// clusters, over an embedded GoBGP. The speaker of a node is package gobgp.
package reflector
