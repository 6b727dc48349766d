package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/clients"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// Firmware says by HTTP, to an address behind the gateway, what DHCP has told it.
const firmwareScript = `dhcp
chain http://192.0.2.2/online?ip=${ip}&mask=${netmask}&gateway=${gateway}&dns=${dns}
`

// TestClientFirmware boots iPXE from the network: what it chains to comes through the
// gateway.
func TestClientFirmware(t *testing.T) {
	if !*allClients {
		t.Skip("by hand: make guests")
	}
	s := withResolvers(t)
	said := make(chan url.Values, 16)
	l, err := s.top.Client.Listen("tcp", "192.0.2.2:80")
	require.NoError(t, err)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said <- r.URL.Query()
		if r.URL.Path == "/online" { // asks once more, and says it again
			fmt.Fprint(w, "#!ipxe\n"+strings.Replace(firmwareScript, "online", "again", 1))
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	vm := veth("firmware", "203.0.113.10", "2001:db8:100::10")
	vm.NICs[0].Kind = fabric.Tap
	s.agents["node1"].ask(hooks.Wire, vm)
	s.agents["node1"].ask(hooks.Live, vm)
	qemu, err := clients.BootFirmware(soon(t), s.top.Nodes["node1"], fabric.PortName(vm.Name, 0), firmwareScript)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, qemu.Kill()) })
	for range 2 {
		select {
		case got := <-said:
			t.Log(got)
			assert.Equal(t, url.Values{"ip": {"203.0.113.10"}, "mask": {"255.255.255.252"}, "gateway": {"169.254.1.1"}, "dns": {"192.0.2.2"}}, got)
		case <-soon(t).Done():
			t.Fatal("it does not get through: ", qemu.Log())
		}
	}
}

// TestClientInitramfs boots initial file systems of Debian in QEMU, which set up the network
// before there is a root file system. One that has a resident client renews its leases.
func TestClientInitramfs(t *testing.T) {
	if !*allClients {
		t.Skip("by hand: make guests")
	}
	s := start(t, options{program: os.Args[0]})
	for n, i := range clients.Initramfses {
		t.Run(i.Name, func(t *testing.T) {
			vm := veth(fmt.Sprintf("machine%d", n), fmt.Sprintf("203.0.113.%d", 10+n), fmt.Sprintf("2001:db8:100::%d", 10+n))
			vm.NICs[0].Kind = fabric.Tap
			s.agents["node1"].ask(hooks.Wire, vm)
			s.agents["node1"].ask(hooks.Live, vm)
			node, port := s.top.Nodes["node1"], fabric.PortName(vm.Name, 0)
			wire, err := node.Sniff(port, func(f core.Frame) bool { _, ok := clients.Read(f); return ok })
			require.NoError(t, err)
			defer wire.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 12*patience)
			defer cancel()
			qemu, err := i.Boot(ctx, node, port)
			require.NoError(t, err)
			defer func() { assert.NoError(t, qemu.Kill()) }()
			wanted := map[fabric.ContactProtocol]string{fabric.DHCPv4: "selecting"}
			if i.IPv6 {
				wanted = map[fabric.ContactProtocol]string{fabric.DHCPv4: "renewing", fabric.DHCPv6: "renew"}
			}
			for p, kind := range wanted {
				address := vm.NICs[0].Addresses[map[fabric.ContactProtocol]int{fabric.DHCPv4: 0, fabric.DHCPv6: 1}[p]]
				_, err := s.top.Client.Ping(ctx, address)
				require.NoError(t, err, core.Tail(qemu.Log(), 60))
				require.NoError(t, core.Until(ctx, func() error {
					var ms []clients.Message
					for _, f := range wire.Frames() {
						m, _ := clients.Read(f)
						ms = append(ms, m)
					}
					if said := exchanges(ms, p); said[kind] == nil {
						return fmt.Errorf("%s: it asked %v, not %s", p, slices.Collect(maps.Keys(said)), kind)
					}
					return nil
				}), core.Tail(qemu.Log(), 60))
				t.Logf("%s: reached, and %s was answered", p, kind)
			}
		})
	}
}

// TestClientInContainer has a container of LXD, with nothing but busybox, ask for its
// address on a NIC that LXD makes.
func TestClientInContainer(t *testing.T) {
	if !*allClients {
		t.Skip("by hand: make guests")
	}
	s := withResolvers(t)
	lx := s.lxd("node1")
	nic := p2p("203.0.113.10", "2001:db8:100::10")
	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", NICs: []fabric.NIC{nic}, Config: map[string]string{
		"environment.nic0": "", "environment.dhcp": "yes",
	}})
	require.NoError(t, c.Start(soon(t)))
	require.NoError(t, c.WaitReady(soon(t)))
	do := func(script string) string {
		out, err := c.Exec(soon(t), "sh", "-c", script)
		require.NoError(t, err)
		return out
	}
	s.reaches(s.top.Client, "203.0.113.10")
	assert.Contains(t, do("cat /etc/resolv.conf"), core.ClientAddr4.String())
	do("ping -c 1 -w 60 192.0.2.2")
	s.eventually("a default route", func() error {
		if out := do("ip -6 route"); !strings.Contains(out, "default via fe80::1") {
			return fmt.Errorf("it has %q", out)
		}
		return nil
	})
}

