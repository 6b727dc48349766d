package nodes_test

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestMain gives the loopback of the tests' namespace the addresses of the
// cluster's nodes.
func TestMain(m *testing.M) { os.Exit(labtest.Inside(m, settle)) }

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
	if err != nil {
		return err
	}
	for i := byte(20); i < 40; i++ {
		if i != absentHost {
			err = errors.Join(err, add(lo, core.Underlay4(i)), add(lo, core.Underlay6(i)))
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
