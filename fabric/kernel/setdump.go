package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// counted is an element of a set that counts.
type counted struct {
	address netip.Addr
	end     bool // the first address after a range
	counts  bool // it has a counter
	count   fabric.Count
}

// dumpBuffer is the most that the kernel puts into one part of a listing. A reader with
// less room gets it in smaller parts.
const dumpBuffer = 64 << 10

// Attributes of elements that x/sys does not have, and the types within them.
const (
	attrListElement  = 1  // NFTA_LIST_ELEM
	attrDataValue    = 1  // NFTA_DATA_VALUE
	attrExprData     = 2  // NFTA_EXPR_DATA
	attrExpressions  = 17 // NFTA_SET_ELEM_EXPRESSIONS
	attrCounterBytes = 1  // NFTA_COUNTER_BYTES
	attrCounterPkts  = 2  // NFTA_COUNTER_PACKETS
)

// setDump lists the elements of sets. It reads tens of thousands in a tenth of a second,
// which the library does not: it asks for each part of a listing twice.
type setDump struct {
	conn   *netlink.Conn
	raw    syscall.RawConn
	buffer []byte
}

func openSetDump() (*setDump, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &setDump{conn, raw, make([]byte, dumpBuffer)}, nil
}

func (d *setDump) close() { _ = d.conn.Close() }

// elements calls each for the elements of a set.
func (d *setDump) elements(s *nftables.Set, each func(counted)) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(s.Table.Name), 0)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(s.Name), 0)},
	})
	if err != nil {
		return err
	}
	if _, err := d.conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(s.Table.Family), 0, 0, 0}, attrs...),
	}); err != nil {
		return err
	}
	for done := false; !done; {
		var n int
		var failed error
		err := d.raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), d.buffer, 0)
			return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		if done, err = eachElement(d.buffer[:n], each); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	return nil
}

// eachElement calls each for the elements in a part of a listing, and reports whether it
// is the last part.
func eachElement(part []byte, each func(counted)) (last bool, err error) {
	for len(part) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(part))
		if size < unix.SizeofNlMsghdr || size > len(part) {
			return true, errCutShort
		}
		body := part[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(part[4:]) {
		case unix.NLMSG_DONE:
			last = true
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errCutShort
			}
			return true, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		default:
			if len(body) < sizeofNfgenmsg {
				return true, errCutShort
			}
			eachAttribute(body[sizeofNfgenmsg:], func(typ uint16, list []byte) {
				if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					return
				}
				eachAttribute(list, func(typ uint16, element []byte) {
					if typ == attrListElement {
						each(parseCounted(element))
					}
				})
			})
		}
		part = part[min(len(part), (size+3)&^3):]
	}
	return last, nil
}

var errCutShort = errors.New("an answer of the kernel was cut short")

// eachAttribute calls each for the netlink attributes in b, without the flags of their
// types. It stops at one that is cut short.
func eachAttribute(b []byte, each func(typ uint16, value []byte)) {
	const head = unix.SizeofNlAttr
	for len(b) >= head {
		size, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < head || size > len(b) {
			return
		}
		each(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[head:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

func parseCounted(element []byte) (c counted) {
	expression := func(typ uint16, value []byte) {
		if typ != attrExprData {
			return
		}
		c.counts = true
		eachAttribute(value, func(typ uint16, value []byte) {
			switch {
			case len(value) != 8:
			case typ == attrCounterBytes:
				c.count.Bytes = binary.BigEndian.Uint64(value)
			case typ == attrCounterPkts:
				c.count.Packets = binary.BigEndian.Uint64(value)
			}
		})
	}
	eachAttribute(element, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			eachAttribute(value, func(typ uint16, value []byte) {
				if typ == attrDataValue {
					c.address, _ = netip.AddrFromSlice(value)
				}
			})
		case unix.NFTA_SET_ELEM_FLAGS:
			c.end = len(value) == 4 && binary.BigEndian.Uint32(value)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_EXPR:
			eachAttribute(value, expression)
		case attrExpressions:
			eachAttribute(value, func(_ uint16, one []byte) { eachAttribute(one, expression) })
		}
	})
	return c
}
