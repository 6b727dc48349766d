//go:build !race

package gobgp_test

const raceOn = false
