// Package gobgp is the fabric's [fabric.Speaker] over an embedded GoBGP, and
// the [Router] that labs and demonstrations use as route reflector and as core
// gateway.
package gobgp
