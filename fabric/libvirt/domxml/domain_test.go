package domxml

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

const plug0 = `<interface type='ethernet'><target dev='sea_gold_net0' managed='no'/></interface>`

// ours is a domain sea_gold with that inside <fabric:vm>.
func ours(inVM string) string {
	return domain(`<fabric:vm xmlns:fabric="urn:vmfabric:domain:1">`+inVM+`</fabric:vm>`, plug0)
}

func domain(metadata, devices string) string {
	return `<domain type='kvm' id='7'><name>sea_gold</name><uuid>aaaaaaaa-0000-4000-8000-000000000001</uuid><metadata>` +
		metadata + `</metadata><devices>` + devices + `</devices></domain>`
}

func nic(address string) string {
	return `<fabric:nic><fabric:address>` + address + `</fabric:address></fabric:nic>`
}

func parseString(s string) (Domain, error) { return Parse(strings.NewReader(s)) }

func addrs(ss ...string) (as []netip.Addr) {
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func TestParseWhatLibvirtWrites(t *testing.T) {
	first := fabric.NIC{
		Addresses: addrs("203.0.113.10", "2001:db8:100::10"),
		Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/56")},
		Kind:      fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, Queues: 2, MTU: 9000,
	}
	second := fabric.NIC{Addresses: addrs("2001:db8:100::11"), Kind: fabric.Adopt, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0b}}
	bare := fabric.NIC{Addresses: second.Addresses}
	for file, want := range map[string]struct {
		id      int
		nics    []fabric.NIC
		plugged bool
	}{
		"started.xml": {1, []fabric.NIC{first, second}, true},
		"stopped.xml": {0, []fabric.NIC{first, second}, true},
		"release.xml": {0, []fabric.NIC{first, bare}, false},
	} {
		t.Run(file, func(t *testing.T) {
			f, err := os.Open("testdata/" + file)
			require.NoError(t, err)
			defer f.Close()
			d, err := Parse(f)
			require.NoError(t, err)
			assert.True(t, d.Ours)
			assert.Equal(t, want.id, d.ID)
			assert.Equal(t, fabric.VM{Name: "sea_gold", UUID: "aaaaaaaa-0000-4000-8000-000000000001", Origin: "libvirt", NICs: want.nics}, d.VM())
			assert.NoError(t, d.VM().Validate())
			assert.Equal(t, want.plugged, d.Plugged() == nil)
		})
	}
}

func TestPlugged(t *testing.T) {
	vm := `<f:vm xmlns:f="urn:vmfabric:domain:1"><f:nic><f:address>203.0.113.10</f:address></f:nic><f:nic><f:address>2001:db8:100::10</f:address></f:nic></f:vm>`
	for name, c := range map[string]struct{ devices, err string }{
		"all":         {plug0 + `<interface type='ethernet'><target dev='sea_gold_net1'/></interface>`, ""},
		"other order": {`<interface type='ethernet'><target dev='sea_gold_net1'/></interface><hostdev/>` + plug0, ""},
		"one missing": {plug0, "domain sea_gold: <fabric:nic> 1 has no interface with <target dev='sea_gold_net1'>; add <interface type='ethernet'><target dev='sea_gold_net1' managed='no'/><model type='virtio'/></interface>"},
		"bridged": {
			`<interface type='bridge'><source bridge='br0'/><target dev='sea_gold_net0'/></interface>`,
			"domain sea_gold: the interface of <fabric:nic> 0, sea_gold_net0, is of type \"bridge\", which libvirt connects itself; make it <interface type='ethernet'>",
		},
		"no target": {`<interface type='ethernet'/>`, "domain sea_gold: <fabric:nic> 0 has no interface with <target dev='sea_gold_net0'>; add <interface type='ethernet'><target dev='sea_gold_net0' managed='no'/><model type='virtio'/></interface>"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseString(domain(vm, c.devices))
			require.NoError(t, err)
			if err = d.Plugged(); c.err == "" {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, c.err)
			}
		})
	}
}

