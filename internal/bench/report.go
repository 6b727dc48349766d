package main

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// report is a whole run.
type report struct {
	machine  []fact
	sections []section
	took     time.Duration
	quick    bool
}

// fact is a property of the machine.
type fact struct{ name, value string }

// section is the report of one measurement.
type section struct {
	title   string
	method  string // paragraphs of markdown
	tables  []table
	targets []target
	notes   []string
}

type table struct {
	head []string // the first column holds words, the others figures
	rows [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// target is a promise and whether it was kept.
type target struct {
	promise, result string
	kept            bool
}

// within is the target that a ratio stays within a bound.
func within(what string, got, most float64) target {
	return target{
		promise: fmt.Sprintf("%s: at most %s", what, times(most)),
		result:  times(got), kept: !math.IsNaN(got) && got <= most,
	}
}

// none is the target that something does not happen.
func none(what string, n int) target {
	return target{promise: what + ": none", result: count(n), kept: n == 0}
}

func (r report) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Performance")
	line("")
	if r.quick {
		line("**A smoke run with small numbers: these figures mean nothing.**")
		line("")
	}
	line("Written by `make bench` (`go run ./internal/bench`), which measures vmfabric and its peers in one run on one machine, in")
	line("laboratories of network namespaces: nodes, two BIRD reflectors, a BIRD core gateway. Every ratio is between two figures")
	line("of this run. Times are in milliseconds on one clock. The programs are built as released: no race detector,")
	line("`-trimpath -ldflags '-s -w'`, `CGO_ENABLED=0`. The run took %s.", r.took.Round(time.Second))
	line("")
	write(&b, table{[]string{"machine", ""}, factRows(r.machine)})
	if ts := r.targets(); len(ts) > 0 {
		line("\n## Targets\n")
		write(&b, targetTable(ts))
	}
	for _, s := range r.sections {
		line("\n## %s\n", s.title)
		line("%s", strings.TrimSpace(s.method))
		for _, t := range s.tables {
			line("")
			write(&b, t)
		}
		for _, n := range s.notes {
			line("\n%s", n)
		}
	}
	return b.String()
}

func (r report) targets() []target {
	var ts []target
	for _, s := range r.sections {
		ts = append(ts, s.targets...)
	}
	return ts
}

func targetTable(ts []target) table {
	t := table{head: []string{"target", "measured", ""}}
	for _, g := range ts {
		t.row(g.promise, g.result, map[bool]string{true: "kept", false: "**missed**"}[g.kept])
	}
	return t
}

func factRows(facts []fact) [][]string {
	var rows [][]string
	for _, f := range facts {
		rows = append(rows, []string{f.name, f.value})
	}
	return rows
}

// write writes a table, with its columns also aligned in the source.
func write(b *strings.Builder, t table) {
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)), 3)
		}
	}
	put := func(row []string) {
		for i, w := range width {
			cell := ""
			if i < len(row) {
				cell = row[i]
			}
			pad := strings.Repeat(" ", w-len([]rune(cell)))
			if i == 0 || !t.figures() {
				fmt.Fprintf(b, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(b, "| %s%s ", pad, cell)
			}
		}
		b.WriteString("|\n")
	}
	put(t.head)
	for i, w := range width {
		rule := strings.Repeat("-", w)
		if i > 0 && t.figures() {
			rule = rule[1:] + ":"
		}
		fmt.Fprintf(b, "| %s ", rule)
	}
	b.WriteString("|\n")
	for _, row := range t.rows {
		put(row)
	}
}

// figures reports whether the columns after the first hold figures. Tables of words
// have an empty last heading.
func (t table) figures() bool { return len(t.head) > 1 && t.head[len(t.head)-1] != "" }
