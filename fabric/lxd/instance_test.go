package lxd

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// config is what an instance web says, as key=value.
func config(pairs ...string) map[string]string {
	c := map[string]string{}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		c[k] = v
	}
	return c
}

// nic is a device, as key=value.
func nic(pairs ...string) device { return device(config(append(pairs, "type=nic")...)) }

func TestGuestOfAnInstance(t *testing.T) {
	i := instance{
		Name: "web", Code: codeRunning,
		ExpandedConfig: config(
			"user.vmfabric.net0.addresses=203.0.113.10,2001:db8:100::10", "user.vmfabric.net0.routes=198.51.100.0/29, 2001:db8:200::/56",
			"user.vmfabric.net1.addresses=2001:db8:100::11", "user.vmfabric.note=for people",
			"volatile.uuid=56f8c56b-25ba-40be-a02a-8e320377e4f1", "volatile.lan.hwaddr=00:16:3e:00:00:01",
			"volatile.wan.name=eth1",
		),
		ExpandedDevices: map[string]device{
			"root": {"type": "disk"},
			"lan":  nic("nictype=p2p", "host_name=web_net0", "mtu=9000", "name=ens3"),
			"wan":  nic("nictype=physical", "parent=web_peer1", "hwaddr=00:16:3e:00:00:02"),
			"mgmt": nic("network=lxdbr0"),
		},
	}
	vm, ours, err := dialects[LXD].guest(i)
	require.NoError(t, err)
	require.True(t, ours)
	assert.Equal(t, fabric.VM{
		Name: "web", UUID: "56f8c56b-25ba-40be-a02a-8e320377e4f1", Origin: "lxd", Container: true, NICs: []fabric.NIC{
			{
				Link:      "ens3",
				Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
				Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/56")},
				Kind:      fabric.Adopt, MAC: fabric.MAC{0, 0x16, 0x3e, 0, 0, 1}, MTU: 9000,
			},
			{Link: "eth1", Addresses: []netip.Addr{netip.MustParseAddr("2001:db8:100::11")}, Kind: fabric.Veth, MAC: fabric.MAC{0, 0x16, 0x3e, 0, 0, 2}},
		},
	}, vm)
	assert.Equal(t, fabric.Identity("lxd 56f8c56b-25ba-40be-a02a-8e320377e4f1"), vm.Identity())

	// LXD 4.0 has no UUIDs.
	delete(i.ExpandedConfig, "volatile.uuid")
	for project, identity := range map[string]fabric.Identity{"": "lxd default/web", "default": "lxd default/web", "shop": "lxd shop/web"} {
		i.Project = project
		vm, _, err = dialects[LXD].guest(i)
		require.NoError(t, err)
		assert.Equal(t, identity, vm.Identity())
	}

	i.Type = "virtual-machine"
	i.ExpandedDevices["wan"] = nic("nictype=p2p", "host_name=web_net1", "hwaddr=00:16:3e:00:00:02")
	vm, _, err = dialects[LXD].guest(i)
	require.NoError(t, err)
	assert.False(t, vm.Container)
	assert.Equal(t, fabric.MAC{0, 0x16, 0x3e, 0, 0, 2}, vm.NICs[1].MAC)

	for name, c := range map[string]map[string]string{
		"no keys": nil, "others' keys": config("user.vmfabric.note=x", "user.vmfabrics.net0.addresses=x", "volatile.uuid=x"),
	} {
		i.ExpandedConfig = c
		_, ours, err := dialects[LXD].guest(i)
		assert.NoError(t, err, name)
		assert.False(t, ours, name)
	}
}

