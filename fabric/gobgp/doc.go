// Package gobgp is the fabric's [fabric.Speaker] over an embedded GoBGP, the
// [Reflector] of laboratories and small clusters, and the [Router] that
// demonstrations use as core gateway.
package gobgp
