package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/plugins"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "files")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

func open(t *testing.T, program, dir, reload string) *plugins.Speaker {
	t.Helper()
	s, err := plugins.OpenSpeaker(t.Context(), plugins.Program{
		Path: program, Env: []string{"ROUTES_DIR=" + dir, "ROUTES_RELOAD=" + reload},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// TestConforms is what every author of a plugin does with it.
func TestConforms(t *testing.T) {
	program := build(t)
	conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
		dir := t.TempDir()
		return open(t, program, dir, "true"), conformance.SpeakerControls{
			Again: func(t *testing.T) fabric.Speaker { return open(t, program, dir, "true") },
		}
	})
}

// TestReload also has BIRD read what is there.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	reloads := filepath.Join(t.TempDir(), "reloads")
	s := open(t, build(t), dir, "echo done >> "+reloads)
	routes := []fabric.Route{
		{Prefix: netip.MustParsePrefix("203.0.113.10/32"), Preference: fabric.Fresh},
		{Prefix: netip.MustParsePrefix("2001:db8:100::10/128")},
	}
	require.NoError(t, s.Put(t.Context(), routes...))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "203.0.113.11_32.v4"), []byte("route 203.0.113.11/32 bla"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "203.0.113.12_32.v4"), nil, 0o600))
	got, err := s.Actual(t.Context())
	require.NoError(t, err)
	assert.ElementsMatch(t, routes, got, "what is half written is not there")
	require.NoError(t, s.Remove(t.Context(), netip.MustParsePrefix("203.0.113.11/32"), netip.MustParsePrefix("203.0.113.12/32")))
	b, err := os.ReadFile(reloads)
	require.NoError(t, err)
	assert.Equal(t, "done\ndone\n", string(b))

	s = open(t, build(t), dir, "echo no daemon; exit 1")
	require.ErrorContains(t, s.Put(t.Context(), routes...), "exit status 1: no daemon")

	labtest.Need(t, "bird")
	conf := filepath.Join(t.TempDir(), "bird.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, `router id 10.0.0.1;
protocol static guests4 { ipv4;
  include "%[1]s/*.v4";
}
protocol static guests6 { ipv6;
  include "%[1]s/*.v6";
}
`, dir), 0o600))
	out, err := exec.Command("bird", "-p", "-c", conf).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestItsDeath has everything stay where it is.
func TestItsDeath(t *testing.T) {
	dir := t.TempDir()
	program := build(t)
	routes := []fabric.Route{{Prefix: netip.MustParsePrefix("203.0.113.10/32")}, {Prefix: netip.MustParsePrefix("2001:db8:100::10/128")}}
	s := open(t, program, dir, "true")
	require.NoError(t, s.Put(t.Context(), routes...))
	require.NoError(t, s.Close())
	s = open(t, program, dir, "true")
	require.Eventually(t, func() bool {
		got, err := s.Actual(t.Context())
		return err == nil && assert.ElementsMatch(t, routes, got)
	}, time.Minute, 10*time.Millisecond)
}
