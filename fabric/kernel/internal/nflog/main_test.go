package nflog_test

import (
	"os"
	"testing"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Inside(m, nil)) }
