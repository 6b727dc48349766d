package labtest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// insideVariable is set in the process that runs the tests.
const insideVariable = "VMFABRIC_TEST_INSIDE"

// Inside is for TestMain of a package whose subject acts on the network namespace
// of its process. It runs the package's tests in a child process with a network
// namespace of its own, for an ordinary user as root of a user namespace, and
// returns their exit code. There the loopback is up, addresses work at once, and
// settle, if any, has been called. Without a namespace the tests fail; under
// -short, they are skipped, unless [Variable] is "must".
func Inside(m *testing.M, settle func() error) (code int) {
	if os.Getenv(insideVariable) != "" {
		if err := begin(settle); err != nil {
			fmt.Fprintln(os.Stderr, "set up the namespace of the tests:", err)
			return 1
		}
		return m.Run()
	}
	flag.Parse()
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr = core.UserNamespace()
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil && testing.Short() && os.Getenv(Variable) != "must":
		fmt.Fprintln(os.Stderr, "passed over, for want of a network namespace:", err)
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "the tests need a network namespace:", err)
		return 1
	}
	return 0
}

func begin(settle func() error) error {
	for _, links := range []string{"all", "default"} {
		// A kernel without IPv6 has no such file.
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+links+"/accept_dad", []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil && settle != nil {
		err = settle()
	}
	return err
}
