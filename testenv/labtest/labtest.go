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

// Variable names the environment variable for tests that lack something that they
// need. With the value "must" such a test fails; else it is skipped.
const Variable = "VMFABRIC_LAB"

// New makes a lab, and closes it when the test ends. On a busy machine it first
// waits a little for other tests' labs to end. After a failure, the test's log
// shows the state of the lab. If the process may not make labs, see [Missing].
// Under -short New skips the test, see [Long].
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

// Need checks the things that the test needs besides a kernel: "bird", "frr",
// "libvirt", "qemu" (which includes libvirt), "lxd", the name of a program, "root".
// If one is missing, see [Missing]. Under -short Need skips the test, see [Long].
func Need(t testing.TB, things ...string) {
	t.Helper()
	Long(t)
	for _, thing := range things {
		if err := available(t.Context(), thing); err != nil {
			Missing(t, err)
		}
	}
}

// available calls Available of the package that has the thing.
func available(ctx context.Context, thing string) error {
	switch thing {
	case "root":
		return core.Available(ctx, thing)
	case "bird", "frr":
		return routers.Available(ctx, thing)
	case "libvirt", "qemu", "lxd":
		return hypervisors.Available(ctx, thing)
	}
	return core.Available(ctx, thing, thing)
}

// Long skips the test under -short. Tests that need root, a daemon or a network
// namespace, or that take long, call it.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("not under -short")
	}
}

// Missing skips the test because of err, or fails it if [Variable] says so.
func Missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv(Variable) == "must" {
		t.Fatalf("%v (%s=must)", err, Variable)
	}
	t.Skip(err)
}

// Own returns the path of a copy of a file that only this user can write, for a
// checkout that belongs to another user.
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

// Soon returns a context for one call, or one wait, that must succeed. It ends
// after a minute, which is long enough on a busy machine. Use a new one for each
// call, so that none pays for the time that another took.
func Soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Running has a part run until the test ends, or until something else ends it. It must
// end without an error.
func Running(t testing.TB, part interface{ Run(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- part.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// Ended reports whether a process has ended. It may still be a zombie, if its
// parent has gone and init has not waited for it yet.
func Ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}
