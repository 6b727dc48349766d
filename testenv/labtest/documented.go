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

// Blocks gives the fenced blocks of a language, which may be none, in a section of a page, by
// its heading; an empty heading: in all of the page.
func Blocks(t testing.TB, page, heading, language string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	var block *strings.Builder // the one that the line is in
	var wanted bool
	in := heading == ""
	for line := range strings.Lines(string(text)) {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && block == nil:
			block, wanted = &strings.Builder{}, in && strings.TrimSpace(fence) == language
		case isFence:
			if wanted {
				found = append(found, block.String())
			}
			block = nil
		case block != nil:
			block.WriteString(line)
		case heading != "" && strings.HasPrefix(line, "#"):
			in = strings.TrimSpace(strings.TrimLeft(line, "#")) == heading
		}
	}
	if len(found) == 0 {
		t.Fatalf("%s has no block of %q below %q", page, language, heading)
	}
	return found
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
