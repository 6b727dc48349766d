package fake

import (
	"time"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/autoconf"
)

// SetGuests sets what the node tells its guests beside their addresses.
func (d *Dataplane) SetGuests(g fabric.Guests) {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	d.kernel.guests = g
}

// Ask has the guest of a port send a frame, and returns the frames by which the node
// answers. On a port that this dataplane has not put, or that has no carrier, nobody is
// heard.
func (d *Dataplane) Ask(port string, frame []byte) (answers [][]byte, heard bool) {
	const ethernet = 14 // bytes of the header
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	l := d.kernel.links[port]
	if l == nil || !l.carrier || !d.put[port] || len(frame) < ethernet {
		return nil, false
	}
	a := autoconf.OfferOf(l.port, d.kernel.guests).Answer(autoconf.Request{From: fabric.MAC(frame[6:12]), Packet: frame[ethernet:]})
	if a.Contact.Protocol != "" {
		a.Contact.At = time.Now()
		d.contacts[port] = autoconf.Newest(d.contacts[port], a.Contact)
	}
	return a.Frames, true
}
