package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs has the paths of the measured programs.
type programs struct {
	vmfabric, hook   string
	hello, roundtrip string // the baselines of the hook
	registrar        string // nodes of a registry
	bulk             string // announces routes without ports
	baseline         string // the hook and the agent of the baseline for moves
}

// build compiles all programs with the flags of a release.
func (b *bench) build(ctx context.Context, dir string) (programs, error) {
	p := programs{
		vmfabric: filepath.Join(dir, "vmfabric"), hook: filepath.Join(dir, "hook"),
		hello: filepath.Join(dir, "hello"), roundtrip: filepath.Join(dir, "roundtrip"), bulk: filepath.Join(dir, "bulk"),
		baseline: filepath.Join(dir, "baseline"), registrar: filepath.Join(dir, "registrar"),
	}
	for out, pkg := range map[string]string{
		p.vmfabric: "./cmd/vmfabric", p.hook: "./hooks/libvirt",
		p.hello: "./internal/bench/hello", p.roundtrip: "./internal/bench/roundtrip", p.bulk: "./internal/bench/bulk", p.baseline: "./internal/bench/baseline", p.registrar: "./internal/bench/registrar",
		p.vmfabric + "-plugin-bird": "./plugins/bird", p.vmfabric + "-plugin-frr": "./plugins/frr", // where the agent looks for them
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
		cmd.Dir = b.root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("build %s: %w: %s", pkg, err, strings.TrimSpace(string(text)))
		}
	}
	return p, nil
}

// moduleRoot returns the directory of this module's sources.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}").Output()
	path, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if err != nil || path != "github.com/vmfabric/vmfabric" {
		return "", fmt.Errorf("not in the sources of vmfabric; run it from there: go run ./internal/bench")
	}
	return dir, nil
}