func TestSwitchesOfAnInstance(t *testing.T) {
	for keys, want := range map[string][3]bool{
		"": {}, "dhcp=true ra=true metadata=true": {}, "dhcp=false": {true, false, false}, "ra=false": {false, true, false}, "dhcp=false ra=false": {true, true, false}, "metadata=false": {false, false, true},
	} {
		i := p2p("web", 10)
		for pair := range strings.FieldsSeq(keys) {
			k, v, _ := strings.Cut(pair, "=")
			i.ExpandedConfig["user.vmfabric."+k] = v
		}
		vm, ours, err := dialects[LXD].guest(i)
		require.NoError(t, err, keys)
		assert.True(t, ours)
		assert.Equal(t, want, [3]bool{vm.NoDHCP, vm.NoRA, vm.NoMetadata}, keys)
	}
	for _, value := range []string{"no", "", "FALSE", "0", "tr\nue"} {
		i := p2p("web", 10)
		i.ExpandedConfig["user.vmfabric.ra"] = value
		_, ours, err := dialects[LXD].guest(i)
		require.ErrorContains(t, err, "and it takes true or false; lxc config set web user.vmfabric.ra=false", value)
		assert.NotContains(t, err.Error(), "\n")
		assert.False(t, ours)
	}
	i := p2p("web", 10)
	i.ExpandedConfig["user.vmfabric.ra"], i.ExpandedConfig["user.vmfabric.dhcp"] = "no", "no"
	for range 20 {
		_, _, err := dialects[LXD].guest(i)
		require.ErrorContains(t, err, "user.vmfabric.dhcp is", "the same of two each time: a new text is a new problem")
	}
	i.ExpandedConfig = config("user.vmfabric.dhcp=maybe")
	_, ours, err := dialects[LXD].guest(i)
	assert.NoError(t, err, "none of the fabric's")
	assert.False(t, ours)
}

// TestFirewallOfAnInstance reads what the instance sends and gets, and says what is wrong
// with a key.
func TestFirewallOfAnInstance(t *testing.T) {
	of := func(keys map[string]string) (fabric.VM, error) {
		i := p2p("web", 10)
		for k, v := range keys {
			i.ExpandedConfig["user.vmfabric."+k] = v
		}
		vm, _, err := dialects[LXD].guest(i)
		return vm, err
	}
	vm, err := of(nil)
	require.NoError(t, err)
	assert.Nil(t, vm.Firewall)
	assert.False(t, vm.Isolated)
	vm, err = of(map[string]string{
		"isolate": "true", "firewall.stateful": "true", "firewall.egress": "drop tcp 25",
		"firewall.ingress": "accept tcp 22 from 198.51.100.0/24,2001:db8:5::/48\naccept icmp\ndrop\n",
	})
	require.NoError(t, err)
	assert.True(t, vm.Isolated)
	require.NotNil(t, vm.Firewall)
	assert.True(t, vm.Firewall.Stateful)
	assert.Equal(t, "accept tcp 22 from 198.51.100.0/24,2001:db8:5::/48; accept icmp; drop", vm.Firewall.Ingress.Text(fabric.Ingress))
	assert.Equal(t, "drop tcp 25; accept", vm.Firewall.Egress.Text(fabric.Egress))
	for _, tt := range []struct{ key, value, want string }{
		{"isolate", "yes", `user.vmfabric.isolate is "yes", and it takes true or false; lxc config set web user.vmfabric.isolate=false`},
		{"firewall.stateful", "", `user.vmfabric.firewall.stateful is "", and it takes true or false`},
		{"firewall.rules", "drop", "user.vmfabric.firewall.rules is not a key of the fabric, which has user.vmfabric.firewall.ingress, user.vmfabric.firewall.egress and user.vmfabric.firewall.stateful; lxc config unset web user.vmfabric.firewall.rules"},
		{"firewall.ingress", "accept tpc 22", `user.vmfabric.firewall.ingress: ingress rule 1 "accept tpc 22": protocol "tpc" is not one of any, tcp, udp, icmp`},
		{"firewall.egress", "accept tcp 22", `firewall: egress: all rules say accept, as for all other packets`},
	} {
		_, err := of(map[string]string{tt.key: tt.value})
		require.ErrorContains(t, err, tt.want)
		assert.NotContains(t, err.Error(), "\n")
	}
}

