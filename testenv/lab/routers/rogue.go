package routers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vmfabric/vmfabric/fabric"
)

// Rogue speaks BGP byte by byte, and so can send messages that no daemon would. It
// reads only as much as a session needs.
type Rogue struct {
	conn    net.Conn
	reading sync.WaitGroup
	ended   error // why the other end closed the session, once reading is done

	mu    sync.Mutex
	heard [][]byte
}

// RogueRoute is a route that a [Rogue] announces, with origin IGP and an empty
// AS_PATH.
type RogueRoute struct {
	Prefix      netip.Prefix
	NextHops    []netip.Addr // for IPv6 also several, as in RFC 2545, or a wrong number
	LocalPref   *uint32      // nil: the attribute is missing
	Communities []fabric.Community
}

// Types of BGP's messages (RFC 4271).
const (
	bgpOpen         = 1
	bgpUpdate       = 2
	bgpNotification = 3
	bgpKeepalive    = 4
)

// NewRogue brings a session up on a connection to a BGP speaker, of both address
// families, and keeps it up until Close.
func NewRogue(conn net.Conn, asn uint32, id netip.Addr) (*Rogue, error) {
	r := &Rogue{conn: conn}
	if err := r.open(asn, id); err != nil {
		conn.Close()
		return nil, fmt.Errorf("session with %s: %w", conn.RemoteAddr(), err)
	}
	r.reading.Go(r.listen)
	return r, nil
}

func (r *Rogue) open(asn uint32, id netip.Addr) error {
	capability := func(code byte, value ...byte) []byte { return append([]byte{code, byte(len(value))}, value...) }
	caps := slices.Concat(capability(1, 0, 1, 0, 1), capability(1, 0, 2, 0, 1), capability(65, binary.BigEndian.AppendUint32(nil, asn)...))
	short := uint16(23456) // AS_TRANS (RFC 6793)
	if asn <= 0xffff {
		short = uint16(asn)
	}
	body := binary.BigEndian.AppendUint16([]byte{4}, short)
	body = binary.BigEndian.AppendUint16(body, 240) // hold time; the other end's is shorter
	body = append(body, id.AsSlice()...)
	body = append(body, byte(len(caps)+2), 2, byte(len(caps)))
	if err := r.write(bgpOpen, append(body, caps...)); err != nil {
		return err
	}
	if err := r.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	for _, want := range []byte{bgpOpen, bgpKeepalive} {
		kind, body, err := r.read()
		if err == nil && kind != want {
			err = fmt.Errorf("message %d %v instead of %d", kind, body, want)
		}
		if err == nil {
			err = r.write(bgpKeepalive, nil)
		}
		if err != nil {
			return err
		}
	}
	return r.conn.SetReadDeadline(time.Time{})
}

// listen answers keepalives, which come as often as the other end needs them.
func (r *Rogue) listen() {
	for {
		kind, body, err := r.read()
		if err == nil && kind == bgpKeepalive {
			err = r.write(bgpKeepalive, nil)
		}
		if err == nil && kind == bgpNotification {
			err = fmt.Errorf("notification %v", body)
		}
		if err == nil && kind == bgpUpdate {
			r.mu.Lock()
			r.heard = append(r.heard, body)
			r.mu.Unlock()
		}
		if err != nil {
			r.ended = err
			return
		}
	}
}

func (r *Rogue) write(kind byte, body []byte) error {
	m := binary.BigEndian.AppendUint16(slices.Repeat([]byte{0xff}, 16), uint16(19+len(body)))
	_, err := r.conn.Write(append(append(m, kind), body...))
	return err
}

func (r *Rogue) read() (kind byte, body []byte, err error) {
	var head [19]byte
	if _, err := io.ReadFull(r.conn, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint16(head[16:])
	if length < 19 {
		return 0, nil, fmt.Errorf("a message of %d bytes", length)
	}
	body = make([]byte, length-19)
	_, err = io.ReadFull(r.conn, body)
	return head[18], body, err
}

// Announce sends a route.
func (r *Rogue) Announce(route RogueRoute) error {
	addr := route.Prefix.Addr()
	nlri := append([]byte{byte(route.Prefix.Bits())}, addr.AsSlice()[:(route.Prefix.Bits()+7)/8]...)
	attr := func(flags, kind byte, value []byte) []byte {
		return append([]byte{flags, kind, byte(len(value))}, value...)
	}
	attrs := slices.Concat(attr(0x40, 1, []byte{0}), attr(0x40, 2, nil)) // ORIGIN, AS_PATH
	var hops, plain, large []byte
	for _, h := range route.NextHops {
		hops = append(hops, h.AsSlice()...)
	}
	for _, c := range route.Communities {
		if !c.Large {
			plain = binary.BigEndian.AppendUint32(plain, c.A<<16|c.B)
			continue
		}
		for _, v := range []uint32{c.A, c.B, c.C} {
			large = binary.BigEndian.AppendUint32(large, v)
		}
	}
	if addr.Is4() {
		attrs = append(attrs, attr(0x40, 3, hops)...) // NEXT_HOP
	}
	if route.LocalPref != nil {
		attrs = append(attrs, attr(0x40, 5, binary.BigEndian.AppendUint32(nil, *route.LocalPref))...)
	}
	attrs = append(attrs, attr(0xc0, 8, plain)...) // COMMUNITIES
	if addr.Is6() {
		reach := append([]byte{0, 2, 1, byte(len(hops))}, hops...)
		attrs = append(attrs, attr(0x80, 14, append(append(reach, 0), nlri...))...) // MP_REACH_NLRI
		nlri = nil
	}
	attrs = append(attrs, attr(0xc0, 32, large)...) // LARGE_COMMUNITY
	body := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attrs)))
	return r.write(bgpUpdate, slices.Concat(body, attrs, nlri))
}

// Update sends an UPDATE message with a body that may be anything.
func (r *Rogue) Update(body []byte) error { return r.write(bgpUpdate, body) }

// Break sends a message that no speaker sends, and waits until the other end has closed
// the session: it has read what was sent before.
func (r *Rogue) Break() {
	_ = r.write(255, nil) // it may have closed it already
	r.reading.Wait()
	_ = r.conn.Close()
}

// Heard returns the bodies of the UPDATE messages so far.
func (r *Rogue) Heard() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.heard)
}

// Close ends the connection. If the other end closed the session before, the error
// says why.
func (r *Rogue) Close() error {
	err := r.conn.Close()
	r.reading.Wait()
	if !errors.Is(r.ended, net.ErrClosed) {
		return r.ended
	}
	return err
}
