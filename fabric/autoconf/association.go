package autoconf

import (
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// association is an identity association of a request (RFC 8415, 4.2): what the client
// has, or wishes for.
type association struct {
	id       [4]byte
	prefixes []netip.Prefix // addresses as host prefixes
}

// associationOf reads an IA_NA, IA_TA or IA_PD, and gives the zero value for another
// option; ok is false for one that is malformed.
func associationOf(o dhcpv6.Option) (ia association, ok bool) {
	header := 12 // IAID, T1, T2
	switch o.Code() {
	case dhcpv6.OptionIANA, dhcpv6.OptionIAPD:
	case dhcpv6.OptionIATA:
		header = 4
	default:
		return ia, true
	}
	data := o.ToBytes()
	if len(data) < header {
		return ia, false
	}
	copy(ia.id[:], data)
	var options dhcpv6.Options
	if options.FromBytesWithParser(data[header:], verbatim) != nil {
		return ia, false
	}
	for _, part := range options {
		p, ok := prefixOf(part)
		if !ok {
			return ia, false
		}
		if p.IsValid() && !p.Addr().IsUnspecified() { // the unspecified address is a wish for any
			ia.prefixes = append(ia.prefixes, p)
		}
	}
	return ia, true
}

// prefixOf reads an address or a prefix of an association, and gives the zero value for
// another option.
func prefixOf(o dhcpv6.Option) (p netip.Prefix, ok bool) {
	data := o.ToBytes()
	switch o.Code() {
	case dhcpv6.OptionIAAddr: // address, two lifetimes
		if len(data) < 24 {
			return p, false
		}
		return netip.PrefixFrom(netip.AddrFrom16([16]byte(data)), 128), true
	case dhcpv6.OptionIAPrefix: // two lifetimes, length, prefix
		if len(data) < 25 {
			return p, false
		}
		return netip.PrefixFrom(netip.AddrFrom16([16]byte(data[9:])), int(data[8])), true
	}
	return p, true
}

// associate answers the associations of the request. The first IA_NA and the first
// IA_PD get all that the NIC has; the same addresses cannot be in another one.
func (x *exchange6) associate() {
	first := map[dhcpv6.OptionCode]bool{dhcpv6.OptionIANA: true, dhcpv6.OptionIAPD: true}
	refusals := 0
	for _, o := range x.asked.Options.Options {
		code := o.Code()
		ia, _ := associationOf(o)
		switch {
		case first[code] && code == dhcpv6.OptionIANA:
			x.assign(ia)
		case first[code] && code == dhcpv6.OptionIAPD:
			x.delegate(ia)
		case code != dhcpv6.OptionIANA && code != dhcpv6.OptionIATA && code != dhcpv6.OptionIAPD:
			continue
		case refusals < maxRefusals:
			refusals++
			x.refuse(code, ia)
		}
		first[code] = false
	}
}

// assign answers the IA_NA that gets the NIC's addresses, the first one last.
func (x *exchange6) assign(ia association) {
	ours := x.addresses6()
	ours = ours[:min(len(ours), maxAddresses)]
	slices.Reverse(ours)
	last := x.lifetimes()
	option := &dhcpv6.OptIANA{IaId: ia.id, T1: last.Renew, T2: last.Rebind}
	foreign := x.foreign(ia, func(p netip.Prefix) bool { return slices.Contains(x.Addresses, p.Addr()) })
	if x.asked.MessageType == dhcpv6.MessageTypeRequest && len(foreign) > 0 { // RFC 8415, 18.3.2
		x.contact.Refused = foreign[0].Addr().String() + " is not an address of the NIC"
		option.T1, option.T2 = 0, 0
		option.Options.Add(status(iana.StatusNotOnLink))
		x.add(option)
		return
	}
	for _, p := range x.ended(foreign) {
		option.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: p.Addr().AsSlice()})
	}
	for _, a := range ours {
		option.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: last.Lease, ValidLifetime: last.Lease})
	}
	if len(ours) == 0 {
		x.contact.Refused = "the NIC has no IPv6 address"
		option.T1, option.T2 = 0, 0
		option.Options.Add(status(iana.StatusNoAddrsAvail))
	}
	x.add(option)
}

// delegate answers the IA_PD that gets the prefixes routed to the NIC.
func (x *exchange6) delegate(ia association) {
	ours := x.prefixes()
	last := x.lifetimes()
	option := &dhcpv6.OptIAPD{IaId: ia.id, T1: last.Renew, T2: last.Rebind}
	foreign := x.foreign(ia, func(p netip.Prefix) bool { return slices.Contains(ours, p) })
	for _, p := range x.ended(foreign) {
		option.Options.Add(&dhcpv6.OptIAPrefix{Prefix: ipNet(p)})
	}
	for _, p := range ours {
		option.Options.Add(&dhcpv6.OptIAPrefix{Prefix: ipNet(p), PreferredLifetime: last.Lease, ValidLifetime: last.Lease})
	}
	if len(ours) == 0 {
		option.T1, option.T2 = 0, 0
		option.Options.Add(status(iana.StatusNoPrefixAvail))
	}
	x.add(option)
}

// refuse answers an association for which there is nothing.
func (x *exchange6) refuse(code dhcpv6.OptionCode, ia association) {
	switch code {
	case dhcpv6.OptionIANA:
		option := &dhcpv6.OptIANA{IaId: ia.id}
		option.Options.Add(status(iana.StatusNoAddrsAvail))
		x.add(option)
	case dhcpv6.OptionIATA:
		option := &dhcpv6.OptIATA{IaId: ia.id}
		option.Options.Add(status(iana.StatusNoAddrsAvail))
		x.add(option)
	case dhcpv6.OptionIAPD:
		option := &dhcpv6.OptIAPD{IaId: ia.id}
		option.Options.Add(status(iana.StatusNoPrefixAvail))
		x.add(option)
	}
}

// foreign lists what the client has, or wishes for, and is not the guest's.
func (x *exchange6) foreign(ia association, ours func(netip.Prefix) bool) (ps []netip.Prefix) {
	for _, p := range ia.prefixes {
		if !ours(p) {
			ps = append(ps, p)
		}
	}
	return ps
}

// ended gives those of the foreign addresses whose life a RENEW or REBIND ends at once
// (RFC 8415, 18.3.4 and 18.3.5). In other messages they are wishes.
func (x *exchange6) ended(foreign []netip.Prefix) []netip.Prefix {
	if t := x.asked.MessageType; t != dhcpv6.MessageTypeRenew && t != dhcpv6.MessageTypeRebind {
		return nil
	}
	return foreign[:min(len(foreign), maxForeign)]
}
