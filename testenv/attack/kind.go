package attack

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/packets"
	"github.com/vmfabric/vmfabric/internal/requests"
)

// Family is a version of IP.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns the family's name.
func (f Family) String() string { return fmt.Sprintf("IPv%d", int(f)) }

// Families are both.
var Families = []Family{IPv4, IPv6}

// Pair is a machine's address of each family.
type Pair struct{ V4, V6 netip.Addr }

// Of returns the address of a family.
func (p Pair) Of(f Family) netip.Addr {
	if f == IPv4 {
		return p.V4
	}
	return p.V6
}

// Guest is a guest as its node knows it.
type Guest struct {
	Pair
	MAC fabric.MAC
}

// Cast are the machines around an attacker.
type Cast struct {
	Self      Guest // the attacker
	Gone      Pair  // addresses that were withdrawn from the attacker a moment ago
	Other     Guest // a guest of the same node
	Gateway   Guest // of every port
	Node      Guest // and its MAC address on the underlay
	Neighbor  Pair  // a machine of the underlay that is no node
	Reflector Pair
	Core      Pair // the core gateway
	Client    Pair // a machine in the Internet
	Free      Pair // addresses of the pools that no guest has
}

// Place is where a frame is seen. Places can be added to a set.
type Place int

// The places.
const (
	Underlay   Place = 1 << iota // sent by the node on the underlay
	OtherGuest                   // sent by the node to another guest
	NodeItself                   // taken by the node: it passed the hook input
	Answer                       // sent by the node to the attacker
)

// String returns the places in words.
func (p Place) String() string {
	var words []string
	for i, word := range []string{"the underlay", "another guest", "the node", "the attacker"} {
		if p&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	if last := len(words) - 1; last > 0 {
		return strings.Join(words[:last], ", ") + " or " + words[last]
	}
	return strings.Join(words, "")
}

// Everywhere is where a frame that is dropped is not seen.
const Everywhere = Underlay | OtherGuest | NodeItself

// Kind is a kind of attack by frames.
type Kind struct {
	Name    string
	Hostile func(*Volley) // makes the frames of the attacker
	Never   Place         // where none of them is seen
	Keeps   bool          // neighbours, addresses, routes and path MTUs stay as they are

	// Honest makes the frames of the control: like the hostile ones, but honest. They
	// are seen At a place. Without it, the control is a datagram to the Internet.
	Honest func(*Volley)
	At     Place

	Only  Family   // 0: both families have it
	Alone []Family // in these the kernel drops it also without the packet filter
}

// Has reports whether a family has the kind.
func (k Kind) Has(f Family) bool { return k.Only == 0 || k.Only == f }

// Volley makes the frames of one kind, for one family and one port.
type Volley struct {
	Cast
	Family Family
	Frames [][]byte
	Tokens []string // that are in the frames, and in what comes of them

	stem string
	id   uint32 // of a datagram that is sent in fragments
}

// volleys counts volleys: no two fragments of different ones make a datagram.
var volleys atomic.Uint32

// tokenSize is that of a token. Every frame has room for one, fragments too.
const tokenSize = 8

// NewVolley begins the volley of the number-th kind from a port, which has a letter.
func NewVolley(c Cast, f Family, number int, port byte, honest bool) *Volley {
	end := byte('x')
	if honest {
		end = 'h'
	}
	return &Volley{Cast: c, Family: f, stem: fmt.Sprintf("@%03d%c%d%c", number, port, f, end), id: volleys.Add(1)}
}

// Token returns a token that no other frame has.
func (v *Volley) Token() []byte {
	t := v.stem + string(rune('A'+len(v.Tokens)))
	v.Tokens = append(v.Tokens, t)
	return []byte(t)
}

// TokensIn lists the tokens in a frame or packet.
func TokensIn(b []byte) (found []string) {
	for {
		i := bytes.IndexByte(b, '@')
		if i < 0 || len(b) < i+tokenSize {
			return found
		}
		if t := b[i : i+tokenSize]; isToken(t) {
			found = append(found, string(t))
		}
		b = b[i+1:]
	}
}

func isToken(t []byte) bool {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	return digit(t[1]) && digit(t[2]) && digit(t[3]) && (t[5] == '4' || t[5] == '6') && (t[6] == 'x' || t[6] == 'h') && t[7] >= 'A'
}

// frame adds a frame.
func (v *Volley) frame(e ethernet) { v.Frames = append(v.Frames, e.bytes()) }

// local adds a frame to the gateway with something in it.
func (v *Volley) local(kind uint16, payload []byte) {
	v.frame(ethernet{to: v.Gateway.MAC, from: v.Self.MAC, kind: kind, payload: payload})
}

// ip adds a packet to the gateway. One to a group goes to the MAC address of the group.
func (v *Volley) ip(p packet) { v.frame(v.around(p)) }

func (v *Volley) around(p packet) ethernet {
	e := ethernet{to: v.Gateway.MAC, from: v.Self.MAC, kind: packets.EtherType(p.src), payload: p.bytes()}
	switch {
	case p.dst.IsMulticast():
		e.to = groupMAC(p.dst)
	case p.dst == everybody:
		e.to = broadcast
	}
	return e
}

// datagram is a UDP packet with a token.
func (v *Volley) datagram(src, dst netip.Addr) packet { return v.datagramTo(src, dst, 4001) }

func (v *Volley) datagramTo(src, dst netip.Addr, port uint16) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_UDP, payload: packets.UDP(src, dst, 4000, port, v.Token())}
}

