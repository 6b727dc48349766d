package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/internal/doctor"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestDoctor: exit codes say whether something is wrong, and --fix mends what is the
// fabric's own.
func TestDoctor(t *testing.T) {
	file := labtest.Own(t, "../../packaging/cluster.yaml.example")
	secret := filepath.Join(filepath.Dir(file), "cluster.key")
	require.NoError(t, os.WriteFile(secret, []byte("the key of the cluster"), 0o644))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append(text, "\nkey_file: cluster.key\n"...), 0o600))
	doctorOf := func(more ...string) (string, string, int) {
		return try(append([]string{"doctor", "cluster", "--config", file, "--node", "node1", "--socket", filepath.Join(t.TempDir(), "no.sock")}, more...)...)
	}
	out, errs, code := doctorOf()
	assert.Equal(t, exitBad, code, errs)
	assert.Contains(t, out, "WRONG    cluster: "+file)
	assert.Contains(t, out, "cluster.key: open to others (mode 0644)\n         why: no agent starts without")
	assert.Contains(t, out, "\n         way out: run 'chmod 600' on it")
	assert.Contains(t, out, "\n1 wrong, 0 good, 0 notes, 0 could not be looked at\n")
	assert.Empty(t, errs)

	if os.Geteuid() == 0 {
		assert.Contains(t, out, "vmfabric doctor --fix mends it")
		out, errs, code = doctorOf("--fix")
		assert.Equal(t, exitGood, code, errs)
		assert.Contains(t, out, "mended   cluster: "+file)
	}
	require.NoError(t, os.Chmod(secret, 0o600))
	out, _, code = doctorOf("--all")
	assert.Equal(t, exitGood, code)
	assert.Contains(t, out, "good     cluster: "+file+" describes cluster msk1\n")
	out, _, code = doctorOf("--json")
	assert.Equal(t, exitGood, code)
	var report doctor.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	assert.True(t, report.Healthy)
	assert.Equal(t, "node1", report.Node)
	assert.NotEmpty(t, report.Findings)
}

// TestDoctorSaysLibvirtOnce: neither twice, nor at all where none is wanted.
func TestDoctorSaysLibvirtOnce(t *testing.T) {
	var out strings.Builder
	cmd := newRoot()
	cmd.SetOut(&out)
	printReport(cmd, doctor.Report{Findings: []doctor.Finding{{Check: "libvirt", State: doctor.Wrong, What: "libvirt: no answer"}}}, false)
	assert.Contains(t, out.String(), "WRONG    libvirt: no answer\n")
	said, errs, code := try("doctor", "libvirt", "virtqemud", "--libvirt", "off", "--all", "--socket", filepath.Join(t.TempDir(), "no.sock"))
	assert.Equal(t, exitGood, code, errs)
	assert.Contains(t, said, "good     libvirt: no libvirt is to be followed (--libvirt off)\n")
}

// TestProbeKeepsOut: what doctor tries in a namespace of its own is not for one in use.
func TestProbeKeepsOut(t *testing.T) {
	_, errs, code := try(kernelProbe, "more")
	assert.Equal(t, exitUsage, code, errs)
	if links, err := os.ReadDir("/proc/sys/net/ipv4/conf"); err == nil && len(links) > 3 {
		_, errs, code = try(kernelProbe)
		assert.Equal(t, exitBad, code)
		assert.Contains(t, errs, "this network namespace is in use")
	}
}
