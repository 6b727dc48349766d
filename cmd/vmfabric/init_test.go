package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestInit: what init writes is good, and it changes nothing that is there.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	config, key := filepath.Join(dir, "cluster.yaml"), filepath.Join(dir, "cluster.key")
	args := []string{"init", "--config", config, "--node", "node1", "--address", "10.10.0.21", "--pool", "203.0.113.0/24,2001:db8:100::/48", "--reflector", "rr1=10.10.0.11"}
	out, errs, code := try(append(args, "--asn", "0")...)
	require.Equal(t, exitBad, code, out)
	assert.Contains(t, errs, "asn: ")
	assert.NoFileExists(t, config)
	assert.NoFileExists(t, key, "it has no use without the file")

	out, errs, code = try(args...)
	require.Equal(t, exitGood, code, errs)
	assert.Contains(t, out, "node node1, underlay 10.10.0.21\n")
	assert.Contains(t, out, "a new key")
	assert.NotContains(t, out, "Fill in")
	assert.Contains(t, out, "Then: vmfabric check "+config+"\n")
	info, err := os.Stat(key)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	out, errs, code = try("check", config)
	require.Equal(t, exitGood, code, errs)
	assert.Contains(t, out, "2 pools, 1 reflector, 0 core gateways, 1 node")

	_, errs, code = try(args...)
	assert.Equal(t, exitBad, code)
	assert.Contains(t, errs, config+" is there already; edit it, or write another one with --config")

	secret, err := os.ReadFile(key)
	require.NoError(t, err)
	require.NoError(t, os.Remove(config))
	out, errs, code = try(args[:len(args)-4]...)
	require.Equal(t, exitGood, code, errs)
	assert.Contains(t, out, "was there already, and stays")
	assert.Contains(t, out, "Fill in pools, reflectors in "+config)
	after, err := os.ReadFile(key)
	require.NoError(t, err)
	assert.Equal(t, secret, after)
}