func TestPoolsOfAnInstance(t *testing.T) {
	static := []netip.Addr{netip.MustParseAddr("203.0.113.10")}
	for value, want := range map[string]fabric.NIC{
		"auto":                       {Pools: []string{fabric.AutoPool}},
		" auto , ":                   {Pools: []string{fabric.AutoPool}},
		"pool:auto":                  {Pools: []string{fabric.AutoPool}},
		"pool:public4,pool:public6":  {Pools: []string{"public4", "public6"}},
		"pool:public4, pool:public4": {Pools: []string{"public4", "public4"}},
		"203.0.113.10,pool:public6":  {Addresses: static, Pools: []string{"public6"}},
		"pool:public6, 203.0.113.10": {Addresses: static, Pools: []string{"public6"}},
		"pool:public6,203.0.113.10, auto, pool:a.b": {Addresses: static, Pools: []string{"public6", "auto", "a.b"}},
	} {
		t.Run(value, func(t *testing.T) {
			i := p2p("web", 10)
			i.ExpandedConfig = config("user.vmfabric.net0.addresses=" + value)
			vm, ours, err := dialects[LXD].guest(i)
			require.NoError(t, err)
			assert.True(t, ours)
			want.Kind, want.Link = fabric.Adopt, "eth0"
			assert.Equal(t, []fabric.NIC{want}, vm.NICs)
			assert.True(t, vm.Unresolved())
			assert.NoError(t, vm.Validate())
		})
	}
}

// A long name's port is not <vm>_net0, and the user is told which it is.
func TestGuestWithALongName(t *testing.T) {
	const long = "a-machine-with-a-long-name"
	port, peer := fabric.PortName(long, 0), fabric.PeerName(long, 0)
	for kind, dev := range map[fabric.Kind]device{
		fabric.Adopt: nic("nictype=p2p", "host_name="+port), fabric.Veth: nic("nictype=physical", "parent="+peer),
	} {
		i := ours(long, 10, dev)
		vm, ours, err := dialects[LXD].guest(i)
		require.NoError(t, err)
		assert.True(t, ours)
		assert.Equal(t, kind, vm.NICs[0].Kind)
	}
	_, _, err := dialects[LXD].guest(ours(long, 10, nic("nictype=p2p", "host_name="+long+"_net0")))
	assert.EqualError(t, err, "NIC device eth0 has a host_name of 31 bytes, and Linux takes 15; lxc config device set "+long+" eth0 host_name="+port)
}

