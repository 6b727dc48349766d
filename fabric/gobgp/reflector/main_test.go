package reflector_test

import (
	"os"
	"testing"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestMain runs the tests in a network namespace of their own: the ports of their
// sessions are theirs alone.
func TestMain(m *testing.M) { os.Exit(labtest.Inside(m, nil)) }
