package daemons

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/internal/executable"
)

// TestFind: OpenBGPD and Quagga have a bgpd too, and may come first.
func TestFind(t *testing.T) {
	write := func(name, script string) (dir string) {
		dir = t.TempDir()
		require.NoError(t, executable.Write(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n")))
		return dir
	}
	openbgpd := write("bgpd", `echo "bgpd: unrecognized option '$1'" >&2; echo 'usage: bgpd [-cdnvV] [-D macro=value] [-f file]' >&2; exit 1`)
	quagga := write("bgpd", `echo 'bgpd version 1.2.4 ()'; echo 'Copyright 1996-2005 Kunihiro Ishiguro, et al.'`)
	frr := write("bgpd", `echo "bgpd version 8.4.4"; echo "Copyright 1996-2005 Kunihiro Ishiguro, et al."; echo "configured with:"; echo "	'--enable-user=frr'"`)
	for _, folders := range [][]string{{frr}, {openbgpd, frr}, {quagga, openbgpd, frr}, {t.TempDir(), openbgpd, openbgpd, frr}} {
		path, err := find(t.Context(), "bgpd", folders)
		require.NoError(t, err)
		assert.Equal(t, filepath.Join(frr, "bgpd"), path)
	}
	_, err := find(t.Context(), "bgpd", []string{openbgpd, quagga})
	require.EqualError(t, err, "program bgpd: "+openbgpd+"/bgpd is not FRR's: executable file not found in $PATH; install frr beside it")
	require.ErrorIs(t, err, exec.ErrNotFound)
	_, err = find(t.Context(), "bgpd", []string{t.TempDir()})
	require.EqualError(t, err, "program bgpd: executable file not found in $PATH; install it")

	// What is exchanged is asked again.
	require.NoError(t, executable.Write(filepath.Join(openbgpd, "bgpd"), must(os.ReadFile(filepath.Join(frr, "bgpd")))))
	path, err := find(t.Context(), "bgpd", []string{openbgpd})
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(openbgpd, "bgpd"), path)

	path, err = find(t.Context(), "bird", []string{write("bird", "echo 'tweet'"), write("bird", "echo 'BIRD version 2.0.12' >&2")})
	require.NoError(t, err)
	assert.NotEmpty(t, path)
	_, err = find(t.Context(), "sleep", []string{write("sleep", "exit 1")})
	require.NoError(t, err, "of which there is one alone")
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestFindHeedsItsContext: a program that does not answer is waited for as long as
// the caller wants to know, and asked again by the next.
func TestFindHeedsItsContext(t *testing.T) {
	dir := t.TempDir()
	program, started := filepath.Join(dir, "bird"), filepath.Join(dir, "started")
	require.NoError(t, executable.Write(program, []byte("#!/bin/sh\nif [ -e "+started+" ]; then echo 'BIRD version 2.0.12'; exit; fi\n: > "+started+"\nexec sleep 600\n")))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := find(ctx, "bird", []string{dir})
		ended <- err
	}()
	require.Eventually(t, func() bool { _, err := os.Stat(started); return err == nil }, answerIn/2, time.Millisecond)
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, exec.ErrNotFound)
	case <-time.After(answerIn / 2):
		require.Fail(t, "the end of the context is not heeded")
	}
	path, err := find(t.Context(), "bird", []string{dir})
	require.NoError(t, err)
	assert.Equal(t, program, path)
}

// TestInstalled: those that are on this machine are known by what they say.
func TestInstalled(t *testing.T) {
	for _, name := range []string{"bird", "vtysh", "mgmtd", "zebra", "bgpd", "staticd", "bfdd"} {
		if _, err := find(t.Context(), name, append(filepath.SplitList(os.Getenv("PATH")), folders...)); err != nil {
			assert.ErrorIs(t, err, exec.ErrNotFound)
			assert.NotContains(t, err.Error(), " is not ", "or there is another project's beside")
		}
	}
}
