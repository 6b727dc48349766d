package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/oneline"
)

// Host is a machine of the lab: a network namespace and the processes in it. Its
// methods can be called concurrently.
type Host struct {
	name string
	lab  *Lab
	dir  string
	path string // where the namespace is bound
	ns   netns.NsHandle
	nl   *netlink.Handle

	addr4, addr6 netip.Addr // on the underlay
	port         string     // the switch's end of its cable
}

// AddHost adds a host that is connected to nothing. Its loopback is up. Duplicate
// address detection and router advertisements are off, so that its addresses work
// at once. The reverse path filter is off, too.
func (l *Lab) AddHost(name string) (*Host, error) {
	h, err := l.addHost(name)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	return h, nil
}

func (l *Lab) addHost(name string) (*Host, error) {
	if !plainName(name) {
		return nil, errors.New("not a plain name; use letters, digits, '-', '_' and '.'")
	}
	h := &Host{name: name, lab: l, dir: filepath.Join(l.dir, name), path: filepath.Join(l.netnsDir, namePrefix+l.id+"-"+name)}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			err = errors.New("the lab has it already; choose another name")
		}
		return nil, err
	}
	err := l.note("namespace", h.path)
	if err != nil {
		return nil, err
	}
	if h.ns, err = newNamespace(h.path); err != nil {
		return nil, err
	}
	if h.nl, err = netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE); err != nil {
		h.ns.Close()
		return nil, err
	}
	if err := h.settle(); err != nil {
		h.close()
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, h)
	return h, nil
}

func plainName(s string) bool {
	return s != "" && s[0] != '.' && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// settle gives a new namespace the settings that all hosts share. A new link takes
// those under "default".
func (h *Host) settle() error {
	err := h.SetSysctls(map[string]string{
		"net.ipv6.conf.all.accept_dad":     "0",
		"net.ipv6.conf.default.accept_dad": "0",
		"net.ipv6.conf.all.accept_ra":      "0",
		"net.ipv6.conf.default.accept_ra":  "0",
		"net.ipv4.conf.all.rp_filter":      "0",
		"net.ipv4.conf.default.rp_filter":  "0",
	})
	if err != nil {
		return err
	}
	return h.SetUp("lo")
}

func (h *Host) close() {
	h.nl.Close()
	h.ns.Close()
}

// Name returns the name under which the host was added.
func (h *Host) Name() string { return h.name }

// Lab returns the lab that the host is in.
func (h *Host) Lab() *Lab { return h.lab }

// Namespace returns the name of the host's network namespace, for people: `ip netns
// exec` takes it when the lab's namespaces are in /run/netns.
func (h *Host) Namespace() string { return filepath.Base(h.path) }

// NamespacePath returns the file that the host's network namespace is bound to.
func (h *Host) NamespacePath() string { return h.path }

// Dir returns a directory of the host's own, with the logs of its daemons in it. It
// goes with the lab.
func (h *Host) Dir() string { return h.dir }

// Addr4 returns the host's IPv4 address on the underlay, or the zero Addr.
func (h *Host) Addr4() netip.Addr { return h.addr4 }

// Addr6 returns the host's IPv6 address on the underlay, or the zero Addr.
func (h *Host) Addr6() netip.Addr { return h.addr6 }

// Netlink returns a handle on the host's links, addresses and routes. It is the
// host's: do not close it.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// NsHandle returns the open namespace, for the calls of netlink that want one
// (subscriptions). It is the host's: do not close it.
func (h *Host) NsHandle() netns.NsHandle { return h.ns }

// enter puts the calling thread into the host's namespace, for good.
func (h *Host) enter() error {
	if err := unix.Setns(int(h.ns), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", h.name, err)
	}
	return nil
}

// Do calls f in the host, on a thread of its own, and returns its error. Sockets
// that f opens stay in the host. Goroutines that f starts are not in the host, nor
// are those of the standard library, such as one that resolves a name.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		return f()
	})
}

// Start starts cmd in the host, as cmd.Start does. The lab's Close kills it.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// Run runs a program in the host and returns its standard output. If the program
// fails, the error ends with its output.
func (h *Host) Run(ctx context.Context, program string, args ...string) (string, error) {
	return Output(exec.CommandContext(ctx, program, args...), h.Start)
}

// Output starts cmd by start, such as [Host.Start], and returns its standard
// output. If the program fails, the error ends with its output.
func Output(cmd *exec.Cmd, start func(*exec.Cmd) error) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, oneline.Words(errOut.String()+" "+Tail(out.String(), 3)))
	}
	return out.String(), nil
}

// Dial connects from the host to an address, in the form of net.Dial; a host
// name in it is not resolved in the host.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the host, as net.Listen does.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Sysctl reads a kernel setting under net, such as net.ipv4.ip_forward. In the
// name of a link, write '/' for '.', as sysctl(8) has it.
func (h *Host) Sysctl(key string) (value string, err error) {
	err = h.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// SetSysctls writes kernel settings under net, named as for Sysctl.
func (h *Host) SetSysctls(values map[string]string) error {
	return h.Do(func() error {
		for key, value := range values {
			if err := os.WriteFile(sysctlPath(key), []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func sysctlPath(key string) string {
	return "/proc/sys/" + strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}