// segment is a TCP packet with a token.
func (v *Volley) segment(src, dst netip.Addr, port uint16, flags byte) packet {
	return packet{src: src, dst: dst, protocol: unix.IPPROTO_TCP, payload: packets.TCP(src, dst, 4000, port, flags, v.Token())}
}

// ping is an echo request with a token.
func (v *Volley) ping(src, dst netip.Addr) packet {
	return packet{src: src, dst: dst, protocol: packets.ICMPOf(src), payload: echo(src, dst, v.Token())}
}

// message is an ICMP message with a token behind it.
func (v *Volley) message(src, dst netip.Addr, kind, code byte, rest uint32, payload []byte) packet {
	return packet{src: src, dst: dst, protocol: packets.ICMPOf(src), payload: packets.ICMP(src, dst, kind, code, rest, append(payload, v.Token()...))}
}

// self is the attacker's own address.
func (v *Volley) self() netip.Addr { return v.Self.Of(v.Family) }

// client is the machine in the Internet.
func (v *Volley) client() netip.Addr { return v.Client.Of(v.Family) }

// gateway is the address of the port.
func (v *Volley) gateway() netip.Addr { return v.Gateway.Of(v.Family) }

// linkLocal is the attacker's link-local address.
func (v *Volley) linkLocal() netip.Addr { return requests.LinkLocal(v.Self.MAC) }

// toInternet is the control of most kinds.
func toInternet(v *Volley) { v.ip(v.datagram(v.self(), v.client())) }

// toGateway is an echo request, which the node takes.
func toGateway(v *Volley) { v.ip(v.ping(v.self(), v.gateway())) }

// toGuest is a datagram to the other guest.
func toGuest(v *Volley) { v.ip(v.datagram(v.self(), v.Other.Of(v.Family))) }

// Control returns the honest frames of the kind, and where they are seen.
func (k Kind) Control() (func(*Volley), Place) {
	if k.Honest == nil {
		return toInternet, Underlay
	}
	return k.Honest, k.At
}

// Finding is what was seen of a volley.
type Finding struct {
	Family  Family
	Tokens  []string
	Changed string // of what the kind keeps
}

// Judge returns what is wrong with what was seen of a kind. Without the packet filter the
// kind must show itself, unless the kernel alone drops it: else its check could not fail.
func (k Kind) Judge(found Finding, filtered bool, seen func(token string) Place) (wrong []string) {
	effective := filtered
	for _, f := range k.Alone {
		effective = effective || f == found.Family
	}
	for i, t := range found.Tokens {
		switch at := seen(t) & k.Never; {
		case effective && at != 0:
			wrong = append(wrong, fmt.Sprintf("%s, %s: frame %d reached %s", k.Name, found.Family, i+1, at))
		case !effective && at == 0:
			wrong = append(wrong, fmt.Sprintf("%s, %s: frame %d reached nothing without the packet filter, so its check shows nothing", k.Name, found.Family, i+1))
		}
	}
	switch {
	case effective && found.Changed != "":
		wrong = append(wrong, fmt.Sprintf("%s, %s: changed %s", k.Name, found.Family, found.Changed))
	case !effective && len(found.Tokens) == 0 && found.Changed == "":
		wrong = append(wrong, fmt.Sprintf("%s, %s: changed nothing without the packet filter, so its check shows nothing", k.Name, found.Family))
	}
	return wrong
}

// Marks are honest kinds that are seen at each place: what was sent before them from the
// same port, by the same processor, has been seen when they are.
func Marks() []Kind {
	return []Kind{
		{Name: "mark to the Internet", Honest: toInternet, At: Underlay},
		{Name: "mark to another guest", Honest: toGuest, At: OtherGuest},
		{Name: "mark to the node", Honest: toGateway, At: NodeItself},
		{Name: "mark from the node", Honest: toGateway, At: Answer},
	}
}

// FromGone makes a datagram from an address that is about to be withdrawn.
func FromGone(v *Volley) { v.ip(v.datagram(v.Gone.Of(v.Family), v.client())) }
