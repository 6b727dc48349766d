// Package packaging_test holds the files that people copy to what the programs
// understand.
package packaging_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmfabric/vmfabric/fabric/clusterfile"
	"github.com/vmfabric/vmfabric/fabric/libvirt/domxml"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

func TestClusterFiles(t *testing.T) {
	example, err := os.ReadFile("cluster.yaml.example")
	require.NoError(t, err)
	c, err := clusterfile.Parse("cluster.yaml.example", example)
	require.NoError(t, err)
	assert.Empty(t, clusterfile.Warnings(c))
	// What is commented out is right too, but for the files that it names.
	var all []string
	for line := range strings.Lines(string(example)) {
		if bare := strings.TrimLeft(line, " "); strings.HasPrefix(bare, "#") && !strings.HasPrefix(bare, "# ") && !strings.Contains(bare, "password_file") {
			line = strings.Replace(line, "#", "", 1)
		}
		all = append(all, line)
	}
	_, err = clusterfile.Parse("cluster.yaml.example", []byte(strings.Join(all, "")))
	require.NoError(t, err)

	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	c, err = clusterfile.Parse("README.md", []byte(block(t, string(readme), "```yaml\nname: msk1")))
	require.NoError(t, err)
	assert.Empty(t, clusterfile.Warnings(c))
	xml := "<domain><name>sea_gold</name>" + strings.ReplaceAll(block(t, string(readme), "```xml\n<metadata>"), "...", "<devices>") + "</devices></domain>"
	d, err := domxml.Parse(strings.NewReader(xml))
	require.NoError(t, err)
	require.NoError(t, d.Plugged())
	assert.Len(t, d.VM().Prefixes(), 2)
}

// block gives the fenced block that begins so.
func block(t *testing.T, text, begin string) string {
	t.Helper()
	at := strings.Index(text, begin)
	require.Positive(t, at, begin)
	body := text[at+strings.Index(begin, "\n")+1:]
	return body[:strings.Index(body, "```")]
}

func TestBirdTakesItsExamples(t *testing.T) {
	labtest.Need(t, "bird")
	bird, err := exec.LookPath("bird")
	if err != nil {
		bird = "/usr/sbin/bird"
	}
	for _, file := range []string{"bird/reflector.conf", "bird/core.conf"} {
		out, err := exec.Command(bird, "-p", "-c", file).CombinedOutput()
		assert.NoError(t, err, "%s: %s", file, out)
	}
}
