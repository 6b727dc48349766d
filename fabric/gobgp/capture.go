package gobgp

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/internal/backoff"
)

// A peer may send a NOTIFICATION in place of its OPEN, or of the KEEPALIVE that
// answers this side's OPEN, for example because it expects another AS or rejects
// this node. GoBGP counts such a NOTIFICATION and does not report its contents.
// capture reads it from a copy of the packets that the peer's machine sends. It needs
// CAP_NET_RAW; without that the contents stay unknown.
const (
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
	bgpPort    = 179
)

// capture passes on the NOTIFICATIONs that come from a peer, until ctx ends. They are
// unconfirmed: anybody can send such a packet in the peer's name, and TCP then
// drops it.
func capture(ctx context.Context, log *slog.Logger, source, peer netip.Addr, port uint16, emit func(*fabric.Notification)) {
	retry := backoff.Backoff{First: firstRetry, Most: mostRetry}
	for {
		err := captureOnce(ctx, source, peer, port, emit)
		if ctx.Err() != nil {
			return
		}
		log.Debug("NOTIFICATIONs are not read from the wire", "peer", peer, "err", err)
		if !retry.Wait(ctx) {
			return
		}
	}
}

func captureOnce(ctx context.Context, source, peer netip.Addr, port uint16, emit func(*fabric.Notification)) error {
	network := "ip4:tcp"
	if peer.Is6() {
		network = "ip6:tcp"
	}
	// A connected socket gets only packets from the peer's machine.
	conn, err := net.DialIP(network, ipAddr(source), ipAddr(peer))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	segment := make([]byte, 1<<16)
	for {
		n, _, err := conn.ReadFromIP(segment)
		if err != nil {
			return err
		}
		if one := notificationIn(segment[:n], port, time.Now()); one != nil {
			emit(one)
		}
	}
}

func ipAddr(a netip.Addr) *net.IPAddr { return &net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()} }

// notificationIn returns the NOTIFICATION in a segment from a port; nil if there is
// none. The segment must begin with a message. No message follows a NOTIFICATION.
func notificationIn(segment []byte, port uint16, at time.Time) *fabric.Notification {
	const tcpHeader = 20
	if len(segment) < tcpHeader || binary.BigEndian.Uint16(segment) != port {
		return nil
	}
	offset := 4 * int(segment[12]>>4)
	if offset < tcpHeader || offset > len(segment) {
		return nil
	}
	for message := segment[offset:]; len(message) >= bgp.BGP_HEADER_LENGTH; {
		for _, b := range message[:16] {
			if b != 0xff {
				return nil
			}
		}
		length, kind := int(binary.BigEndian.Uint16(message[16:])), message[18]
		if length < bgp.BGP_HEADER_LENGTH || length > len(message) {
			return nil
		}
		if body := message[bgp.BGP_HEADER_LENGTH:length]; kind == bgp.BGP_MSG_NOTIFICATION && len(body) >= 2 {
			return fabric.NewNotification(false, body[0], body[1], communication(body[0], body[1], body[2:]), at)
		}
		message = message[length:]
	}
	return nil
}

// communication returns the text of a shutdown or reset (RFC 9003, 2).
func communication(code, subcode uint8, data []byte) string {
	shutdown := code == bgp.BGP_ERROR_CEASE &&
		(subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN || subcode == bgp.BGP_ERROR_SUB_ADMINISTRATIVE_RESET)
	if !shutdown || len(data) == 0 {
		return ""
	}
	return string(data[1:min(1+int(data[0]), len(data))])
}
