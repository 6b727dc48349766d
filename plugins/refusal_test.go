package plugins_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/executable"
	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestRefused has programs that are no speaker each refused with one line that
// names them, the reason, and the way out.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, executable.Write(path, []byte(content)))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	for _, tc := range []struct {
		name, path, mode, is string
		says                 []string
	}{
		{"missing", filepath.Join(dir, "nothing"), "", "", []string{"there is no such file", "install it"}},
		{"a directory", dir, "", "", []string{"is a directory"}},
		{"not executable", file("plain", "#!/bin/sh\n", 0o644), "", "", []string{"permission denied", "chmod +x " + filepath.Join(dir, "plain")}},
		{"no program", file("text", "not a program", 0o755), "", "", []string{"exec format error", "architecture"}},
		{"no interpreter", file("script", "#!/nowhere/python\n", 0o755), "", "", []string{"interpreter"}},
		{"something else that ends", "/bin/true", "", "", []string{"it ended without a word", "is it a plugin of vmfabric?"}},
		{"something else that speaks", "/bin/echo", "say", "", []string{`it said "hello" instead of a handshake`}},
		{"something that waits", binary, "mute", "", []string{"said nothing within 1s", "is it a plugin of vmfabric?"}},
		{"garbage on standard output", binary, "say=\x1b[1mhello\xff|world", "", []string{`it said "\x1b[1mhello\xff|world" instead of a handshake`}},
		{"it cannot work here", binary, "fail=no socket /run/x.ctl; start x", "", []string{"exit status 3", "no socket /run/x.ctl; start x"}},
		{"wrong version", binary, "foreign=newer", "", []string{"it speaks version 2 of the plugin protocol, this agent version 1", "install"}},
		{"wrong version of go-plugin", binary, "say=2|1|unix|/tmp/x|grpc|", "", []string{"not one that this agent knows"}},
		{"not gRPC", binary, "say=1|1|unix|/tmp/x|netrpc|", "", []string{"does not say grpc"}},
		{"open to everybody", binary, "say=1|1|tcp|127.0.0.1:1|grpc|", "", []string{"does not listen on a unix socket", "PLUGIN_UNIX_SOCKET_DIR"}},
		{"it says that it listens, and does not", binary, "say=1|1|unix|/nowhere/x|grpc|", "", []string{"/nowhere/x"}},
		{"wrong kind", binary, "", "resolver", []string{"it is a resolver, not a speaker", "write 'resolver: ...' into the cluster file"}},
		{"wrong kinds", binary, "", "observer,resolver", []string{"it is a resolver and observer, not a speaker"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSpecimen(t)
			p := s.program(tc.mode, "TESTPLUGIN_IS="+tc.is)
			p.Path = tc.path
			if tc.path == "/bin/echo" {
				p.Args = []string{"hello"}
			}
			labtest.EndsItsGoroutines(t)
			sp, err := plugins.OpenSpeaker(t.Context(), p, s.options(plugins.Times{Start: startOf(tc.mode)})...)
			require.Error(t, err)
			require.Nil(t, sp)
			text := err.Error()
			t.Log(text)
			assert.Contains(t, text, "plugin "+filepath.Base(tc.path)+" ("+tc.path+"): ")
			assert.NotContains(t, text, "\n")
			for _, says := range tc.says {
				assert.Contains(t, text, says)
			}
			if tc.path == binary {
				assert.False(t, alive(s.pid(t)))
			}
		})
	}
}

// startOf is how long a program may take to start: short where it has to be
// found out that it does not.
func startOf(mode string) time.Duration {
	if mode == "mute" {
		return time.Second
	}
	return patience
}

func TestOpenEndsWithItsContext(t *testing.T) {
	s := newSpecimen(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(s.dir, "pid")); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, err := plugins.OpenSpeaker(ctx, s.program("mute"), s.options(plugins.Times{Start: patience})...)
	require.ErrorIs(t, err, context.Canceled)
	eventually(t, "pid", func() error { _, err := os.ReadFile(filepath.Join(s.dir, "pid")); return err })
	assert.False(t, alive(s.pid(t)))

	done, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = plugins.OpenSpeaker(done, s.program(""), s.options(plugins.Times{Start: patience})...)
	require.ErrorIs(t, err, context.Canceled)
}

