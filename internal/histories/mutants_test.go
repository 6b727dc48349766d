package histories

import (
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

var hunt = flag.Bool("mutants", false, "look for each mutant in a short history")

// mutants are faults of the registry that a history is to find.
var mutants = []labtest.Mutant{
	{Name: "what a decision depends on is not compared", File: "../../fabric/etcd/plan.go", Old: `clientv3.Compare(clientv3.ModRevision(key), "=", p.revs[key])`, New: `clientv3.Compare(clientv3.ModRevision(key), ">", -1)`},
	{Name: "a quarantine ends too early", File: "../../fabric/etcd/plan.go", Old: "return max(1, int64((a.Until.Sub(a.Since)+time.Second-1)/time.Second))", New: "return max(1, int64((a.Until.Sub(a.Since)-time.Second)/time.Second))"},
	{Name: "a refusal is of what was", File: "../../fabric/etcd/registry.go", Old: "	var fresh freshness\n", New: "	fresh := everything\n"},
	{Name: "what nobody answered was done", File: "../../fabric/etcd/registry.go", Old: "if unsure && (v.lastID == o.id || o.happened(read)) {", New: "if unsure && (v.lastID == o.id || true) {"},
	{Name: "a lease is of an earlier decision", File: "../../fabric/etcd/registry.go", Old: "	clear(w.leases)\n", New: ""},
}

// TestMutantsStand: each mutant changes one place of the code as it is.
func TestMutantsStand(t *testing.T) {
	for _, m := range mutants {
		m.Stands(t)
	}
}

// TestMutants: each mutant is found.
func TestMutants(t *testing.T) {
	if !*hunt {
		t.Skip("by hand: make histories")
	}
	var table []string
	defer func() { fmt.Println(strings.Join(table, "\n")) }()
	for _, m := range mutants {
		t.Run(m.Name, func(t *testing.T) {
			by := "the short history"
			_, err := m.Test(t, "-run", "^TestHistories$")
			if err == nil {
				by = fmt.Sprintf("a history of %v", *length)
				_, err = m.Test(t, "-run", "^TestLongHistories$", "-timeout", "0", "-histories", "1", "-from", "1", "-length", fmt.Sprint(*length))
			}
			if !assert.Error(t, err, "not found") {
				by = "not found"
			}
			table = append(table, fmt.Sprintf("| %s | `%s` | %s |", m.Name, filepath.Base(m.File), by))
		})
	}
}