// A long name's port is not <vm>_net0, and the user is told which it is.
func TestPluggedShortened(t *testing.T) {
	const long = "a-machine-with-a-long-name"
	port := fabric.PortName(long, 0)
	xml := strings.ReplaceAll(ours(nic("2001:db8:100::10")), "<name>sea_gold", "<name>"+long)

	d, err := parseString(xml)
	require.NoError(t, err)
	assert.ErrorContains(t, d.Plugged(), "add <interface type='ethernet'><target dev='"+port+"' managed='no'/>")

	d, err = parseString(strings.ReplaceAll(xml, "sea_gold_net0", port))
	require.NoError(t, err)
	assert.NoError(t, d.Plugged())
	assert.Equal(t, fabric.Tap, d.VM().NICs[0].Kind)
}

// empty is a domain sea_gold with an empty <fabric:vm/> and these devices.
func empty(devices string) string {
	return domain(`<fabric:vm xmlns:fabric="urn:vmfabric:domain:1"/>`, devices)
}

func TestResolve(t *testing.T) {
	const (
		plug1   = `<interface type='ethernet'><mac address='52:54:00:00:00:0b'/><target dev='sea_gold_net1'/><driver queues='4'/><mtu size='9000'/></interface>`
		plug2   = `<interface type='ethernet'><target dev='sea_gold_net2' managed='no'/></interface>`
		another = `<interface type='bridge'><source bridge='br0'/><target dev='vnet3'/></interface>`
		noDev   = `<interface type='ethernet'><mac address='52:54:00:00:00:0a'/></interface>`
		add     = "domain sea_gold: <fabric:vm> is empty, and no interface has <target dev='sea_gold_net0'>; add <interface type='ethernet'><target dev='sea_gold_net0' managed='no'/><model type='virtio'/></interface> for addresses of the resolver or the pools, or a <fabric:nic> with its own"
	)
	tap := fabric.NIC{Kind: fabric.Tap}
	adopted := fabric.NIC{Kind: fabric.Adopt, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0b}, Queues: 4, MTU: 9000}
	many := ""
	for n := range fabric.MaxNICs + 1 {
		many += fmt.Sprintf(`<interface type='ethernet'><target dev='%s' managed='no'/></interface>`, fabric.PortName("sea_gold", n))
	}
	for name, c := range map[string]struct {
		xml, err string
		nics     []fabric.NIC
	}{
		"one":              {empty(plug0), "", []fabric.NIC{tap}},
		"written long":     {ours("\n  <!-- ask -->\n"), "", []fabric.NIC{tap}},
		"two":              {empty(plug0 + plug1), "", []fabric.NIC{tap, adopted}},
		"in another order": {empty(plug1 + another + plug0), "", []fabric.NIC{tap, adopted}},
		"none":             {empty(``), add, nil},
		"another's":        {empty(another), add, nil},
		"no target":        {empty(noDev), add, nil},
		"the first is not": {
			empty(plug1),
			"domain sea_gold: <fabric:vm> is empty, and there is an interface with <target dev='sea_gold_net1'> but none with 'sea_gold_net0'; number them without a gap",
			nil,
		},
		"a gap": {
			empty(plug0 + plug2),
			"domain sea_gold: <fabric:vm> is empty, and there is an interface with <target dev='sea_gold_net2'> but none with 'sea_gold_net1'; number them without a gap",
			[]fabric.NIC{tap},
		},
		"bridged": {
			empty(strings.ReplaceAll(another, "vnet3", "sea_gold_net0")),
			`domain sea_gold: the interface of <fabric:nic> 0, sea_gold_net0, is of type "bridge", which libvirt connects itself; make it <interface type='ethernet'>`,
			[]fabric.NIC{{Kind: fabric.Adopt}},
		},
		"too many": {
			empty(many),
			"domain sea_gold: <fabric:vm> is empty, and more than 64 interfaces are called like ports; a guest has at most that many",
			slices.Repeat([]fabric.NIC{tap}, fabric.MaxNICs+1),
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseString(c.xml)
			require.NoError(t, err)
			assert.True(t, d.Ours)
			assert.True(t, d.Resolve)
			assert.Empty(t, d.NICs)
			vm := d.VM()
			assert.True(t, vm.Unresolved())
			assert.Equal(t, append([]fabric.NIC{}, c.nics...), vm.NICs)
			if err = d.Plugged(); c.err == "" {
				require.NoError(t, err)
				assert.NoError(t, vm.Validate())
			} else {
				assert.EqualError(t, err, c.err)
			}
		})
	}
}