func TestByHand(t *testing.T) {
	for is, want := range map[string]string{
		"speaker":           "testplugin is a plugin (speaker) that the vmfabric agent starts, not a program to run by hand; write 'speaker: " + binary + "' into the cluster file and restart the agent\n",
		"observer":          "write 'observers: [" + binary + "]' into",
		"resolver,observer": "write 'resolver: " + binary + "', 'observers: [" + binary + "]' into",
	} {
		cmd := exec.Command(binary)
		cmd.Env = append(os.Environ(), "TESTPLUGIN_IS="+is)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		assert.Equal(t, 1, exit.ExitCode())
		assert.Empty(t, out.String())
		assert.Contains(t, errs.String(), want)
		assert.Equal(t, 1, strings.Count(errs.String(), "\n"), errs.String())
	}
}

// TestForeign is about plugins that package plugins did not make.
func TestForeign(t *testing.T) {
	s := newSpecimen(t)
	sp := s.openSpeaker(t, "foreign", plugins.Times{})
	_, err := sp.Actual(t.Context())
	require.EqualError(t, err, `plugin testplugin: list routes: "203.0.113.300/32" is not a prefix`)
	sessions, err := sp.Sessions(t.Context())
	require.NoError(t, err)
	assert.Empty(t, sessions)
	assert.Empty(t, sp.Diagnose(t.Context()))
	_, err = sp.Advertisements(t.Context(), both[0])
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, sp.Put(t.Context(), fabric.Route{Prefix: both[0]}), "not implemented")
	pid := s.pid(t)
	require.NoError(t, sp.Close())
	assert.False(t, alive(pid))
	assert.FileExists(t, filepath.Join(s.dir, "ended"), "it had the time to end by itself")

	r, err := plugins.OpenResolver(t.Context(), s.program("foreign"), s.options(plugins.Times{})...)
	require.NoError(t, err)
	defer r.Close()
	_, err = r.Resolve(t.Context(), fabric.Query{VM: "address"})
	require.EqualError(t, err, `plugin testplugin: its answer for VM "address": NIC 1: "eth0" is not an address; correct the inventory, or the plugin`)
	_, err = r.Resolve(t.Context(), fabric.Query{VM: "route"})
	require.EqualError(t, err, `plugin testplugin: its answer for VM "route": NIC 0: "198.51.100.0" is not a prefix; correct the inventory, or the plugin`)
	nics, err := r.Resolve(t.Context(), fabric.Query{VM: "nothing"})
	require.NoError(t, err)
	assert.Empty(t, nics)

	_, err = plugins.OpenObserver(t.Context(), s.program("foreign"), s.options(plugins.Times{})...)
	require.ErrorContains(t, err, "it is a speaker and resolver and of-a-later-release, not an observer")
}

// TestWhatOthersCouldWrite: a plugin that somebody else could change is not run.
func TestWhatOthersCouldWrite(t *testing.T) {
	s := newSpecimen(t)
	mine := filepath.Join(s.dir, "mine")
	b, err := os.ReadFile(binary)
	require.NoError(t, err)
	require.NoError(t, executable.Write(mine, b))
	p := s.program("")
	p.Path = mine
	open := func() error {
		sp, err := plugins.OpenSpeaker(t.Context(), p, s.options(plugins.Times{})...)
		if err == nil {
			require.NoError(t, sp.Close())
		}
		return err
	}
	require.NoError(t, open())
	require.NoError(t, os.Chmod(mine, 0o777))
	require.EqualError(t, open(), "plugin mine ("+mine+"): it can be written by others (mode 0777); run 'chmod go-w "+mine+"'")
	require.NoError(t, os.Chmod(mine, 0o755))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(mine, 65534, 65534))
		require.ErrorContains(t, open(), "it belongs to user nobody, who could change it; run 'chown 0 "+mine+"', or name another")
		require.NoError(t, os.Chown(mine, 0, 0))
	}
	require.NoError(t, os.Chmod(s.dir, 0o777))
	require.ErrorContains(t, open(), s.dir+" on its way can be written by others")
}
