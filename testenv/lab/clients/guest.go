package clients

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// NIC is the name of a guest's NIC in the guest.
const NIC = "eth0"

// cableNIC is the link of a guest's cable that leads to the guest. The others are peers
// of ports, with the names of the nodes.
const cableNIC = "nic"

// Guest is a guest with one NIC, whose settings are the kernel's own.
type Guest struct {
	*core.Host
	MAC   net.HardwareAddr
	cable *core.Host
	root  Root
	first *core.Daemon
}

// New adds a guest to a lab: a host of that name, and one for its cable. Its NIC is
// down, and leads nowhere.
func New(l *core.Lab, name string, root Root) (*Guest, error) {
	g := &Guest{root: root, MAC: core.GuestMAC(name, 0)}
	var err error
	if g.Host, err = l.AddHost(name); err != nil {
		return nil, err
	}
	if g.cable, err = l.AddHost(name + "-cable"); err != nil {
		return nil, err
	}
	if err := g.wire(l); err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	return g, nil
}

// wire makes the NIC.
func (g *Guest) wire(l *core.Lab) error {
	if err := g.cable.SetSysctls(map[string]string{"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}); err != nil {
		return err
	}
	err := g.SetSysctls(map[string]string{
		"net.ipv6.conf.all.accept_dad": "1", "net.ipv6.conf.default.accept_dad": "1",
		"net.ipv6.conf.all.accept_ra": "1", "net.ipv6.conf.default.accept_ra": "1",
	})
	if err != nil {
		return err
	}
	if err := l.Cable(g.cable, cableNIC, g.Host, NIC); err != nil {
		return err
	}
	if err := g.SetDown(NIC); err != nil {
		return err
	}
	nic, err := g.Link(NIC)
	if err != nil {
		return err
	}
	return g.Netlink().LinkSetHardwareAddr(nic, g.MAC)
}

// Take takes the peer of a port of a node, which then has carrier, and leads nowhere
// until [Guest.Connect].
func (g *Guest) Take(node *core.Host, peer string) error {
	link, err := node.Link(peer)
	if err != nil {
		return err
	}
	nl := node.Netlink()
	if err := nl.LinkSetNsFd(link, int(g.cable.NsHandle())); err != nil {
		return fmt.Errorf("take %s of %s: %w", peer, node.Name(), err)
	}
	if link, err = g.cable.Link(peer); err != nil {
		return err
	}
	if err := g.cable.Netlink().LinkSetName(link, node.Name()); err != nil {
		return err
	}
	return g.cable.SetUp(node.Name())
}

// cable has the frames of each end come out at the other. A bridge would lose more of
// them in the first moment after the NIC is up: this loses what comes before the kernel
// has noticed the carrier, a few milliseconds at most, so that a client may ask twice.
const cable = `table netdev cable
delete table netdev cable
table netdev cable {
	chain out { type filter hook ingress device %[1]s priority 0; fwd to %[2]s; }
	chain in { type filter hook ingress device %[2]s priority 0; fwd to %[1]s; }
}
`

// Connect leads the cable to the port of a node of which it has the peer, and to no
// other. The guest's link does not blink.
func (g *Guest) Connect(ctx context.Context, node *core.Host) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(cable, cableNIC, node.Name()))
	_, err := core.Output(cmd, g.cable.Start)
	return err
}

// Sniff captures what the guest and its node say to each other about the guest's
// configuration.
func (g *Guest) Sniff() (*core.Sniffer, error) {
	return g.cable.Sniff(cableNIC, func(f core.Frame) bool { _, ok := Read(f); return ok })
}

//go:embed boot.sh
var boot string

// Boot starts the guest: its root, and a script of shell in it. [Guest.Log] has what it
// prints.
func (g *Guest) Boot(script string) error {
	box := filepath.Join(g.Dir(), "box")
	if err := os.Mkdir(box, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", boot, "boot", g.root.path, box, script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	var err error
	g.first, err = g.StartDaemon("guest", cmd)
	return err
}

// Log returns what the guest printed so far.
func (g *Guest) Log() string { return g.first.Log() }

// Do runs a script of shell in the guest.
func (g *Guest) Do(ctx context.Context, script string) (string, error) {
	return g.Host.Run(ctx, "nsenter", "-t", strconv.Itoa(g.first.Pid()), "-m", "-p", "-u", "-i", "-r", "-w", "sh", "-c", script)
}

// End ends the guest and all its processes.
func (g *Guest) End() error { return g.first.Kill() }