// What libvirt wrote, with the addresses taken out: at release an interface
// that libvirt made has no name any more, and the guest is known by its own.
func TestResolveWhatLibvirtWrites(t *testing.T) {
	for file, nics := range map[string]int{"started.xml": 2, "stopped.xml": 2, "release.xml": 1} {
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile("testdata/" + file)
			require.NoError(t, err)
			before, rest, _ := strings.Cut(string(b), "<fabric:nic>")
			_, after, _ := strings.Cut(rest, "</fabric:vm>")
			d, err := parseString(before + "</fabric:vm>" + after)
			require.NoError(t, err)
			vm := d.VM()
			assert.True(t, vm.Unresolved())
			assert.Len(t, vm.NICs, nics)
			assert.Equal(t, "sea_gold", vm.Name)
			assert.Equal(t, fabric.NIC{Kind: fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 0x0a}, Queues: 2, MTU: 9000}, vm.NICs[0])
			assert.NoError(t, d.Plugged())
		})
	}
}

func TestNotOurs(t *testing.T) {
	for name, xml := range map[string]string{
		"no metadata":       `<domain><name>x</name><devices/></domain>`,
		"another's":         domain(`<o:vm xmlns:o="http://openstack.org/x"><o:nic>1</o:nic></o:vm>`, plug0),
		"only spoken of":    domain(``, ``) + `<!-- urn:vmfabric:domain:1 -->`,
		"deeper than ours":  domain(`<a><vm xmlns="urn:vmfabric:domain:1"/></a>`, ``),
		"outside metadata":  `<domain><vm xmlns="urn:vmfabric:domain:1"/></domain>`,
		"another's version": domain(`<note xmlns="urn:vmfabric:note:1">x</note>`, ``),
		"nothing at all":    `<domain/>`,
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseString(xml)
			require.NoError(t, err)
			assert.False(t, d.Ours)
			assert.False(t, d.Resolve)
			assert.Empty(t, d.NICs)
			assert.NoError(t, d.Plugged())
		})
	}
}

func TestMayBeOurs(t *testing.T) {
	assert.True(t, MayBeOurs([]byte(ours(nic("203.0.113.10")))))
	assert.True(t, MayBeOurs([]byte(domain(`<vm xmlns="urn:vmfabric:domain:9"/>`, ``))))
	assert.False(t, MayBeOurs([]byte(domain(``, plug0))))
	assert.False(t, MayBeOurs(nil))
}