func TestFlawsOfKeys(t *testing.T) {
	const a, key0 = "user.vmfabric.net0.addresses", "lxc config set web user.vmfabric.net0.addresses=..."
	for name, c := range map[string]struct {
		config []string
		err    string
	}{
		"no address":      {[]string{a + "=203.0.113.666"}, a + `: "203.0.113.666" is not an IP address, write one such as 203.0.113.10 or 2001:db8:100::10, or auto for one of the pools; ` + key0},
		"second of two":   {[]string{a + "=::2,x"}, a + `: "x" is not an IP address, write one such as 203.0.113.10 or 2001:db8:100::10, or auto for one of the pools; ` + key0},
		"prefix":          {[]string{a + "=203.0.113.10/32"}, a + `: "203.0.113.10/32" is a prefix, write the address alone; ` + key0},
		"IPv6 prefix":     {[]string{a + "=2001:db8::1/64"}, a + `: "2001:db8::1/64" is a prefix, write the address alone; ` + key0},
		"zone":            {[]string{a + "=fe80::1%eth0"}, a + `: "fe80::1%eth0" has a zone, which means nothing outside one host, write an address of a pool; ` + key0},
		"mapped":          {[]string{a + "=::ffff:203.0.113.10"}, a + `: "::ffff:203.0.113.10" is an IPv4 address written as IPv6, write 203.0.113.10; ` + key0},
		"lines":           {[]string{a + "=a\nb"}, a + `: "a\nb" is not an IP address, write one such as 203.0.113.10 or 2001:db8:100::10, or auto for one of the pools; ` + key0},
		"empty":           {[]string{a + "=, "}, "NIC 0 has no address; " + key0},
		"twice":           {[]string{a + "=::2,::2"}, "NIC 0: ::2 is given twice (also to NIC 0); remove one; see lxc config show web --expanded"},
		"routes alone":    {[]string{"user.vmfabric.net0.routes=198.51.100.0/29"}, "NIC 0 has no address; " + key0},
		"pool, no name":   {[]string{a + "=pool:"}, a + `: "pool:" names no pool, write one such as pool:public4, or auto; ` + key0},
		"pool, a blank":   {[]string{a + "=pool: public4"}, a + `: "pool: public4" names no pool, write one such as pool:public4, or auto; ` + key0},
		"pool, a prefix":  {[]string{a + "=::2, pool:203.0.113.0/24"}, a + `: "pool:203.0.113.0/24" names no pool, write one such as pool:public4, or auto; ` + key0},
		"pool, lines":     {[]string{a + "=pool:a\nb"}, a + `: "pool:a\nb" names no pool, write one such as pool:public4, or auto; ` + key0},
		"a pool's name":   {[]string{a + "=public4"}, a + `: "public4" is not an IP address, write one such as 203.0.113.10 or 2001:db8:100::10, or auto for one of the pools; ` + key0},
		"not quite auto":  {[]string{a + "=Auto"}, a + `: "Auto" is not an IP address, write one such as 203.0.113.10 or 2001:db8:100::10, or auto for one of the pools; ` + key0},
		"pool for routes": {[]string{a + "=auto", "user.vmfabric.net0.routes=pool:public4"}, `user.vmfabric.net0.routes: "pool:public4" is not a prefix, write one such as 198.51.100.0/29 or 2001:db8:200::/56; lxc config set web user.vmfabric.net0.routes=...`},
		"too many pools":  {[]string{a + "=" + strings.Repeat("auto,", 257)}, "NIC 0: more than 256 pools; see lxc config show web --expanded"},
		"no route":        {[]string{a + "=::2", "user.vmfabric.net0.routes=x"}, `user.vmfabric.net0.routes: "x" is not a prefix, write one such as 198.51.100.0/29 or 2001:db8:200::/56; lxc config set web user.vmfabric.net0.routes=...`},
		"no length":       {[]string{"user.vmfabric.net0.routes=198.51.100.7"}, `user.vmfabric.net0.routes: "198.51.100.7" has no length, write 198.51.100.7/32; lxc config set web user.vmfabric.net0.routes=...`},
		"no IPv6 length":  {[]string{"user.vmfabric.net0.routes=2001:db8::"}, `user.vmfabric.net0.routes: "2001:db8::" has no length, write 2001:db8::/128; lxc config set web user.vmfabric.net0.routes=...`},
		"mapped route":    {[]string{"user.vmfabric.net0.routes=::ffff:198.51.100.0/125"}, `user.vmfabric.net0.routes: "::ffff:198.51.100.0/125" is an IPv4 prefix written as IPv6, write it as one such as 198.51.100.0/29; lxc config set web user.vmfabric.net0.routes=...`},
		"host bits":       {[]string{a + "=203.0.113.10", "user.vmfabric.net0.routes=198.51.100.1/29"}, "NIC 0: route 198.51.100.1/29 has bits beyond its length; write 198.51.100.0/29; see lxc config show web --expanded"},
		"other family":    {[]string{a + "=203.0.113.10", "user.vmfabric.net0.routes=2001:db8:200::/56"}, "NIC 0: route 2001:db8:200::/56 has no address of its family to be routed through; add one to the NIC; see lxc config show web --expanded"},
		"gap":             {[]string{a + "=::2", "user.vmfabric.net2.addresses=::3"}, "NIC 1 has no addresses, and one with a higher number has; lxc config set web user.vmfabric.net1.addresses=..."},
		"misspelt":        {[]string{a + "=::2", "user.vmfabric.net0.adresses=::3"}, "user.vmfabric.net0.adresses is not a key of the fabric, which has user.vmfabric.net<N>.addresses and user.vmfabric.net<N>.routes; lxc config unset web user.vmfabric.net0.adresses"},
		"odd number":      {[]string{"user.vmfabric.net00.addresses=::3"}, "user.vmfabric.net00.addresses is not a key of the fabric, which has user.vmfabric.net<N>.addresses and user.vmfabric.net<N>.routes; lxc config unset web user.vmfabric.net00.addresses"},
		"too high":        {[]string{"user.vmfabric.net64.addresses=::3"}, "user.vmfabric.net64.addresses is not a key of the fabric, which has user.vmfabric.net<N>.addresses and user.vmfabric.net<N>.routes; lxc config unset web user.vmfabric.net64.addresses"},
		"negative number": {[]string{"user.vmfabric.net-1.addresses=::3"}, "user.vmfabric.net-1.addresses is not a key of the fabric, which has user.vmfabric.net<N>.addresses and user.vmfabric.net<N>.routes; lxc config unset web user.vmfabric.net-1.addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			i := p2p("web", 10)
			i.ExpandedConfig = config(c.config...)
			i.Config = i.ExpandedConfig
			_, ours, err := dialects[LXD].guest(i)
			assert.False(t, ours)
			assert.EqualError(t, err, c.err)
		})
	}
	i := p2p("web", 10)
	i.Config, i.Profiles = nil, []string{"default", "fabric"}
	i.ExpandedConfig = config("user.vmfabric.net0.x=")
	_, _, err := dialects[LXD].guest(i)
	assert.ErrorContains(t, err, "; lxc profile unset fabric user.vmfabric.net0.x")
}

