package nodes_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv"
)

const insideEnv = "VMFABRIC_NODES_TEST_INSIDE"

// TestMain runs the tests once more in a network namespace of their own, whose
// loopback has the addresses of the cluster's nodes.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "addresses of nodes:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getuid() != 0 {
		cmd.SysProcAttr = testenv.UserNamespace()
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "the tests need a network namespace:", err)
		os.Exit(1)
	}
}

// absentHost is a number of the underlay whose addresses this machine lacks.
const absentHost = 29

// reflectorHost is that of a reflector, see [cluster].
const reflectorHost = 39

// strangers are guests' addresses, and those of another network.
var strangers = []netip.Addr{
	netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10"),
	netip.MustParseAddr("10.10.1.21"), netip.MustParseAddr("fd00:10:11::21"),
}

func settle() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for i := byte(20); i < 40; i++ {
		if i != absentHost {
			err = errors.Join(err, add(lo, testenv.Underlay4(i)), add(lo, testenv.Underlay6(i)))
		}
	}
	for _, a := range strangers {
		err = errors.Join(err, add(lo, a))
	}
	return err
}

func add(lo netlink.Link, a netip.Addr) error {
	addr, err := netlink.ParseAddr(fabric.HostPrefix(a).String())
	if err != nil {
		return err
	}
	if a.Is6() {
		addr.Flags = syscall.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(lo, addr); !errors.Is(err, syscall.EEXIST) { // a worker of a fuzz test
		return err
	}
	return nil
}