func TestParseErrors(t *testing.T) {
	const in = "domain sea_gold: "
	for name, c := range map[string]struct{ xml, err string }{
		"empty input":      {"", "domain: the XML has no <domain>; give what virsh dumpxml prints"},
		"not XML":          {"sea_gold\n", "domain: the XML has no <domain>; give what virsh dumpxml prints"},
		"cut off":          {"<domain>\n<name>sea_gold</name>", in + "line 2 of the XML: unexpected EOF; check it with virt-xml-validate"},
		"wrong nesting":    {"<domain><a></domain>", "domain: line 1 of the XML: element <a> closed by </domain>; check it with virt-xml-validate"},
		"another document": {"<network/>", "domain: the XML is of a <network>; give that of a <domain>"},
		"no name":          {strings.Replace(ours(nic("203.0.113.10")), "<name>sea_gold</name>", "", 1), "domain: the XML has no <name>; give the domain one"},
		"name of elements": {"<domain><name><b/></name></domain>", "domain: <name> has <b>; it takes text alone"},
		"endless name":     {"<domain><name>" + strings.Repeat("x", maxText+1), "domain: <name> is longer than 4096 bytes; shorten it"},
		"deep":             {strings.Repeat("<domain>", maxDepth+1), "domain: elements are nested deeper than 256"},

		"other version":    {domain(`<vm xmlns="urn:vmfabric:domain:2"/>`, ``), in + `<vm> is in the namespace "urn:vmfabric:domain:2"; write xmlns:fabric="urn:vmfabric:domain:1"`},
		"other element":    {domain(`<f:guest xmlns:f="urn:vmfabric:domain:1"/>`, ``), in + `<metadata> has <fabric:guest>; it takes <fabric:vm>`},
		"twice":            {domain(strings.Repeat(`<vm xmlns="urn:vmfabric:domain:1"><nic><address>::2</address></nic></vm>`, 2), ``), in + "<fabric:vm> is given twice; put all <fabric:nic> into one"},
		"text for a NIC":   {ours(`203.0.113.10`), in + `<fabric:vm> has the text "203.0.113.10"; it takes <fabric:nic> and <fabric:firewall>`},
		"attribute on VM":  {domain(`<f:vm xmlns:f="urn:vmfabric:domain:1" resolve="yes"/>`, plug0), in + `<fabric:vm> has the attribute "resolve"; it takes dhcp="no", ra="no", metadata="no" and isolate="yes", write other values as elements`},
		"a word for no":    {domain(`<f:vm xmlns:f="urn:vmfabric:domain:1" dhcp="off"/>`, plug0), in + `<fabric:vm> has dhcp="off"; write yes or no`},
		"no word at all":   {domain(`<f:vm xmlns:f="urn:vmfabric:domain:1" ra=""/>`, plug0), in + `<fabric:vm> has ra=""; write yes or no`},
		"switch twice":     {domain(`<f:vm xmlns:f="urn:vmfabric:domain:1" ra="no" ra="yes"/>`, plug0), in + `<fabric:vm> has the attribute ra twice; remove one`},
		"another's switch": {domain(`<f:vm xmlns:f="urn:vmfabric:domain:1" f:ra="no"/>`, plug0), in + `<fabric:vm> has the attribute "ra"; it takes dhcp="no", ra="no", metadata="no" and isolate="yes", write other values as elements`},
		"empty and full":   {domain(`<vm xmlns="urn:vmfabric:domain:1"/><vm xmlns="urn:vmfabric:domain:1"><nic><address>::2</address></nic></vm>`, ``), in + "<fabric:vm> is given twice; put all <fabric:nic> into one"},
		"route alone":      {ours(nic("::2") + `<fabric:nic><fabric:route>198.51.100.0/29</fabric:route></fabric:nic>`), in + `<fabric:nic> 1: no <fabric:address> for its <fabric:route>; add one, or <fabric:address pool="auto"/> for one of the pools`},
		"unknown element":  {ours(`<fabric:nik/>`), in + "<fabric:vm> has <fabric:nik>; it takes <fabric:nic> and <fabric:firewall>"},
		"unknown in NIC":   {ours(`<fabric:nic><fabric:adress/></fabric:nic>`), in + "<fabric:nic> 0: <fabric:nic> has <fabric:adress>; it takes <fabric:address> and <fabric:route>"},
		"no prefix":        {ours(`<nic/>`), in + "<nic> in <fabric:vm> is not of the namespace urn:vmfabric:domain:1; it takes <fabric:nic> and <fabric:firewall>"},
		"text":             {ours(`<fabric:nic>203.0.113.10</fabric:nic>`), in + `<fabric:nic> 0: <fabric:nic> has the text "203.0.113.10"; it takes <fabric:address> and <fabric:route>`},
		"attribute":        {ours(`<fabric:nic address="2001:db8::1"/>`), in + `<fabric:nic> 0: <fabric:nic> has the attribute "address"; it takes none, write values as elements`},
		"attribute on one": {ours(`<fabric:nic><fabric:address family="ipv6">::2</fabric:address></fabric:nic>`), in + `<fabric:nic> 0: <fabric:address> has the attribute "family"; it takes pool="NAME" alone, or no attribute and an address as text`},
		"on a route":       {ours(`<fabric:nic><fabric:route pool="public4">198.51.100.0/29</fabric:route></fabric:nic>`), in + `<fabric:nic> 0: <fabric:route> has the attribute "pool"; it takes none, write values as elements`},
		"nested":           {ours(nic(`<b>::2</b>`)), in + "<fabric:nic> 0: <address> has <b>; it takes text alone"},

		"no IP address":  {ours(nic("203.0.113")), in + `<fabric:nic> 0: <fabric:address> "203.0.113" is not an IP address; write one such as 203.0.113.10 or 2001:db8:100::10`},
		"lines":          {ours(nic("a\nb")), in + `<fabric:nic> 0: <fabric:address> "a\nb" is not an IP address; write one such as 203.0.113.10 or 2001:db8:100::10`},
		"empty address":  {ours(nic(" ")), in + `<fabric:nic> 0: <fabric:address> is empty; write an address, or <fabric:address pool="auto"/> for one of the pools`},
		"prefix":         {ours(nic("203.0.113.10/32")), in + `<fabric:nic> 0: <fabric:address> "203.0.113.10/32" is a prefix; write the address alone, and a prefix behind the guest as <fabric:route>`},
		"zone":           {ours(nic("fe80::1%eth0")), in + `<fabric:nic> 0: <fabric:address> "fe80::1%eth0" has a zone, which means nothing outside one host; write an address of a pool`},
		"mapped":         {ours(nic("::ffff:203.0.113.10")), in + `<fabric:nic> 0: <fabric:address> "::ffff:203.0.113.10" is an IPv4 address written as IPv6; write 203.0.113.10`},
		"no route":       {ours(`<fabric:nic><fabric:route>x</fabric:route></fabric:nic>`), in + `<fabric:nic> 0: <fabric:route> "x" is not a prefix; write one such as 198.51.100.0/29 or 2001:db8:200::/56`},
		"IPv4 no length": {ours(`<fabric:nic><fabric:route>198.51.100.7</fabric:route></fabric:nic>`), in + `<fabric:nic> 0: <fabric:route> "198.51.100.7" has no length; write 198.51.100.7/32`},
		"IPv6 no length": {ours(`<fabric:nic><fabric:route>2001:db8::</fabric:route></fabric:nic>`), in + `<fabric:nic> 0: <fabric:route> "2001:db8::" has no length; write 2001:db8::/128`},
		"mapped route":   {ours(`<fabric:nic><fabric:route>::ffff:198.51.100.0/125</fabric:route></fabric:nic>`), in + `<fabric:nic> 0: <fabric:route> "::ffff:198.51.100.0/125" is an IPv4 prefix written as IPv6; write it as one such as 198.51.100.0/29`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseString(c.xml)
			assert.EqualError(t, err, c.err)
		})
	}
}

