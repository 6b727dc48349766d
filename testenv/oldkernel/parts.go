package oldkernel

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// Part is a part of the kernel that some do not have.
type Part struct {
	number    uint32         // of a system call that fails; 0: none
	arguments map[uint32]int // with these
	errno     unix.Errno

	protocol int                // of netlink
	change   func(message) bool // makes of a message one that the kernel does not know, and reports whether it did
	answer   func(message) bool // the same with what the kernel says
}

// option is a socket option.
func option(level, option int) Part {
	return Part{number: unix.SYS_SETSOCKOPT, arguments: map[uint32]int{1: level, 2: option}, errno: unix.ENOPROTOOPT}
}

// message is a netlink message.
type message []byte

func (m message) number() uint16     { return native.Uint16(m[4:]) }
func (m message) renumber(to uint16) { native.PutUint16(m[4:], to) }
func (m message) dump() bool         { return native.Uint16(m[6:])&unix.NLM_F_DUMP == unix.NLM_F_DUMP }
func (m message) body() []byte       { return m[unix.SizeofNlMsghdr:] }

func eachMessage(b []byte, do func(message)) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(native.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return
		}
		do(message(b[:size]))
		b = b[min(len(b), (size+3)&^3):]
	}
}

// eachAttribute calls do for the attributes behind a head, from their own head on.
func (m message) eachAttribute(head int, do func(attribute []byte)) {
	b := m.body()
	eachAttribute(b[min(head, len(b)):], do)
}

