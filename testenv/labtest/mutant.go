package labtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Mutant is a fault in one place of the code, which tests are to find.
type Mutant struct {
	Name string
	File string // from the folder of the tests
	Old  string // what is there once
	New  string
}

// Stands fails the test if the code does not have the mutant's place any more.
func (m Mutant) Stands(t testing.TB) {
	t.Helper()
	code, err := os.ReadFile(m.File)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(code), m.Old); n != 1 {
		t.Errorf("%s: %q is %d times in %s", m.Name, m.Old, n, m.File)
	}
}

// Test runs tests of the folder with the mutant in the code, and returns what they say,
// and an error if they failed. Arguments are those of go test.
func (m Mutant) Test(t testing.TB, args ...string) (string, error) {
	t.Helper()
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	code, err := os.ReadFile(m.File)
	fail(err)
	at, err := filepath.Abs(m.File)
	fail(err)
	mutated, overlay := filepath.Join(t.TempDir(), "mutated.go"), filepath.Join(t.TempDir(), "overlay.json")
	fail(os.WriteFile(mutated, []byte(strings.Replace(string(code), m.Old, m.New, 1)), 0o644))
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {at: mutated}})
	fail(err)
	fail(os.WriteFile(overlay, replace, 0o644))
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"test", "-overlay", overlay, ".", "-count=1", "-v"}, args...)...).CombinedOutput()
	if strings.Contains(string(out), "[build failed]") {
		t.Fatalf("%s: %s", m.Name, out)
	}
	return string(out), err
}