// pool is a NIC with one element that asks for an address of a pool.
func TestSwitches(t *testing.T) {
	for attributes, want := range map[string][3]bool{
		``: {}, ` dhcp="yes" ra="yes" metadata="yes"`: {}, ` dhcp="no"`: {true, false, false}, ` ra='no'`: {false, true, false}, ` ra="no" dhcp="no"`: {true, true, false}, ` metadata="no"`: {false, false, true},
	} {
		for _, nics := range []string{`/>`, `><f:nic><f:address>203.0.113.10</f:address></f:nic></f:vm>`} {
			d, err := parseString(domain(`<f:vm xmlns:f="urn:vmfabric:domain:1"`+attributes+nics, plug0))
			require.NoError(t, err, attributes)
			assert.Equal(t, want, [3]bool{d.VM().NoDHCP, d.VM().NoRA, d.VM().NoMetadata}, attributes)
		}
	}
}

// TestFirewall reads what the guest sends and gets, and says what is wrong with it.
func TestFirewall(t *testing.T) {
	of := func(vm, firewall string) string {
		return domain(`<f:vm xmlns:f="urn:vmfabric:domain:1"`+vm+`><f:nic><f:address>203.0.113.10</f:address></f:nic>`+firewall+`</f:vm>`, plug0)
	}
	d, err := parseString(of(` isolate="yes"`, `<f:firewall stateful='yes'>
		<f:ingress>
			accept tcp 22 from 198.51.100.0/24,2001:db8:5::/48
			accept icmp
			drop
		</f:ingress>
		<!-- mail -->
		<f:egress>drop tcp 25</f:egress>
	</f:firewall>`))
	require.NoError(t, err)
	vm := d.VM()
	require.NoError(t, vm.Validate())
	assert.True(t, vm.Isolated)
	require.NotNil(t, vm.Firewall)
	assert.True(t, vm.Firewall.Stateful)
	assert.Equal(t, "accept tcp 22 from 198.51.100.0/24,2001:db8:5::/48; accept icmp; drop", vm.Firewall.Ingress.Text(fabric.Ingress))
	assert.Equal(t, "drop tcp 25; accept", vm.Firewall.Egress.Text(fabric.Egress))

	d, err = parseString(of(` isolate="no"`, ``))
	require.NoError(t, err)
	assert.False(t, d.VM().Isolated)
	assert.Nil(t, d.VM().Firewall)
	for firewall, want := range map[string]string{
		`<f:firewall/><f:firewall/>`:                                                       `<fabric:firewall> is given twice; put all rules into one`,
		`<f:firewall ingress="drop"/>`:                                                     `<fabric:firewall> has the attribute "ingress"; it takes stateful="yes", write rules as elements`,
		`<f:firewall stateful="1"/>`:                                                       `<fabric:firewall> has stateful="1"; write yes or no`,
		`<f:firewall><f:rule>drop</f:rule></f:firewall>`:                                   `<fabric:firewall>: <fabric:firewall> has <fabric:rule>; it takes <fabric:ingress> and <fabric:egress>`,
		`<f:firewall><f:egress/><f:egress/></f:firewall>`:                                  `<fabric:firewall>: <fabric:egress> is given twice; put all rules into one`,
		`<f:firewall><f:egress default="drop"/></f:firewall>`:                              `<fabric:firewall>: <fabric:egress> has the attribute "default"; it takes none`,
		`<f:firewall>drop</f:firewall>`:                                                    `<fabric:firewall>: <fabric:firewall> has the text "drop"; it takes <fabric:ingress> and <fabric:egress>`,
		`<f:firewall><f:ingress>accept tcp x</f:ingress></f:firewall>`:                     `<fabric:firewall>: ingress rule 1 "accept tcp x": "x" is not a port; write 22, or 8000-8100`,
		`<f:firewall><f:ingress>accept tcp 22</f:ingress></f:firewall>`:                    `firewall: ingress: all rules say accept, as for all other packets`,
		`<f:firewall stateful="yes"/>`:                                                     `firewall: it is stateful and drops nothing`,
		`<f:firewall><f:egress>` + strings.Repeat("#", 70000) + `</f:egress></f:firewall>`: `<fabric:firewall>: <egress> is longer than 65536 bytes; shorten it`,
	} {
		_, err := parseString(of("", firewall))
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "\n")
	}
}