func eachAttribute(b []byte, do func(attribute []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(native.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return
		}
		do(b[:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// eachIn calls do for the attributes in those of a type, of all that are in b.
func eachIn(b []byte, kind uint16, do func(nested []byte)) {
	eachAttribute(b, func(a []byte) {
		if native.Uint16(a[2:])&^unix.NLA_F_NESTED == kind {
			do(a[unix.SizeofNlAttr:])
		}
	})
}

// unknown is the first of four numbers of rtnetlink that no kernel has: NEW, DEL, GET, SET.
const unknown = 1020

// requests are messages of rtnetlink by their numbers, if which, if any, takes them.
func requests(which func(message) bool, numbers ...uint16) Part {
	return Part{protocol: unix.NETLINK_ROUTE, change: func(m message) bool {
		if !slices.Contains(numbers, m.number()) || which != nil && !which(m) {
			return false
		}
		m.renumber(unknown + m.number()&3)
		return true
	}}
}

// named is a part that a message names by an attribute of type 1, as all kinds of links,
// qdiscs, filters and actions, and the expressions of nftables are.
func named(protocol int, name string) Part {
	attribute := func(name string) []byte {
		head := native.AppendUint16(native.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(name)+1)), 1)
		return append(append(head, name...), 0)
	}
	is, none := attribute(name), attribute("x"+name[1:])
	return Part{protocol: protocol, change: func(m message) (changed bool) {
		for at := bytes.Index(m, is); at >= 0; at = bytes.Index(m, is) {
			copy(m[at:], none)
			changed = true
		}
		return changed
	}}
}

// Parts of rtnetlink, of sockets, and of links.
var (
	StrictChecks   = option(unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK)
	IgnoreOutgoing = option(unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING)
	AltNames       = requests(nil, unix.RTM_NEWLINKPROP, unix.RTM_DELLINKPROP)
	NeighbourGet   = requests(func(m message) bool { return !m.dump() }, unix.RTM_GETNEIGH)
	PolicyRules    = requests(nil, unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_GETRULE)
	PacketSockets  = Part{number: unix.SYS_SOCKET, arguments: map[uint32]int{0: unix.AF_PACKET}, errno: unix.EAFNOSUPPORT}
	// IPv6NextHops are those of IPv4 routes. Kernels from 5.0 on refuse them by EINVAL,
	// as this one does a next hop of a family that there is not.
	IPv6NextHops = Part{protocol: unix.NETLINK_ROUTE, change: func(m message) (changed bool) {
		if m.number() != unix.RTM_NEWROUTE || len(m.body()) == 0 || m.body()[0] != unix.AF_INET {
			return false
		}
		m.eachAttribute(unix.SizeofRtMsg, func(a []byte) {
			if native.Uint16(a[2:]) == unix.RTA_VIA {
				native.PutUint16(a[unix.SizeofNlAttr:], 0xff)
				changed = true
			}
		})
		return changed
	}}
	// LinkModes are those by which links get their IPv6 addresses (IFLA_INET6_ADDR_GEN_MODE).
	// Older kernels leave them out where they leave out the statistics.
	LinkModes = Part{protocol: unix.NETLINK_ROUTE, answer: func(m message) (changed bool) {
		const statistics, mode = 3, 8
		if m.number() != unix.RTM_NEWLINK || len(m.body()) < unix.SizeofIfInfomsg {
			return false
		}
		eachIn(m.body()[unix.SizeofIfInfomsg:], unix.IFLA_AF_SPEC, func(families []byte) {
			eachIn(families, unix.AF_INET6, func(of []byte) {
				has := false
				eachIn(of, statistics, func([]byte) { has = true })
				eachAttribute(of, func(a []byte) {
					if native.Uint16(a[2:]) == mode && !has {
						native.PutUint16(a[2:], 0x1fff)
						changed = true
					}
				})
			})
		})
		return changed
	}}
	Veth   = named(unix.NETLINK_ROUTE, "veth")
	Mirred = named(unix.NETLINK_ROUTE, "mirred")
	// IPv6 are requests about it. A kernel that has none lists other families in its place.
	// What the proc file system and listings of all families show is another matter.
	IPv6 = Part{protocol: unix.NETLINK_ROUTE, change: func(m message) bool {
		about := []uint16{unix.RTM_NEWADDR, unix.RTM_NEWROUTE, unix.RTM_NEWRULE, unix.RTM_NEWNEIGH}
		if len(m.body()) == 0 || m.body()[0] != unix.AF_INET6 || !slices.Contains(about, m.number()&^3) {
			return false
		}
		if m.dump() && m.number()&3 == unix.RTM_GETLINK&3 {
			m.body()[0] = unix.AF_INET
		} else {
			m.renumber(unknown + m.number()&3)
		}
		return true
	}}
)

// noSubsystem and noFamily are numbers that no part of nfnetlink, and no tables of
// nftables, have.
const noSubsystem, noFamily = 14, unix.AF_DECnet

// subsystem is a part of nfnetlink.
func subsystem(n uint16) Part {
	return Part{protocol: unix.NETLINK_NETFILTER, change: func(m message) bool {
		b := m.body()
		batch := m.number() == unix.NFNL_MSG_BATCH_BEGIN && len(b) >= 4 && binary.BigEndian.Uint16(b[2:]) == n
		switch {
		case batch:
			binary.BigEndian.PutUint16(b[2:], noSubsystem)
		case m.number()>>8 == n:
			m.renumber(noSubsystem<<8 | m.number()&0xff)
		default:
			return false
		}
		return true
	}}
}

// tables are those of one family.
func tables(family byte) Part {
	return Part{protocol: unix.NETLINK_NETFILTER, change: func(m message) bool {
		if m.number()>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.body()) == 0 || m.body()[0] != family {
			return false
		}
		m.body()[0] = noFamily
		return true
	}}
}

// Parts of netfilter.
var (
	Netfilter   = Part{number: unix.SYS_SOCKET, arguments: map[uint32]int{0: unix.AF_NETLINK, 2: unix.NETLINK_NETFILTER}, errno: unix.EPROTONOSUPPORT}
	NFTables    = subsystem(unix.NFNL_SUBSYS_NFTABLES)
	PacketLog   = subsystem(unix.NFNL_SUBSYS_ULOG)
	InetTables  = tables(unix.NFPROTO_INET)
	ARPTables   = tables(unix.NFPROTO_ARP)
	FIBLookups  = named(unix.NETLINK_NETFILTER, "fib")
	Limits      = named(unix.NETLINK_NETFILTER, "limit")
	Counters    = named(unix.NETLINK_NETFILTER, "counter")
	LogRules    = named(unix.NETLINK_NETFILTER, "log")
	SetCounters = Part{protocol: unix.NETLINK_NETFILTER, change: func(m message) (changed bool) {
		if m.number() != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSET {
			return false
		}
		const attrSetExpr = 17 // NFTA_SET_EXPR. An older kernel passes over what it does not know.
		m.eachAttribute(4, func(a []byte) {
			if native.Uint16(a[2:])&^unix.NLA_F_NESTED == attrSetExpr {
				native.PutUint16(a[2:], 0x1fff)
				changed = true
			}
		})
		return changed
	}}
)
