package clusterfile

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/vmfabric/vmfabric/fabric"
)

// name refuses text that would garble the errors that contain it;
// fabric.Cluster.Validate checks the rest.
func name(l literal) (string, error) {
	if len(l.text) > 64 || strings.ContainsFunc(l.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s is not a name; use 1 to 32 letters, digits, '.', '_' and '-'", quote(l.text))
	}
	return l.text, nil
}

// note reads a text for people.
func note(l literal) (string, error) {
	if strings.ContainsFunc(l.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s is not one line of text; write what the address is for", quote(l.text))
	}
	return l.text, nil
}

func boolean(l literal) (bool, error) {
	switch {
	case l.plain && l.text == "true":
		return true, nil
	case l.plain && l.text == "false":
		return false, nil
	}
	return false, fmt.Errorf("%s is neither true nor false; write one of them, without quotes", quote(l.text))
}

// off reads a boolean that is true by default, as its opposite.
func off(l literal) (bool, error) {
	on, err := boolean(l)
	return !on, err
}

// domain refuses text that would garble the errors that contain it;
// fabric.Cluster.Validate checks the rest.
func domain(l literal) (string, error) {
	if strings.ContainsFunc(l.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s is not a domain; write one such as example.net", quote(l.text))
	}
	if _, err := idna.ToASCII(l.text); err != nil { // guests would be told nothing of it
		return "", fmt.Errorf("%s has a part that begins with xn-- and stands for no name; correct it (idn2 prints what a name is in DNS)", quote(l.text))
	}
	return l.text, nil
}

// mtu refuses zero, which would mean that the key is left out.
func mtu(l literal) (int, error) {
	if digits(l) {
		if v, err := strconv.ParseUint(l.text, 10, 31); err == nil && v != 0 {
			return int(v), nil
		}
	}
	return 0, fmt.Errorf("%s is not an MTU; write a number of bytes such as 1500, without quotes, or leave the key out to say nothing", quote(l.text))
}

// digits reports whether the value is a plain decimal number: with no base, sign,
// underscores or leading zeros, which YAML readers take for different numbers.
func digits(l literal) bool {
	return l.plain && l.text != "" && (l.text[0] != '0' || l.text == "0") &&
		!strings.ContainsFunc(l.text, func(r rune) bool { return r < '0' || r > '9' })
}

func asn(l literal) (uint32, error) {
	if !digits(l) {
		return 0, asnForm(l)
	}
	v, err := strconv.ParseUint(l.text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s is too large for an AS number; they end at 4294967294", quote(l.text))
	}
	return uint32(v), nil
}

// asnForm says how to write a value as an AS number, if its meaning is clear.
func asnForm(l literal) error {
	if high, low, dotted := strings.Cut(l.text, "."); dotted {
		h, err := strconv.ParseUint(high, 10, 16)
		lo, err2 := strconv.ParseUint(low, 10, 16)
		if err == nil && err2 == nil {
			return fmt.Errorf("%s is in the dotted form of RFC 5396; write the plain number %d", quote(l.text), h<<16|lo)
		}
	}
	bare := strings.TrimLeft(strings.TrimPrefix(strings.ToUpper(l.text), "AS"), "0 ")
	if v, err := strconv.ParseUint(bare, 10, 32); err == nil {
		return fmt.Errorf("%s is not a plain number; write %d, without quotes", quote(l.text), v)
	}
	return fmt.Errorf("%s is not an AS number; write a plain number, for example 64512", quote(l.text))
}

// ownASN refuses the zero that stands for "not given" in [fabric.Cluster].
func ownASN(l literal) (uint32, error) {
	v, err := asn(l)
	if err == nil && v == 0 {
		err = errors.New("0 is a reserved AS number; give your own, or a private one (64512 to 65534)")
	}
	return v, err
}

// peerASN refuses the zero that stands for "not given" in [fabric.RR] and
// [fabric.Core].
func peerASN(l literal) (uint32, error) {
	v, err := asn(l)
	if err == nil && v == 0 {
		err = errors.New("0 is a reserved AS number; leave the key out for the cluster's own")
	}
	return v, err
}

func port(l literal) (uint16, error) { return portOr(l, 179) }

func agentPort(l literal) (uint16, error) { return portOr(l, fabric.DefaultAgentPort) }

// portOr reads a port that the file may leave out.
func portOr(l literal, otherwise int) (uint16, error) {
	if digits(l) {
		if v, err := strconv.ParseUint(l.text, 10, 16); err == nil && v != 0 {
			return uint16(v), nil
		}
	}
	return 0, fmt.Errorf("%s is not a TCP port; write a number from 1 to 65535, or leave the key out for %d", quote(l.text), otherwise)
}

func service(l literal) (fabric.Service, error) {
	s, err := fabric.ParseService(l.text)
	if err != nil {
		return s, fmt.Errorf("%s is not a service; write tcp/53 or udp/53", quote(l.text))
	}
	return s, nil
}

func count(l literal) (int, error) { return numberOf(l, "prefixes", fabric.DefaultMaxPrefixes) }

func rate(l literal) (int, error) {
	return numberOf(l, "packets a second", fabric.DefaultMoves.Rate)
}

// numberOf reads a number that the file may leave out. Zero would mean that it is
// left out, so numberOf refuses it.
func numberOf(l literal, things string, otherwise int) (int, error) {
	if digits(l) {
		if v, err := strconv.ParseUint(l.text, 10, 31); err == nil && v != 0 {
			return int(v), nil
		}
	}
	return 0, fmt.Errorf("%s is not a number of %s; write one such as %d, or leave the key out for that", quote(l.text), things, otherwise)
}

