package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// exposed lists the metrics of nodes and reflectors, and of histograms their parts.
func exposed(t *testing.T) (names, series []string) {
	t.Helper()
	for line := range strings.Lines(scrape(t, aNode())) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "vmfabric_") {
			names, series = append(names, f[2]), append(series, f[2])
			if f[3] == "histogram" {
				series = append(series, f[2]+"_bucket", f[2]+"_sum", f[2]+"_count")
			}
		}
	}
	descs := make(chan *prometheus.Desc, 100)
	reading{}.Describe(descs)
	close(descs)
	for d := range descs {
		name := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())
		require.NotNil(t, name, d)
		series = append(series, name[1])
	}
	return names, series
}

// TestPackagedMetricsExist: what the dashboard and the alert rules name is a metric.
func TestPackagedMetricsExist(t *testing.T) {
	_, series := exposed(t)
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "grafana.json"} {
		text, err := os.ReadFile("../../packaging/" + file)
		require.NoError(t, err)
		named := regexp.MustCompile(`vmfabric_[a-z0-9_]+`).FindAllString(string(text), -1)
		assert.NotEmpty(t, named, file)
		for _, name := range named {
			assert.Contains(t, series, name, file)
		}
	}
}

// TestMetricsAreDocumented: docs/operations.md has a row for each metric of a node, and
// for no other.
func TestMetricsAreDocumented(t *testing.T) {
	names, _ := exposed(t)
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	var rows []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(vmfabric_[a-z_]+)").FindAllStringSubmatch(string(text), -1) {
		rows = append(rows, m[1])
	}
	slices.Sort(rows)
	slices.Sort(names)
	assert.Equal(t, names, rows)
}

// TestDashboard: it is what Grafana imports, and no two panels have one place.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../packaging/grafana.json")
	require.NoError(t, err)
	var d struct {
		UID    string
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &d))
	assert.NotEmpty(t, d.UID)
	places := map[[2]int]string{}
	for _, p := range d.Panels {
		at := [2]int{p.GridPos.X, p.GridPos.Y}
		assert.Empty(t, places[at], p.Title)
		places[at] = p.Title
		assert.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		assert.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			assert.NotEmpty(t, target.Expr, p.Title)
		}
	}
}

// TestAlertRules: Prometheus takes the rules and the dashboard's queries, and they fire
// when they are to.
func TestAlertRules(t *testing.T) {
	labtest.Need(t, "promtool")
	promtool := func(args ...string) {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "../../packaging"
		out, err := cmd.CombinedOutput()
		assert.NoError(t, err, string(out))
	}
	promtool("check", "rules", "alerts.yaml")
	promtool("test", "rules", "alerts_test.yaml")

	// The dashboard's queries as rules, so that promtool parses them.
	text, err := os.ReadFile("../../packaging/grafana.json")
	require.NoError(t, err)
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	n := 0
	for _, m := range regexp.MustCompile(`"expr": ("(?:[^"\\]|\\.)*")`).FindAllStringSubmatch(string(text), -1) {
		var expr string
		require.NoError(t, json.Unmarshal([]byte(m[1]), &expr))
		quoted, err := json.Marshal(expr)
		require.NoError(t, err)
		n++
		rules.WriteString("      - {record: \"dashboard:" + strings.Repeat("q", n) + "\", expr: " + string(quoted) + "}\n")
	}
	assert.Positive(t, n)
	file := t.TempDir() + "/dashboard.yaml"
	require.NoError(t, os.WriteFile(file, []byte(rules.String()), 0o600))
	promtool("check", "rules", file)
}