func TestFlawsOfDevices(t *testing.T) {
	for name, c := range map[string]struct {
		own, profile map[string]device
		err          string
	}{
		"none": {nil, nil, "NIC 0 has no device, neither p2p with host_name web_net0 nor physical with parent web_peer0; lxc config device add web eth0 nic nictype=p2p host_name=web_net0 name=eth0"},
		"name is a disk's": {
			map[string]device{"eth0": {"type": "disk"}},
			nil,
			"NIC 0 has no device, neither p2p with host_name web_net0 nor physical with parent web_peer0; lxc config device add web net0 nic nictype=p2p host_name=web_net0 name=eth0",
		},
		"no host_name":    {map[string]device{"eth0": nic("nictype=p2p")}, nil, "NIC device eth0 has no host_name, and the fabric looks for web_net0; lxc config device set web eth0 host_name=web_net0"},
		"of a profile":    {nil, map[string]device{"eth0": nic("nictype=p2p")}, "NIC device eth0 has no host_name, and the fabric looks for web_net0; lxc config device override web eth0 host_name=web_net0"},
		"other host_name": {map[string]device{"lan": nic("nictype=p2p", "host_name=x")}, nil, "NIC device lan has the host_name x, and the fabric looks for web_net0; lxc config device set web lan host_name=web_net0"},
		"long host_name":  {map[string]device{"lan": nic("nictype=p2p", "host_name=sixteen-bytes-it")}, nil, "NIC device lan has a host_name of 16 bytes, and Linux takes 15; lxc config device set web lan host_name=web_net0"},
		"other parent":    {map[string]device{"eth0": nic("nictype=physical", "parent=web_net0")}, nil, "NIC device eth0 has the parent web_net0, and the fabric makes web_peer0; lxc config device set web eth0 parent=web_peer0"},
		"bridged":         {map[string]device{"eth0": nic("nictype=bridged", "parent=br0", "name=lan0")}, nil, "NIC device eth0 is bridged, which LXD connects itself; lxc config device remove web eth0 && lxc config device add web eth0 nic nictype=p2p host_name=web_net0 name=lan0"},
		"of a network":    {nil, map[string]device{"eth0": nic("network=lxdbr0")}, "NIC device eth0 is on the network lxdbr0, which LXD connects itself; lxc config device add web eth0 nic nictype=p2p host_name=web_net0 name=eth0"},
		"own kind first":  {map[string]device{"eth0": nic("network=lxdbr0"), "lan": nic("nictype=p2p")}, nil, "NIC device lan has no host_name, and the fabric looks for web_net0; lxc config device set web lan host_name=web_net0"},
		"another's":       {map[string]device{"mgmt": nic("network=lxdbr0")}, nil, "NIC 0 has no device, neither p2p with host_name web_net0 nor physical with parent web_peer0; lxc config device add web eth0 nic nictype=p2p host_name=web_net0 name=eth0"},
		"odd device name": {map[string]device{"it's a": nic("nictype=p2p")}, nil, `NIC device it's a has no host_name, and the fabric looks for web_net0; lxc config device set web 'it'\''s a' host_name=web_net0`},
		"MTU":             {map[string]device{"eth0": nic("nictype=p2p", "host_name=web_net0", "mtu=900")}, nil, `NIC device eth0 has the MTU "900", and IPv6 needs 1280, a link takes at most 65521; lxc config device set web eth0 mtu=1500`},
	} {
		t.Run(name, func(t *testing.T) {
			i := p2p("web", 10)
			i.Devices, i.ExpandedDevices = c.own, maps.Clone(c.profile)
			if i.ExpandedDevices == nil {
				i.ExpandedDevices = map[string]device{}
			}
			maps.Copy(i.ExpandedDevices, c.own)
			_, ours, err := dialects[LXD].guest(i)
			assert.False(t, ours)
			assert.EqualError(t, err, c.err)
		})
	}

	t.Run("second NIC", func(t *testing.T) {
		i := p2p("web", 10)
		i.ExpandedConfig = config("user.vmfabric.net0.addresses=::2", "user.vmfabric.net1.addresses=::3")
		i.Devices["eth1"] = nic("nictype=p2p")
		_, _, err := dialects[LXD].guest(i)
		assert.EqualError(t, err, "NIC device eth1 has no host_name, and the fabric looks for web_net1; lxc config device set web eth1 host_name=web_net1")
	})
	t.Run("virtual machine", func(t *testing.T) {
		i := p2p("web", 10)
		i.Type = "virtual-machine"
		_, ours, err := dialects[LXD].guest(i)
		require.NoError(t, err)
		assert.True(t, ours, "LXD makes it a tap")
		i = physical("web", 10)
		i.Type = "virtual-machine"
		_, _, err = dialects[LXD].guest(i)
		assert.ErrorContains(t, err, "lxc config device remove web eth0 && lxc config device add web eth0 nic nictype=p2p host_name=web_net0 name=eth0")
	})
	t.Run("in a project", func(t *testing.T) {
		i := ours("web", 10, nic("nictype=p2p"))
		i.Project = "shop"
		_, _, err := dialects[LXD].guest(i)
		assert.ErrorContains(t, err, "; lxc config device set web eth0 host_name=web_net0 --project shop")
	})
}

