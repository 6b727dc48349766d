package executable

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestWriteWhileOthersFork: what was written runs, whoever starts processes beside.
func TestWriteWhileOthersFork(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var forking sync.WaitGroup
	defer forking.Wait()
	defer cancel()
	for range 4 {
		forking.Go(func() {
			for ctx.Err() == nil {
				_ = exec.Command("/bin/true").Run()
			}
		})
	}
	dir := t.TempDir()
	for i := range 300 {
		path := filepath.Join(dir, strconv.Itoa(i))
		require.NoError(t, Write(path, []byte("#!/bin/sh\n")))
		require.NoError(t, exec.Command(path).Run())
	}
}
