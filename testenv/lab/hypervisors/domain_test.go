package hypervisors_test

import (
	"encoding/xml"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"github.com/vmfabric/vmfabric/testenv/lab/hypervisors"
)

type domain struct {
	Name     string   `xml:"name"`
	UUID     string   `xml:"uuid"`
	Cmdline  string   `xml:"os>cmdline"`
	Metadata struct { // of the fabric
		NICs []struct {
			Addresses []string `xml:"address"`
			Routes    []string `xml:"route"`
		} `xml:"urn:vmfabric:domain:1 vm>nic"`
	} `xml:"metadata"`
	Interfaces []struct {
		MAC struct {
			Address string `xml:"address,attr"`
		} `xml:"mac"`
		Target struct {
			Dev     string `xml:"dev,attr"`
			Managed string `xml:"managed,attr"`
		} `xml:"target"`
		Driver struct {
			Queues int `xml:"queues,attr"`
		} `xml:"driver"`
		MTU struct {
			Size int `xml:"size,attr"`
		} `xml:"mtu"`
	} `xml:"devices>interface"`
}

func TestDomainXML(t *testing.T) {
	t.Parallel()
	o := hypervisors.DomainOptions{
		Name: "web", Gateway: core.SmallCluster(1).Gateway,
		NICs: []hypervisors.DomainNIC{
			{NIC: fabric.NIC{
				Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")},
				Routes:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/29"), netip.MustParsePrefix("2001:db8:200::/64")},
				MAC:       fabric.MAC{0x52, 0x54, 0, 1, 2, 3}, Queues: 2, MTU: 1400,
			}},
			{NIC: fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.11")}}, Managed: true, Target: "other"},
		},
	}
	parse := func(o hypervisors.DomainOptions) (d domain) {
		text := hypervisors.DomainXML(hypervisors.Image{Kernel: "/k", Initrd: "/i"}, o)
		require.NoError(t, xml.Unmarshal([]byte(text), &d), text)
		return d
	}
	d := parse(o)
	assert.Equal(t, "web", d.Name)
	assert.Equal(t, d.UUID, parse(o).UUID, "stable")
	assert.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, d.UUID)
	require.Len(t, d.Metadata.NICs, 2)
	assert.Equal(t, []string{"203.0.113.10", "2001:db8:100::10"}, d.Metadata.NICs[0].Addresses)
	assert.Equal(t, []string{"198.51.100.0/29", "2001:db8:200::/64"}, d.Metadata.NICs[0].Routes)
	require.Len(t, d.Interfaces, 2)
	first, second := d.Interfaces[0], d.Interfaces[1]
	assert.Equal(t, []any{"52:54:00:01:02:03", "web_net0", "no", 2, 1400},
		[]any{first.MAC.Address, first.Target.Dev, first.Target.Managed, first.Driver.Queues, first.MTU.Size})
	assert.Equal(t, []any{"other", "yes", 0, 0}, []any{second.Target.Dev, second.Target.Managed, second.Driver.Queues, second.MTU.Size})
	assert.Contains(t, d.Cmdline, " gw4=169.254.1.1 gw6=fe80::1 nic0=52:54:00:01:02:03,203.0.113.10,2001:db8:100::10 route0=198.51.100.0/29,2001:db8:200::/64 nic1=")

	o.Metadata, o.Name, o.UUID = " ", `<odd> & "named"`, "11111111-1111-4111-8111-111111111111"
	d = parse(o)
	assert.Empty(t, d.Metadata.NICs)
	assert.Equal(t, o.Name, d.Name)
	assert.Equal(t, o.UUID, d.UUID)
}
