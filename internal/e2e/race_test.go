//go:build race

package e2e

// raceFlag builds what is tried with the race detector too.
const raceFlag = "-race"
