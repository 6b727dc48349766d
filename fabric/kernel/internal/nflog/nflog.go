// Package nflog receives the packets that nftables logs to a group
// (nfnetlink_log, <linux/netfilter/nfnetlink_log.h>). Package kernel decides which
// packets these are.
package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

const (
	message = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	command = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	attributeCommand  = 1 // NFULA_CFG_CMD, struct nfulnl_msg_config_cmd
	attributeMode     = 2 // NFULA_CFG_MODE, struct nfulnl_msg_config_mode
	attributeHold     = 4 // NFULA_CFG_TIMEOUT, in hundredths of a second
	attributeMost     = 5 // NFULA_CFG_QTHRESH
	bind              = 1 // NFULNL_CFG_CMD_BIND
	copyPacket        = 2 // NFULNL_COPY_PACKET
	attributeIncoming = 4 // NFULA_IFINDEX_INDEV
	attributeSender   = 8 // NFULA_HWADDR, struct nfulnl_msg_packet_hw
	attributePacket   = 9 // NFULA_PAYLOAD

	sizeofNfgenmsg = 4 // struct nfgenmsg of <linux/netfilter/nfnetlink.h>

	// packetBytes is how much of a packet comes. Longer ones come cut.
	packetBytes = 2048
	// receiveBuffer holds about a thousand packets.
	receiveBuffer = 4 << 20
	// hold is how long the kernel keeps packets, in hundredths of a second, unless there
	// are mostHeld. Some clients lose an answer that comes before they are back from
	// sending: threads of dhclient 4.4.1 read it too early, and the socket by which
	// udhcpc renews takes it. They then wait for seconds.
	hold, mostHeld = 1, 64
	// answerWithin bounds how many packets come before the answer to the bind.
	answerWithin = 10000
)

// Packet is a packet as it came in by a link.
type Packet struct {
	Index int32      // of the link
	From  fabric.MAC // the sender of its frame
	Data  []byte     // from the IP header on
}

// Listener receives the packets of one group.
type Listener struct {
	Group uint16
	conn  *netlink.Conn
}

// ErrTaken says that other programs have all of the groups.
var ErrTaken = errors.New("other programs have the groups")

// Listen takes the first of the groups that no other program has, in the network
// namespace of the calling thread. A group that is closed, by Close or by the end of
// the process, is free again.
func Listen(groups ...uint16) (*Listener, error) {
	for _, g := range groups {
		l, err := listen(g)
		// The kernel says EPERM of a group that another socket has.
		if err == nil || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EPERM) {
			return l, err
		}
	}
	return nil, fmt.Errorf("nfnetlink_log: %w %d to %d", ErrTaken, slices.Min(groups), slices.Max(groups))
}

func listen(group uint16) (*Listener, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nfnetlink_log: %w", err)
	}
	_ = c.SetReadBuffer(receiveBuffer)
	l := &Listener{Group: group, conn: c}
	if err := l.bind(); err != nil {
		return nil, fmt.Errorf("nfnetlink_log: group %d: %w", group, errors.Join(err, c.Close()))
	}
	return l, nil
}

// bind takes the group. All is one message, so that no packet comes before the
// group is as it should be.
func (l *Listener) bind() error {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Bytes(attributeCommand, []byte{bind})
	ae.Bytes(attributeMode, []byte{0, 0, packetBytes >> 8, packetBytes & 0xff, copyPacket, 0})
	ae.Uint32(attributeHold, hold)
	ae.Uint32(attributeMost, mostHeld)
	attributes, err := ae.Encode()
	if err != nil {
		return err
	}
	head := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(l.Group >> 8), byte(l.Group)}
	if _, err := l.conn.Send(netlink.Message{
		Header: netlink.Header{Type: command, Flags: netlink.Request | netlink.Acknowledge},
		Data:   slices.Concat(head, attributes),
	}); err != nil {
		return err
	}
	// Packets for the rules of an earlier process may come before the answer.
	for range answerWithin {
		msgs, err := l.conn.Receive()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(msgs, func(m netlink.Message) bool { return m.Header.Type == netlink.Error }) {
			return nil
		}
	}
	return errors.New("the kernel does not answer")
}

// Receive waits for packets until ctx ends; then no later call gets any. Packets for
// which there was no room are lost without an error.
func (l *Listener) Receive(ctx context.Context) ([]Packet, error) {
	defer context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		msgs, err := l.conn.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			continue
		case err != nil && ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, fmt.Errorf("nfnetlink_log: %w", err)
		}
		var packets []Packet
		for _, m := range msgs {
			if p, ok := parse(m); ok {
				packets = append(packets, p)
			}
		}
		if len(packets) > 0 {
			return packets, nil
		}
	}
}

// Close gives the group back.
func (l *Listener) Close() error { return l.conn.Close() }

// parse reads a message. ok is false if it is not a packet that came in by a link
// from an Ethernet address.
func parse(m netlink.Message) (p Packet, ok bool) {
	if m.Header.Type != message || len(m.Data) < sizeofNfgenmsg {
		return Packet{}, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
	if err != nil {
		return Packet{}, false
	}
	ad.ByteOrder = binary.BigEndian
	sender := false
	for ad.Next() {
		b := ad.Bytes()
		switch ad.Type() {
		case attributeIncoming:
			if len(b) == 4 {
				p.Index = int32(binary.BigEndian.Uint32(b))
			}
		case attributeSender:
			// Two bytes of length and two of padding come first.
			if sender = len(b) >= 10 && binary.BigEndian.Uint16(b) == 6; sender {
				p.From = fabric.MAC(b[4:10])
			}
		case attributePacket:
			p.Data = b
		}
	}
	return p, ad.Err() == nil && sender && p.Index > 0 && len(p.Data) > 0
}
