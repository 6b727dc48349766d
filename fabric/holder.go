package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
)

// The functions of the large communities that carry the holder of an address. A
// community has the cluster's AS number, the function and its parameter (RFC 8195).
const (
	HolderFunction    = 1471 // [Holder.Guest]
	HeldSinceFunction = 1472 // [Holder.Since]
)

// Holder says which guest holds an address, and since when, in the 64 bits that
// the parameters of two communities have. By it, two nodes whose agents do not
// reach each other know whether they announce one guest or two. The zero value
// means that the route has no holder.
type Holder struct {
	Guest uint32 // the first 32 bits of the SHA-256 of the guest's identity
	Since uint32 // seconds since 1970; 0: not known
}

// Holder gives the holder that the guest's routes carry. It is zero before the
// guest has acquired its addresses.
func (d Desired) Holder() Holder {
	since := d.Acquired.Unix()
	if d.Acquired.IsZero() || since <= 0 || since > math.MaxUint32 {
		return Holder{}
	}
	sum := sha256.Sum256([]byte(d.VM.Identity()))
	return Holder{Guest: binary.BigEndian.Uint32(sum[:]), Since: uint32(since)}
}

// Communities encodes the holder as large communities of a cluster's AS number;
// none for the zero value.
func (h Holder) Communities(asn uint32) []Community {
	if h == (Holder{}) {
		return nil
	}
	return []Community{{Large: true, A: asn, B: HolderFunction, C: h.Guest}, {Large: true, A: asn, B: HeldSinceFunction, C: h.Since}}
}

// HolderOf decodes [Holder.Communities]. It gives the zero value if one of the two
// is missing, or occurs twice: then nobody knows which is right. It skips the
// cluster's own communities, which every route has.
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