// eastWest reads how guests on two nodes reach each other.
func eastWest(l literal) (direct bool, err error) {
	switch l.text {
	case "direct":
		return true, nil
	case "core":
		return false, nil
	}
	return false, fmt.Errorf("%s is neither core nor direct; write direct for routes between the nodes, or leave the key out for the way through the core gateway", quote(l.text))
}

// program reads the path of a plugin or the name of a speaker, and refuses text
// that would garble the errors that contain it.
func program(l literal) (string, error) {
	if l.text == "" || len(l.text) > 255 || strings.ContainsFunc(l.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s is not the path of a program; write one such as /usr/local/lib/vmfabric/my-plugin", quote(l.text))
	}
	return l.text, nil
}

// endpoint refuses text that would garble the errors that contain it;
// fabric.Cluster.Validate checks the rest. A slash at the end means nothing.
func endpoint(l literal) (string, error) {
	if l.text == "" || len(l.text) > 255 || strings.ContainsFunc(l.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s is not the URL of a member of etcd; write it as https://10.10.0.11:2379", quote(l.text))
	}
	return strings.TrimSuffix(l.text, "/"), nil
}

func prefixOfKeys(l literal) (string, error) {
	if l.text == "" || len(l.text) > 255 || strings.ContainsFunc(l.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%s is not the beginning of the keys; write one such as %s, or leave the key out for that", quote(l.text), fabric.DefaultEtcdPrefix)
	}
	return strings.TrimSuffix(l.text, "/"), nil
}

func duration(l literal) (time.Duration, error) {
	var v time.Duration
	var err error
	if digits(l) {
		// More seconds than fit are out of every range.
		var n uint64
		n, err = strconv.ParseUint(l.text, 10, 32)
		v = time.Duration(n) * time.Second
	} else {
		v, err = time.ParseDuration(l.text)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is not a duration; write 9s, or 9 for seconds", quote(l.text))
	case v == 0:
		// Zero stands for "not given" in fabric.Timers.
		return 0, errors.New("a duration of zero; give a longer one, or leave the key out for the default")
	}
	return v, nil
}

func mac(l literal) (fabric.MAC, error) {
	m, err := fabric.ParseMAC(l.text)
	switch {
	case err != nil:
		return m, fmt.Errorf("%s is not a MAC address; write it as %s, or leave the key out for that", quote(l.text), fabric.DefaultMAC)
	case m.IsZero():
		return m, fmt.Errorf("all zeros is not a unicast MAC address; leave the key out for %s", fabric.DefaultMAC)
	}
	return m, nil
}

func community(l literal) (fabric.Community, error) {
	c, err := fabric.ParseCommunity(l.text)
	if err != nil {
		return c, fmt.Errorf("%s is not a community; write \"64512:100\", or \"64512:1:100\" for a large one", quote(l.text))
	}
	return c, nil
}

func addr(l literal) (netip.Addr, error) {
	a, err := netip.ParseAddr(l.text)
	if err != nil {
		if p, err := netip.ParsePrefix(l.text); err == nil {
			return netip.Addr{}, fmt.Errorf("%s is a prefix; write the address alone, %s", p, p.Addr())
		}
		return netip.Addr{}, fmt.Errorf("%s is not an IP address; write one such as 10.10.0.21 or \"2001:db8::21\"", quote(l.text))
	}
	switch {
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s has a zone, which means nothing to other hosts; give an address without '%%'", quote(l.text))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s is an IPv4 address in IPv6 form; write %s", a, a.Unmap())
	}
	return a, nil
}

func addrPort(l literal) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(l.text)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%s is not an IP address with a TCP port; write one such as 127.0.0.1:9178 or \"[::1]:9178\"", quote(l.text))
	}
	return a, nil
}

func addr6(l literal) (netip.Addr, error) {
	a, err := addr(l)
	if err == nil && a.Is4() {
		return netip.Addr{}, fmt.Errorf("%s is an IPv4 address; write it as address, and the node's IPv6 address here", a)
	}
	return a, err
}

func prefix(l literal) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(l.text)
	if err == nil && !p.Addr().Is4In6() {
		return p, nil
	}
	if err == nil {
		return netip.Prefix{}, fmt.Errorf("%s is an IPv4 prefix in IPv6 form; write it as IPv4, for example 203.0.113.0/24", p)
	}
	if a, err := netip.ParseAddr(l.text); err == nil && a.Zone() == "" {
		return netip.Prefix{}, fmt.Errorf("%s has no length; write %s for this one address, or the length of the prefix", a, fabric.HostPrefix(a))
	}
	return netip.Prefix{}, fmt.Errorf("%s is not a prefix; write one such as 203.0.113.0/24 or \"2001:db8:100::/48\"", quote(l.text))
}

// addressRange reads a range of addresses.
func addressRange(l literal) (fabric.AddressRange, error) {
	r, err := fabric.ParseAddressRange(l.text)
	if p, e := netip.ParsePrefix(l.text); e == nil {
		return r, fmt.Errorf("%s is a prefix; write it under prefixes, or as its first and last address, %s", p, fabric.RangeOf(p))
	}
	return r, err
}

// prefixLength reads the length of a prefix, also with the slash before it.
func prefixLength(l literal) (int, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(l.text, "/"), 10, 8)
	if err != nil || n == 0 || n > 127 {
		return 0, fmt.Errorf("%s is no length of a prefix; write one such as 64 or, of IPv4, 29, or leave the key out for single addresses", quote(l.text))
	}
	return int(n), nil
}

func addrOrPrefix(l literal) (netip.Prefix, error) {
	if strings.Contains(l.text, "/") {
		return prefix(l)
	}
	a, err := addr(l)
	if err != nil {
		return netip.Prefix{}, err
	}
	return fabric.HostPrefix(a), nil
}
