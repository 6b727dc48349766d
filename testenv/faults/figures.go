package faults

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Count is what a fault cost the guests that were probed meanwhile.
type Count struct {
	Lost, Sent int           // packets of both families, to all guests
	Control    int           // lost of a path that has no part in the fault
	Right      time.Duration // from the fault's end until nobody complains and every guest answers
	More       string        // what else was measured
}

func (c Count) String() string {
	var parts []string
	if c.Sent > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s lost", thousands(c.Lost), thousands(c.Sent)))
		if c.Control > 0 {
			parts[0] += fmt.Sprintf(" (%d of the control probe)", c.Control)
		}
		parts = append(parts, "right after "+rounded(c.Right))
	}
	if c.More != "" {
		parts = append(parts, c.More)
	}
	return strings.Join(parts, "; ")
}

func rounded(d time.Duration) string {
	if d < time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

func thousands(n int) string {
	digits := fmt.Sprint(n)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}

// kept has a line for each fault: its name, a tab, what came of it.
//
//go:embed figures.tsv
var kept string

// Measured returns what came of the fault in the run that the table is of.
func (r *Row) Measured() string {
	for line := range strings.Lines(kept) {
		if n, text, _ := strings.Cut(strings.TrimSpace(line), "\t"); n == r.Name {
			return text
		}
	}
	return ""
}

var keeping sync.Mutex

// Keep writes what came of a fault into a file of figures, in place of what it has.
func Keep(file, name string, c Count) error {
	keeping.Lock()
	defer keeping.Unlock()
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lines := slices.DeleteFunc(strings.Split(string(text), "\n"), func(l string) bool {
		return l == "" || strings.HasPrefix(l, name+"\t")
	})
	lines = append(lines, name+"\t"+c.String())
	slices.Sort(lines)
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}
