package machine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/vmfabric/vmfabric/internal/oneline"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
)

// Options say what a machine is.
type Options struct {
	Name      string
	Image     Image
	Addresses []netip.Addr // on the underlay, on its eth0
	// Files is a directory of which the machine finds the files in its [Home].
	Files  string
	Memory int // MiB; 0: 512
}

// Home is the directory where commands are run.
const Home = "/root"

// Machine is a machine that QEMU emulates. The lab's Close ends it.
type Machine struct {
	*core.Daemon
	name  string
	agent *guestAgent
}

// Boot starts a machine on the underlay of a lab, and returns when systemd has started
// everything and the machine has its name, its addresses, and the core gateway as the way
// out. What it writes to its disk goes with it.
func Boot(ctx context.Context, l *core.Lab, o Options) (*Machine, error) {
	m, err := start(ctx, l, o)
	if err == nil {
		err = errors.Join(m.WaitBooted(ctx), m.settle(ctx, o))
	}
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", o.Name, err)
	}
	return m, nil
}

func start(ctx context.Context, l *core.Lab, o Options) (*Machine, error) {
	sw, err := l.AddTap(o.Name)
	if err != nil {
		return nil, err
	}
	files := filepath.Join(sw.Dir(), o.Name+".files")
	if err := makeDisk(ctx, files, o.Files, "256M"); err != nil {
		return nil, err
	}
	if o.Memory == 0 {
		o.Memory = 512
	}
	m := &Machine{name: o.Name, agent: &guestAgent{path: filepath.Join(sw.Dir(), o.Name+".agent")}}
	// Nothing is left of what is written, so that nothing is written for good.
	disk := func(path string) string {
		return "file=" + path + ",if=virtio,format=raw,snapshot=on,cache=unsafe"
	}
	m.Daemon, err = Emulate(ctx, sw, o.Name,
		"-machine", "q35", "-m", fmt.Sprint(o.Memory), "-nodefaults",
		"-drive", disk(o.Image.Disk), "-drive", disk(files),
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+m.agent.path,
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-kernel", o.Image.Kernel, "-initrd", o.Image.Initrd,
		"-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off panic=-1 quiet systemd.show_status=1",
	)
	return m, err
}

// WaitBooted waits until systemd has started everything.
func (m *Machine) WaitBooted(ctx context.Context) error {
	return m.Until(ctx, func() error {
		// It fails if a unit has failed, which is none of the machine's business.
		_, err := m.Run(ctx, "systemctl is-system-running --wait || [ $? = 1 ]")
		return err
	})
}

// settle gives the machine its name, its network and its files.
func (m *Machine) settle(ctx context.Context, o Options) error {
	var network strings.Builder
	network.WriteString("[Match]\nName=eth0\n[Network]\nIPv6AcceptRA=no\n")
	for _, a := range o.Addresses {
		prefix, way := core.UnderlayPrefix4, core.CoreAddr4
		if a.Is6() {
			prefix, way = core.UnderlayPrefix6, core.CoreAddr6
		}
		fmt.Fprintf(&network, "Address=%s/%d\nGateway=%s\n", a, prefix.Bits(), way)
	}
	_, err := m.Run(ctx, fmt.Sprintf(`hostnamectl set-hostname %[1]s
echo 127.0.1.1 %[1]s >>/etc/hosts
printf '%[2]s' >/etc/systemd/network/20-eth0.network
systemctl restart systemd-networkd
mount -o ro /dev/vdb /mnt
cp -r /mnt/. .
umount /mnt
/lib/systemd/systemd-networkd-wait-online --timeout=120`, o.Name, strings.ReplaceAll(network.String(), "\n", `\n`)))
	return err
}

// Run runs a script of shell in the machine, as root, and returns its standard output. If it
// fails, the error is an [ExitError].
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	out, errs, code, err := m.Do(ctx, "set -e\n"+script)
	if err == nil && code != 0 {
		err = &ExitError{Script: script, Code: code, Said: errs + " " + out}
	}
	return out, err
}

// Do runs a script of shell in the machine, as root, whatever its exit code.
func (m *Machine) Do(ctx context.Context, script string) (stdout, stderr string, code int, err error) {
	o, err := m.agent.exec(ctx, "/bin/bash", []string{"-c", "cd " + Home + "\n" + script}, environment, nil)
	if err != nil {
		return "", "", 0, fmt.Errorf("%s: %w", m.name, err)
	}
	if o.Signal != 0 {
		o.ExitCode = 128 + o.Signal
	}
	return string(o.Out), string(o.Err), o.ExitCode, nil
}

// environment is that of root's shell.
var environment = []string{"HOME=" + Home, "LC_ALL=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// Put writes a file of the machine.
func (m *Machine) Put(ctx context.Context, path, text string) error {
	o, err := m.agent.exec(ctx, "/bin/bash", []string{"-c", "cat >" + path}, environment, []byte(text))
	if err == nil && o.ExitCode != 0 {
		err = &ExitError{Script: path, Code: o.ExitCode, Said: string(o.Err)}
	}
	return err
}

// Reboot has the machine boot anew, and returns when it has.
func (m *Machine) Reboot(ctx context.Context) error {
	const boot = "cat /proc/sys/kernel/random/boot_id"
	before, err := m.Run(ctx, boot)
	if err != nil {
		return err
	}
	// What answers may be gone before it has answered.
	if _, err := m.Run(ctx, "systemctl --no-block reboot"); errors.As(err, new(*ExitError)) {
		return err
	}
	err = m.Until(ctx, func() error {
		now, err := m.Run(ctx, boot)
		if err == nil && now == before {
			err = errors.New("it has not gone down")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reboot %s: %w", m.name, err)
	}
	return m.WaitBooted(ctx)
}

// ExitError is the failure of a script in a machine.
type ExitError struct {
	Script string
	Code   int
	Said   string
}

// Error names the script, its exit code, and what it said.
func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Script, e.Code, oneline.Words(e.Said))
}

// Available reports an error unless machines can be made and emulated here.
func Available(ctx context.Context) error {
	return core.Available(ctx, "machines", "qemu-system-x86_64", "mke2fs", "mmdebstrap")
}
