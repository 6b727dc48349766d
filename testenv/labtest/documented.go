package labtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Documented checks that a page has these tables, between a line "<!-- tables of NAME -->"
// and "<!-- end of the tables -->". With update it writes them.
func Documented(t testing.TB, page, name, tables string, update bool) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- tables of "+name+" -->\n", "<!-- end of the tables -->"
	head, rest, begins := strings.Cut(string(text), begin)
	have, tail, ends := strings.Cut(rest, end)
	switch {
	case !begins || !ends:
		t.Fatalf("%s has no place for the tables of %s", page, name)
	case update:
		if err := os.WriteFile(page, []byte(head+begin+tables+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	case have != tables:
		t.Errorf("%s differs from %s; write it anew: go test ./%[2]s -run %[3]s -update", page, name, t.Name())
	}
}

// Declared checks that tests exist, each by the folder of its package below root and its
// name.
func Declared(t testing.TB, root string, tests ...string) {
	t.Helper()
	for _, test := range tests {
		folder, name, _ := strings.Cut(test, " ")
		if !declares(t, filepath.Join(root, folder), name) {
			t.Errorf("%s has no test %s", folder, name)
		}
	}
}

func declares(t testing.TB, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	test := regexp.MustCompile(`(?m)^func ` + name + `\(t \*testing\.T\)`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if test.Match(text) {
			return true
		}
	}
	return false
}