func pool(attributes, text string) string {
	return ours(`<fabric:nic><fabric:address ` + attributes + `>` + text + `</fabric:address></fabric:nic>`)
}

func TestPools(t *testing.T) {
	static, tap := addrs("203.0.113.10"), fabric.Tap
	for name, c := range map[string]struct {
		xml  string
		want fabric.NIC
	}{
		"empty NIC":      {ours(`<fabric:nic/>`), fabric.NIC{Pools: []string{"auto"}, Kind: tap}},
		"empty on lines": {ours("<fabric:nic>\n<!-- any -->\n</fabric:nic>"), fabric.NIC{Pools: []string{"auto"}, Kind: tap}},
		"one":            {ours(`<fabric:nic><fabric:address pool="public4"/></fabric:nic>`), fabric.NIC{Pools: []string{"public4"}, Kind: tap}},
		"on lines":       {pool(`pool='public4'`, "\n  "), fabric.NIC{Pools: []string{"public4"}, Kind: tap}},
		"by its name":    {pool(`pool="auto"`, ""), fabric.NIC{Pools: []string{"auto"}, Kind: tap}},
		"namespace too":  {pool(`xmlns:x="urn:x" pool="public4"`, ""), fabric.NIC{Pools: []string{"public4"}, Kind: tap}},
		"two of a pool and another's": {
			ours(`<fabric:nic><fabric:address pool="b"/><fabric:address pool="a"/><fabric:address pool="b"/></fabric:nic>`),
			fabric.NIC{Pools: []string{"b", "a", "b"}, Kind: tap},
		},
		"static comes first": {
			ours(`<fabric:nic><fabric:address pool="public6"/><fabric:address>203.0.113.10</fabric:address></fabric:nic>`),
			fabric.NIC{Addresses: static, Pools: []string{"public6"}, Kind: tap},
		},
		"with a route": {
			ours(`<fabric:nic><fabric:address pool="public4"/><fabric:route>198.51.100.0/29</fabric:route></fabric:nic>`),
			fabric.NIC{Pools: []string{"public4"}, Routes: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29")}, Kind: tap},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseString(c.xml)
			require.NoError(t, err)
			assert.False(t, d.Resolve)
			assert.NoError(t, d.Plugged())
			vm := d.VM()
			assert.Equal(t, []fabric.NIC{c.want}, vm.NICs)
			assert.True(t, vm.Unresolved())
			assert.NoError(t, vm.Validate())
		})
	}
}

