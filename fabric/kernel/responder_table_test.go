package kernel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/fabric"
)

func toldPortOf(name string, a string) fabric.Port {
	return fabric.Port{Name: name, NIC: fabric.NIC{Addresses: []netip.Addr{netip.MustParseAddr(a)}}, Gateway: fabric.Gateway{
		IPv4: netip.MustParseAddr("169.254.1.1"), IPv6: netip.MustParseAddr("fe80::1"), MAC: fabric.DefaultMAC,
	}}
}

// TestToldPorts: a port is told what it was put with, until it or its link is gone.
func TestToldPorts(t *testing.T) {
	r := newResponder(Config{}, &conditions{})
	has := func(index int32) (addresses []netip.Addr) {
		table, done := r.open()
		defer done()
		o, _ := table.offer(index)
		return o.Addresses
	}
	note := func(index int32, protocol fabric.ContactProtocol, message string) {
		table, done := r.open()
		defer done()
		table.note(index, fabric.Contact{Protocol: protocol, Message: message})
	}
	web, db := toldPortOf("web_net0", "203.0.113.10"), toldPortOf("db_net0", "2001:db8:100::11")
	r.attend(web, 7)
	r.attend(db, 8)
	assert.Equal(t, web.NIC.Addresses, has(7))
	assert.Equal(t, db.NIC.Addresses, has(8))
	assert.Nil(t, has(9))

	note(7, fabric.DHCPv4, "DISCOVER")
	note(7, fabric.DHCPv6, "SOLICIT")
	note(7, fabric.DHCPv4, "REQUEST")
	note(9, fabric.DHCPv4, "DISCOVER")
	assert.Equal(t, []fabric.Contact{{Protocol: fabric.DHCPv4, Message: "REQUEST"}, {Protocol: fabric.DHCPv6, Message: "SOLICIT"}}, r.contacts(7))
	assert.Empty(t, r.contacts(9))
	web.NIC.Addresses = db.NIC.Addresses
	r.attend(web, 7)
	assert.Equal(t, db.NIC.Addresses, has(7))
	assert.Len(t, r.contacts(7), 2)

	r.attend(web, 17) // the link was made anew
	assert.Nil(t, has(7))
	assert.NotNil(t, has(17))
	r.gone(7)
	assert.NotNil(t, has(17))
	r.gone(17)
	assert.Nil(t, has(17))
	r.attend(web, 8) // the link of a port that is gone, under another name
	r.leave(db.Name)
	assert.NotNil(t, has(8))
	r.leave(web.Name)
	r.leave(web.Name)
	assert.Nil(t, has(8))
	table, done := r.open()
	defer done()
	assert.Empty(t, table.byIndex)
	assert.Empty(t, table.byName)
	assert.Empty(t, table.changed)
}

// TestAdvertisementsAreSpread: a port is due when it is new or has changed, and then at
// random times.
func TestAdvertisementsAreSpread(t *testing.T) {
	for set, between := range map[time.Duration]time.Duration{0: advertiseMost, time.Hour: time.Hour} {
		r := newResponder(Config{Guests: fabric.Guests{Lifetimes: fabric.Lifetimes{Advertise: set}}}, &conditions{})
		areSpread(t, r, between)
	}
}

// areSpread checks that ports are advertised to at most so long after the last time, half of
// it at least, and not together.
func areSpread(t *testing.T, r *responder, between time.Duration) {
	t.Helper()
	const ports = 1000
	for i := range int32(ports) {
		r.attend(toldPortOf(string(rune('a'+i)), "2001:db8:100::10"), i+1)
	}
	table, done := r.open()
	defer done()
	now := time.Now()
	table.byIndex[1].next = now.Add(time.Hour) // somebody was faster
	assert.Len(t, table.takeChanged(now), ports-1)
	assert.Empty(t, table.takeChanged(now))
	assert.Empty(t, table.due(now))
	table.byIndex[1].next = now.Add(between / 2)
	again, most, all := map[int32]bool{}, 0, 0
	for at := now.Add(between / 2); at.Before(now.Add(between + advertiseLook)); at = at.Add(advertiseLook) {
		n := 0
		for index := range table.due(at) {
			if !again[index] {
				n++
			}
			again[index] = true
		}
		most, all = max(most, n), all+n
	}
	assert.Less(t, most, ports/20, "at one time")
	assert.Equal(t, ports, all)
}
