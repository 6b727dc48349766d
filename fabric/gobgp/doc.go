// Package gobgp is the fabric's [fabric.Speaker] over an embedded GoBGP. The route
// reflector of laboratories and small clusters is package reflector beside it, and
// the core gateway of demonstrations is package router.
package gobgp