func TestFlawsOfPools(t *testing.T) {
	const in = "domain sea_gold: <fabric:nic> 0: <fabric:address"
	for name, c := range map[string]struct{ xml, err string }{
		"and text":     {pool(`pool="public4"`, "203.0.113.10"), in + `> has both pool="public4" and the text "203.0.113.10"; keep one of them, or write two elements`},
		"empty":        {pool(`pool=""`, ""), in + ` pool=""/>: "" is not the name of a pool; write one such as public4, or auto`},
		"blank":        {pool(`pool=" "`, ""), in + ` pool=" "/>: " " is not the name of a pool; write one such as public4, or auto`},
		"no name":      {pool(`pool="public4,public6"`, ""), in + ` pool="public4,public6"/>: "public4,public6" is not the name of a pool; write one such as public4, or auto`},
		"prefix":       {pool(`pool="203.0.113.0/24"`, ""), in + ` pool="203.0.113.0/24"/>: "203.0.113.0/24" is not the name of a pool; write one such as public4, or auto`},
		"lines":        {pool("pool=\"a&#10;b\"", ""), in + ` pool="a\nb"/>: "a\nb" is not the name of a pool; write one such as public4, or auto`},
		"misspelt":     {pool(`pol="public4"`, ""), in + `> has the attribute "pol"; it takes pool="NAME" alone, or no attribute and an address as text`},
		"one too many": {pool(`pool="public4" family="ipv4"`, ""), in + `> has the attribute "family"; it takes pool="NAME" alone, or no attribute and an address as text`},
		"another's":    {pool(`fabric:pool="public4"`, ""), in + `> has the attribute "pool"; it takes pool="NAME" alone, or no attribute and an address as text`},
		"twice":        {pool(`pool="a" pool="b"`, ""), in + `> has the attribute pool twice; write an element for each`},
		"an element":   {pool(`pool="a"`, "<b/>"), "domain sea_gold: <fabric:nic> 0: <address> has <b>; it takes text alone"},
		"too many": {
			ours(`<fabric:nic>` + strings.Repeat(`<fabric:address pool="a"/>`, fabric.MaxAddresses) + `<fabric:address>::2</fabric:address></fabric:nic>`),
			"domain sea_gold: <fabric:nic> 0: more than 256 <fabric:address>; a NIC takes at most that many",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseString(c.xml)
			assert.EqualError(t, err, c.err)
		})
	}
}

func TestLimits(t *testing.T) {
	address := `<fabric:address>203.0.113.10</fabric:address>`
	route := `<fabric:route>198.51.100.0/29</fabric:route>`
	for name, c := range map[string]struct{ xml, err string }{
		"NICs":      {ours(strings.Repeat(nic("::2"), fabric.MaxNICs)), ""},
		"addresses": {ours(`<fabric:nic>` + strings.Repeat(address, fabric.MaxAddresses) + `</fabric:nic>`), ""},
		"more NICs": {ours(strings.Repeat(nic("::2"), fabric.MaxNICs+1)), "domain sea_gold: <fabric:vm> has more than 64 <fabric:nic>; a guest has at most that many"},
		"more addresses": {
			ours(`<fabric:nic>` + strings.Repeat(address, fabric.MaxAddresses+1) + `</fabric:nic>`),
			"domain sea_gold: <fabric:nic> 0: more than 256 <fabric:address>; a NIC takes at most that many",
		},
		"more routes": {
			ours(`<fabric:nic>` + strings.Repeat(route, fabric.MaxAddresses+1) + `</fabric:nic>`),
			"domain sea_gold: <fabric:nic> 0: more than 256 <fabric:route>; a NIC takes at most that many",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseString(c.xml)
			if c.err == "" {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, c.err)
			}
		})
	}
}

// endless gives text again and again, and counts.
type endless struct {
	text string
	read int
}

func (e *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		n += copy(b[n:], e.text[(e.read+n)%len(e.text):])
	}
	e.read += n
	return n, nil
}

