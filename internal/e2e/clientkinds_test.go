package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/hooks"
	"github.com/vmfabric/vmfabric/testenv/lab/clients"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
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

// busyboxScript is what udhcpc of a container without a distribution calls.
const busyboxScript = `#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr replace "$ip/32" dev "$interface"
ip route replace "$router" dev "$interface"
ip route replace default via "$router" dev "$interface"
echo "nameserver $dns" >/etc/resolv.conf
`

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
		"environment.nic0": "", // nobody else tells it
	}})
	require.NoError(t, c.Start(soon(t)))
	require.NoError(t, c.WaitReady(soon(t)))
	do := func(script string) string {
		out, err := c.Exec(soon(t), "sh", "-c", script)
		require.NoError(t, err)
		return out
	}
	do("cat >/run/script <<'END'\n" + busyboxScript + "END\nchmod 755 /run/script; ip link set eth0 up; udhcpc -i eth0 -n -s /run/script -p /run/udhcpc.pid")
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
