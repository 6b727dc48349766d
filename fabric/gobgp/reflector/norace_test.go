//go:build !race

package reflector_test

const raceOn = false