func TestEndlessInput(t *testing.T) {
	start, _, _ := strings.Cut(ours("$"), "$")
	for name, c := range map[string]struct {
		start, text, err string
		most             int
	}{
		"NICs":    {start, nic("203.0.113.10"), "more than 64 <fabric:nic>", 1 << 14},
		"comment": {start + "<!--", strings.Repeat("x", 4096), "the XML is longer than 65536 bytes", 1<<16 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			rest := &endless{text: c.text}
			_, err := parse(io.MultiReader(strings.NewReader(c.start), rest), 1<<16)
			assert.ErrorContains(t, err, c.err)
			assert.LessOrEqual(t, rest.read, c.most)
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, file := range []string{"started.xml", "stopped.xml", "release.xml"} {
		b, err := os.ReadFile("testdata/" + file)
		require.NoError(f, err)
		f.Add(string(b))
	}
	f.Add(ours(nic("203.0.113.10") + nic("2001:db8:100::10")))
	f.Add(ours(`<fabric:nic><fabric:address pool="public4"/><fabric:address>203.0.113.10</fabric:address></fabric:nic><fabric:nic/>`))
	f.Add(domain(`<vm xmlns="urn:vmfabric:domain:2"/>`, ``))
	f.Add(empty(plug0))
	f.Add(empty(`<interface type="bridge"><target dev="sea_gold_net0"/></interface><interface><target dev="sea_gold_net2"/></interface>`))
	f.Add(empty(``))
	f.Add(strings.ReplaceAll(empty(plug0), "sea_gold", "a-machine-with-a-long-name"))
	f.Add(`<domain><name>&#10;</name><metadata><vm xmlns="urn:vmfabric:domain:1"><nic><route>::/0</route></nic>`)
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseString(s)
		if err != nil {
			assert.NotContains(t, err.Error(), "\n")
			assert.Equal(t, Domain{}, d)
			return
		}
		vm := d.VM()
		if !d.Ours {
			assert.Empty(t, vm.NICs)
			return
		}
		assert.NotEmpty(t, vm.Name)
		assert.Equal(t, d.Resolve || slices.ContainsFunc(vm.NICs, fabric.NIC.Unallocated), vm.Unresolved())
		plugged := d.Plugged()
		if plugged != nil {
			assert.NotContains(t, plugged.Error(), "\n")
		}
		if d.Resolve {
			assert.LessOrEqual(t, len(vm.NICs), len(d.Interfaces))
			if plugged == nil && fabric.ValidateName(vm.Name) == nil {
				assert.NotEmpty(t, vm.NICs)
				assert.LessOrEqual(t, len(vm.NICs), fabric.MaxNICs)
			}
			return
		}
		assert.NotEmpty(t, vm.NICs)
		assert.LessOrEqual(t, len(vm.NICs), fabric.MaxNICs)
		for _, n := range vm.NICs {
			assert.NotZero(t, len(n.Addresses)+len(n.Pools))
			assert.LessOrEqual(t, len(n.Addresses)+len(n.Pools), fabric.MaxAddresses)
			assert.Zero(t, n.Dynamic)
			for _, pool := range n.Pools {
				assert.NoError(t, fabric.ValidatePool(pool))
			}
			for _, a := range n.Addresses {
				assert.True(t, a.IsValid() && !a.Is4In6() && a.Zone() == "", a)
			}
			assert.GreaterOrEqual(t, n.Queues, 0)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	xml, err := os.ReadFile("testdata/started.xml")
	require.NoError(b, err)
	b.SetBytes(int64(len(xml)))
	for b.Loop() {
		if _, err := parseString(string(xml)); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleParse() {
	d, err := Parse(strings.NewReader(`<domain type='kvm'>
	  <name>sea_gold</name>
	  <metadata>
	    <fabric:vm xmlns:fabric="urn:vmfabric:domain:1">
	      <fabric:nic><fabric:address>203.0.113.10</fabric:address></fabric:nic>
	    </fabric:vm>
	  </metadata>
	  <devices>
	    <interface type='ethernet'><target dev='sea_gold_net0' managed='no'/><model type='virtio'/></interface>
	  </devices>
	</domain>`))
	if err == nil && d.Ours {
		err = d.Plugged()
	}
	fmt.Println(d.VM().NICs[0].Addresses, d.VM().NICs[0].Kind, err)
	// Output: [203.0.113.10] tap <nil>
}