func TestStateOfAnInstance(t *testing.T) {
	adopted, made := fabric.VM{NICs: []fabric.NIC{{Kind: fabric.Adopt}}}, fabric.VM{NICs: []fabric.NIC{{Kind: fabric.Adopt}, {Kind: fabric.Veth}}}
	for name, c := range map[string]struct {
		code int
		vm   fabric.VM
		was  fabric.State
		want fabric.State
	}{
		"running":                  {codeRunning, adopted, 0, fabric.Live},
		"ready":                    {codeReady, adopted, 0, fabric.Live},
		"frozen":                   {codeFrozen, made, fabric.Live, fabric.Live},
		"freezing":                 {codeFreezing, made, fabric.Live, fabric.Live},
		"thawed":                   {codeThawed, adopted, fabric.Live, fabric.Live},
		"stopped, LXD's link":      {codeStopped, adopted, fabric.Live, fabric.Absent},
		"stopped, fabric's link":   {codeStopped, made, fabric.Live, fabric.Wired},
		"starting":                 {106, adopted, 0, fabric.Wired},
		"stopping":                 {107, adopted, fabric.Live, fabric.Wired},
		"aborting":                 {108, adopted, 0, fabric.Wired},
		"not told":                 {codeError, adopted, fabric.Live, fabric.Live},
		"not told, never seen":     {codeError, adopted, 0, fabric.Wired},
		"of a version yet to come": {199, adopted, 0, fabric.Wired},
	} {
		assert.Equal(t, c.want.String(), stateOf(c.code, c.vm, c.was).String(), name)
	}
}