// TestClientInDebianContainer has a container of LXD with a whole Debian configure itself,
// renew, and boot once more.
func TestClientInDebianContainer(t *testing.T) {
	if !*allClients {
		t.Skip("by hand: make guests")
	}
	s := withResolvers(t)
	lx := s.lxd("node1")
	c := s.container(lx, hypervisors.ContainerOptions{Name: "web", Debian: true, NICs: []fabric.NIC{p2p("203.0.113.10", "2001:db8:100::10")}})
	online := func() {
		s.starts(c)
		s.reaches(s.top.Client, "203.0.113.10", "2001:db8:100::10")
		for _, a := range resolvers {
			out, err := c.Exec(soon(t), "ping", "-c", "1", "-w", "60", a.String())
			require.NoError(t, err, out)
		}
		out, err := c.Exec(soon(t), "sh", "-c", "cat /run/systemd/netif/links/*; ip route; ip -6 route")
		require.NoError(t, err)
		for _, want := range []string{"192.0.2.2", "2001:db8:ffff::2", "default via 169.254.1.1", "via fe80::1 dev eth0 proto ra"} {
			assert.Contains(t, out, want)
		}
	}
	online()
	_, err := c.Exec(soon(t), "networkctl", "renew", "eth0")
	require.NoError(t, err)
	s.eventually("the renewal is noted", func() error {
		for _, p := range s.agents["node1"].ask(hooks.List, fabric.VM{}).Ports {
			for _, contact := range p.Contacts {
				if contact.Message == "RENEW" {
					return nil
				}
			}
		}
		return errors.New("it is not")
	})
	require.NoError(t, c.Shutdown(soon(t)))
	online()
}

// readmeDomain has the parts of README.md's domain, and what a domain is beside.
const readmeDomain = `<domain type='qemu'>
<name>sea_gold</name>
%[1]s
<memory unit='MiB'>512</memory>
<os>
<type arch='x86_64' machine='q35'>hvm</type>
<kernel>%[3]s</kernel><initrd>%[4]s</initrd><cmdline>console=ttyS0 %[5]s</cmdline>
</os>
<devices>
<controller type='usb' model='none'/>
%[2]s
</devices>
</domain>
`

// domainOfTheReadme gives what README.md has a domain say of its addresses, and its NIC.
func domainOfTheReadme(t testing.TB) (metadata, nic string) {
	t.Helper()
	metadata, nic, found := strings.Cut(labtest.Blocks(t, "../../README.md", realNode, "xml")[0], "...\n")
	require.True(t, found)
	return metadata, nic
}

// TestClientOfTheReadme starts the domain that README.md shows, with an initial file system
// of a distribution as it is.
func TestClientOfTheReadme(t *testing.T) {
	if !*allClients {
		t.Skip("by hand: make guests")
	}
	metadata, nic := domainOfTheReadme(t)
	s := start(t, options{noAgent: true})
	lv := s.hypervisor("node1")
	for _, i := range clients.Initramfses {
		t.Run(i.Name, func(t *testing.T) {
			kernel, initrd, err := i.Files(t.Context())
			require.NoError(t, err)
			file := s.lab.Dir() + "/readme.xml"
			require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, readmeDomain, metadata, nic, kernel, initrd, i.Parameters), 0o600))
			for _, args := range [][]string{{"define", file}, {"start", "sea_gold"}} {
				_, err = lv.Virsh(soon(t), args...)
				require.NoError(t, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 12*patience)
			defer cancel()
			addresses := []string{"203.0.113.10", "2001:db8:100::10"}
			if !i.IPv6 {
				addresses = addresses[:1]
			}
			for _, a := range addresses {
				_, err := s.top.Client.Ping(ctx, netip.MustParseAddr(a))
				require.NoError(t, err)
			}
			out, errs, code := s.agents["node1"].cli("list")
			assert.Zero(t, code, errs)
			t.Log("\n" + out)
			out, errs, code = s.agents["node1"].cli("why", "203.0.113.10")
			assert.Zero(t, code, errs)
			assert.Contains(t, out, "the guest asked by DHCPv4")
			for _, verb := range []string{"destroy", "undefine"} {
				_, err = lv.Virsh(soon(t), verb, "sea_gold")
				require.NoError(t, err)
			}
			s.leavesNothing(s.top.Nodes["node1"], seaGold...)
		})
	}
}
