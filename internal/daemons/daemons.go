// Package daemons finds the programs of routing daemons and hypervisors, and asks
// them what they are: several projects have a bgpd, and which one is the first in
// PATH depends on the installation.
package daemons

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// identity identifies a program by its answer to a question.
type identity struct {
	of  string // the project of the program, as people call it
	ask string
	is  func(said string) bool
}

// identityOf returns the identity of a program; for the other programs, the name is
// enough.
func identityOf(name string) (who identity, asked bool) {
	switch name {
	case "bird":
		return identity{"BIRD", "--version", func(said string) bool { return strings.HasPrefix(said, "BIRD version ") }}, true
	case "vtysh":
		return identity{"FRR", "--help", func(said string) bool { return strings.Contains(said, "FRR") }}, true
	case "mgmtd", "zebra", "bgpd", "staticd", "bfdd":
		return identity{"FRR", "--version", func(said string) bool {
			// Quagga's version line begins like this, too. How FRR was built names
			// FRR's user, its folders, or both.
			return strings.HasPrefix(said, name+" version ") && strings.Contains(strings.ToLower(said), "frr")
		}}, true
	}
	return identity{}, false
}

// folders has the folders of daemons that are not in the PATH of a user.
var folders = []string{"/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/lib/frr", "/usr/libexec/frr", "/usr/lib64/frr"}

// Find returns the path of the program with this name that is the expected
// project's: "bgpd" is FRR's. If there is none, or only another project's, the
// error is [exec.ErrNotFound]. Find asks a program which project's it is, unless the
// name tells; if ctx ends before the answer, the error is that of ctx.
func Find(ctx context.Context, name string) (string, error) {
	return find(ctx, name, append(filepath.SplitList(os.Getenv("PATH")), folders...))
}

func find(ctx context.Context, name string, folders []string) (string, error) {
	who, asked := identityOf(name)
	var foreign string
	var tried []string
	for _, dir := range folders {
		path, err := exec.LookPath(filepath.Join(dir, name))
		if err != nil || !filepath.IsAbs(path) || slices.Contains(tried, path) {
			continue
		}
		tried = append(tried, path)
		if !asked || who.is(says(ctx, path, who.ask)) {
			return path, nil
		}
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("program %s: %s has not said whether it is %s's: %w", name, path, who.of, err)
		}
		if foreign == "" {
			foreign = path
		}
	}
	if foreign != "" {
		return "", fmt.Errorf("program %s: %s is not %s's: %w; install %s beside it", name, foreign, who.of, exec.ErrNotFound, strings.ToLower(who.of))
	}
	return "", fmt.Errorf("program %s: %w; install it", name, exec.ErrNotFound)
}

// said has the programs' answers, by path and question, until the program changes.
var said sync.Map

type question struct {
	path, ask string
	size      int64
	changed   time.Time
}

// answerIn bounds how long a program may take to answer.
const answerIn = 20 * time.Second

func says(ctx context.Context, path, ask string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	q := question{path, ask, info.Size(), info.ModTime()}
	if before, ok := said.Load(q); ok {
		return before.(string)
	}
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, ask)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		return "" // not stored: the next call asks again
	}
	said.Store(q, string(out))
	return string(out)
}
