//go:build race

package reflector_test

// raceOn: GoBGP v4.8.0 races with itself when a session ends and it keeps the
// routes (table.AdjRib.StaleAll marks paths that others read), so that tests of
// graceful restart would fail for it.
const raceOn = true
