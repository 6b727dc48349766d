package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
)

// The functions of the large communities that say who holds an address: after
// the cluster's AS number, a function, and its parameter (RFC 8195).
const (
	HolderFunction    = 1471 // [Holder.Guest]
	HeldSinceFunction = 1472 // [Holder.Since]
)

// Holder says which guest holds an address, and since when, in the 64 bits that
// a route has room for. It lets two nodes whose agents do not reach each other
// know whether they announce one guest or two. The zero value is that of a
// route that does not say.
type Holder struct {
	Guest uint32 // a hash of the guest's identity
	Since uint32 // seconds since 1970; 0: not known
}

// Holder gives what the announcement of the guest says of it. It says nothing
// before the guest holds its addresses.
func (d Desired) Holder() Holder {
	since := d.Acquired.Unix()
	if d.Acquired.IsZero() || since <= 0 || since > math.MaxUint32 {
		return Holder{}
	}
	sum := sha256.Sum256([]byte(d.VM.Identity()))
	return Holder{Guest: binary.BigEndian.Uint32(sum[:]), Since: uint32(since)}
}

// Communities gives the communities of a cluster's AS number that say it; none
// of the zero value.
func (h Holder) Communities(asn uint32) []Community {
	if h == (Holder{}) {
		return nil
	}
	return []Community{{Large: true, A: asn, B: HolderFunction, C: h.Guest}, {Large: true, A: asn, B: HeldSinceFunction, C: h.Since}}
}

// HolderOf reads what [Holder.Communities] gave. The zero value comes back where
// one of the two is missing, or there twice: nobody knows then which is right.
// The cluster's own communities, which every route has, say nothing of a holder.
func (c *Cluster) HolderOf(communities []Community) Holder {
	var h Holder
	var guests, times int
	for _, m := range communities {
		if !m.Large || m.A != c.ASN || slices.Contains(c.Communities, m) {
			continue
		}
		switch m.B {
		case HolderFunction:
			h.Guest, guests = m.C, guests+1
		case HeldSinceFunction:
			h.Since, times = m.C, times+1
		}
	}
	if guests != 1 || times != 1 {
		return Holder{}
	}
	return h
}
