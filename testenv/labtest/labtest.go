// Package labtest is the laboratory of testenv/lab for tests: labs that close with
// their test and explain themselves when it fails.
package labtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/lab/routers"
)

// Variable names the environment variable that says how serious the absence of
// something is that a test needs: with the value "must", the test fails; else
// it is skipped.
const Variable = "VMFABRIC_LAB"

// New makes a lab that is closed when the test ends. On a busy machine it waits a
// little for other tests' labs to end. When the test has failed,
// the test's log shows first what the lab looked like. Where labs cannot be
// made, see [Missing]. Under -short the test is skipped, see [Long].
func New(t testing.TB) *core.Lab {
	t.Helper()
	Long(t)
	makeRoom(t)
	lab, err := core.New(context.Background(), core.Options{Name: t.Name()})
	if errors.Is(err, fs.ErrPermission) {
		Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			var b bytes.Buffer
			lab.Dump(&b)
			t.Log(b.String())
		}
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// Build makes a lab with the hosts of a cluster.
func Build(t testing.TB, c fabric.Cluster) (*core.Lab, *core.Topology) {
	t.Helper()
	lab := New(t)
	top, err := lab.Build(c)
	if err != nil {
		t.Fatal(err)
	}
	return lab, top
}

// Need says what the test needs besides a kernel: "bird", "frr", "libvirt", "qemu"
// (which includes libvirt), "lxd", the name of a program, "root". Where something is
// missing, see [Missing]. Under -short the test is skipped, see [Long].
func Need(t testing.TB, things ...string) {
	t.Helper()
	Long(t)
	for _, thing := range things {
		if err := available(thing); err != nil {
			Missing(t, err)
		}
	}
}

// available asks the part of the laboratory that has the thing.
func available(thing string) error {
	switch thing {
	case "root":
		return core.Available(thing)
	case "bird", "frr":
		return routers.Available(thing)
	case "libvirt", "qemu", "lxd":
		return hypervisors.Available(thing)
	}
	return core.Available(thing, thing)
}

// Long skips the test under -short: one that needs root, a daemon or a network
// namespace, or takes long.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("not under -short")
	}
}

// Missing skips the test for want of what err says, or fails it, as [Variable]
// has it.
func Missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv(Variable) == "must" {
		t.Fatalf("%v (%s=must)", err, Variable)
	}
	t.Skip(err)
}

// Own gives a copy of a file that nobody else can write, whoever made the
// checkout that it is in.
func Own(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(own, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return own
}

// Soon gives a context for one call, or one wait, that is to succeed: it ends a
// minute later, which is long enough on a machine that does much else. Each call
// has one of its own, so that none pays for the time that another took.
func Soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Ended reports whether a process runs no more; init may yet have to wait for
// one whose parent has gone.
func Ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}
