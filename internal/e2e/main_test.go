package e2e

import (
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Programs under test, built by TestMain.
var program, hookProgram, lxdHookProgram string

// programVersion is what they are built as.
const programVersion = "9.9.9"

func TestMain(m *testing.M) {
	if flag.Parse(); testing.Short() {
		os.Exit(m.Run()) // they are all skipped
	}
	if flag.Arg(0) == "agent" {
		runBrief(flag.Args()[1:])
		return
	}
	if flag.Arg(0) == "liar" {
		if err := runLiar(flag.Arg(1), flag.Arg(2)); err != nil {
			log.Fatal(err)
		}
		return
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vmfabric-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program, hookProgram, lxdHookProgram = filepath.Join(dir, "vmfabric"), filepath.Join(dir, "hook"), filepath.Join(dir, "hook-lxd")
	for path, pkg := range map[string]string{
		program: "../../cmd/vmfabric", hookProgram: "../../hooks/libvirt", lxdHookProgram: "../../hooks/lxd",
		program + "-plugin-bird": "../../plugins/bird", program + "-plugin-frr": "../../plugins/frr", // where the agent looks for them
	} {
		args := []string{"build", "-ldflags", "-X main.version=" + programVersion, "-o", path}
		if raceFlag != "" {
			args = append(args, raceFlag)
		}
		if out, err := exec.Command("go", append(args, pkg)...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
			return 1
		}
	}
	return m.Run()
}
