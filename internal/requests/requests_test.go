package requests_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
	"github.com/vmfabric/vmfabric/internal/requests"
)

// TestEveryKindIsAnswered: a node gives every kind of request one answer, which is found
// to be that request's.
func TestEveryKindIsAnswered(t *testing.T) {
	c := (&fabric.Cluster{Name: "lab", Gateway: fabric.Gateway{IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1")}}).WithDefaults()
	nic := fabric.NIC{Kind: fabric.Tap, MAC: fabric.MAC{0x52, 0x54, 0, 0, 0, 1}, Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:100::10")}}
	p := fabric.VM{Name: "web", NICs: []fabric.NIC{nic}}.Ports(&c)[0]
	g := requests.Guest{MAC: nic.MAC, Addresses: nic.Addresses, Gateway: c.Gateway}
	told := map[requests.Kind]string{
		requests.Discover: "DISCOVER", requests.Select: "REQUEST", requests.Reboot: "INIT-REBOOT", requests.Renew4: "RENEW", requests.Rebind4: "REBIND",
		requests.Solicit: "SOLICIT", requests.Renew6: "RENEW", requests.Rebind6: "REBIND", requests.Solicitation: "SOLICITATION",
	}
	for k := range requests.Kinds {
		const number = 0x123456
		a := autoconf.OfferOf(p, fabric.Guests{}).Answer(autoconf.Request{From: nic.MAC, Packet: g.Frame(k, number)[14:]})
		assert.Equal(t, told[k], a.Contact.Message, "%v", k)
		assert.Empty(t, a.Contact.Refused, "%v", k)
		require.Len(t, a.Frames, 1, "%v", k)
		protocol, to := requests.AnswerTo(a.Frames[0])
		if k == requests.Solicitation {
			assert.Equal(t, "RA", protocol)
			continue
		}
		assert.EqualValues(t, number, to, "%v by %s", k, protocol)
		protocol, _ = requests.AnswerTo(g.Frame(k, number))
		assert.Empty(t, protocol, "a request is no answer")
	}
}
