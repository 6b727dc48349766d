package main

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestRegistrarEndsWithTheRun: what waits for its next line when the run is broken off
// does not wait on, and the program is gone.
func TestRegistrarEndsWithTheRun(t *testing.T) {
	t.Parallel()
	sh, err := exec.LookPath("sh")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := newRegistrar(ctx, sh, "-c", `echo '{"Addresses": 3}'; exec sleep 1000`)
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	var is known
	require.NoError(t, r.says(&is))
	assert.Equal(t, 3, is.Addresses)
	waits := make(chan error, 1)
	go func() { waits <- r.says(&is) }()
	cancel()
	select {
	case err := <-waits:
		require.ErrorContains(t, err, "the registrar ended")
	case <-time.After(time.Minute):
		require.NoError(t, syscall.Kill(r.cmd.Process.Pid, syscall.SIGKILL))
		t.Fatal("it waits on")
	}
	assert.Equal(t, syscall.SIGTERM, r.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	require.NoError(t, r.end(&is), "again")
}
