package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
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
	require.Equal(t, exitUsage, code, out)
	assert.Contains(t, errs, "--asn 0: ")
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

// TestInitSaysWhatIsWrong: at once, by the flag, also while other answers are missing.
func TestInitSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	args := []string{"init", "--config", filepath.Join(dir, "cluster.yaml"), "--node", "node1", "--address", "10.10.0.21"}
	for wrong, says := range map[string]string{
		"--asn 0": "--asn 0: ", "--name x/y": "--name x/y: ", "--node a/b": "--node a/b: ",
		"--pool 203.0.113.0/24 --pool 203.0.113.128/25": "--pool 203.0.113.128/25: 203.0.113.128/25 overlaps 203.0.113.0/24",
		"--core c1=10.10.0.1 --core c1=10.10.0.2":       "--core c1=10.10.0.2: ",
	} {
		_, errs, code := try(append(args, strings.Fields(wrong)...)...)
		assert.Equal(t, exitUsage, code, "%s: %s", wrong, errs)
		assert.Contains(t, errs, says, wrong)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)

	out, errs, code := try(append(args, "--json")...)
	require.Equal(t, exitGood, code, errs)
	var is struct {
		Config, Node string
		Missing      []string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &is))
	assert.Equal(t, "node1", is.Node)
	assert.Equal(t, []string{"pools", "reflectors"}, is.Missing)
}
