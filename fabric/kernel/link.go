package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/capture"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// Constants of <linux/if_link.h>, <linux/ip.h> and <linux/ipv6.h> that x/sys
// does not have.
const (
	extFilterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS

	inetConf        = 1 // IFLA_INET_CONF
	inet6Conf       = 2 // IFLA_INET6_CONF
	inet6GenMode    = 8 // IFLA_INET6_ADDR_GEN_MODE
	genModeNone     = 1 // IN6_ADDR_GEN_MODE_NONE
	tunMultiQueue   = 7 // IFLA_TUN_MULTI_QUEUE
	vethPeer        = 1 // VETH_INFO_PEER
	routeProtocol   = fabric.Protocol
	lowerUp         = 1 << 16 // IFF_LOWER_UP
	txQueueLength   = 1000    // packets; the kernel's default
	devconfForward4 = 1       // IPV4_DEVCONF_*
	devconfProxyARP = 3
	devconfAccRedir = 4
	devconfSndRedir = 6
	devconfRPFilter = 8
	devconfAccSrcRt = 9
	devconfForward6 = 0 // DEVCONF_*
	devconfAcceptRA = 3
	devconfAccRed6  = 4
	devconfProxyNDP = 22
	devconfDisable6 = 26
	devconfSegments = 44
	devconfRPLRoute = 51
	devconfAcceptNA = 57
)

// link is a network interface as RTM_NEWLINK describes it.
type link struct {
	index      int32
	name       string
	alias      string
	kind       string // IFLA_INFO_KIND: "tun", "veth", ...
	multiQueue bool
	flags      uint32
	hardware   uint16 // ARPHRD_*
	queue      uint32 // packets (IFLA_TXQLEN)
	mac        fabric.MAC
	mtu        uint32
	group      uint32
	master     uint32
	peer       uint32 // IFLA_LINK: of a veth, the index of its other end
	abroad     bool   // the other end is in another network namespace
	conf4      []byte // int32s: IPV4_DEVCONF_* from 1 on
	conf6      []byte // int32s: DEVCONF_* from 0 on; empty without IPv6
	genMode    uint8  // IN6_ADDR_GEN_MODE_*
	hasGenMode bool   // the kernel gave it
}

func (l link) up() bool      { return l.flags&unix.IFF_UP != 0 }
func (l link) carrier() bool { return l.flags&lowerUp != 0 }

// conf returns an IPv4 or IPv6 device setting, and whether the kernel gave it.
func (l link) conf(s setting) (int32, bool) {
	b, i := l.conf6, s.id
	if s.family == unix.AF_INET {
		b, i = l.conf4, s.id-1
	}
	if len(b) < 4*(i+1) {
		return 0, false
	}
	return int32(binary.NativeEndian.Uint32(b[4*i:])), true
}

func parseLink(data []byte) (link, error) {
	if len(data) < unix.SizeofIfInfomsg {
		return link{}, errors.New("rtnetlink: short link message")
	}
	l := link{
		index: int32(binary.NativeEndian.Uint32(data[4:])),
		flags: binary.NativeEndian.Uint32(data[8:]), hardware: binary.NativeEndian.Uint16(data[2:]),
	}
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return link{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case unix.IFLA_IFALIAS:
			l.alias = ad.String()
		case unix.IFLA_ADDRESS:
			if b := ad.Bytes(); len(b) == 6 {
				l.mac = fabric.MAC(b)
			}
		case unix.IFLA_TXQLEN:
			l.queue = ad.Uint32()
		case unix.IFLA_MTU:
			l.mtu = ad.Uint32()
		case unix.IFLA_GROUP:
			l.group = ad.Uint32()
		case unix.IFLA_MASTER:
			l.master = ad.Uint32()
		case unix.IFLA_LINK:
			l.peer = ad.Uint32()
		case unix.IFLA_LINK_NETNSID:
			l.abroad = true
		case unix.IFLA_LINKINFO:
			ad.Nested(l.parseInfo)
		case unix.IFLA_AF_SPEC:
			ad.Nested(l.parseSpec)
		}
	}
	return l, ad.Err()
}

func (l *link) parseInfo(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_INFO_KIND:
			l.kind = ad.String()
		case unix.IFLA_INFO_DATA:
			if l.kind != "tun" {
				continue
			}
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == tunMultiQueue {
						l.multiQueue = ad.Uint8() != 0
					}
				}
				return nil
			})
		}
	}
	return nil
}

func (l *link) parseSpec(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch family := ad.Type(); family {
		case unix.AF_INET, unix.AF_INET6:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch {
					case family == unix.AF_INET && ad.Type() == inetConf:
						l.conf4 = ad.Bytes()
					case family == unix.AF_INET6 && ad.Type() == inet6Conf:
						l.conf6 = ad.Bytes()
					case family == unix.AF_INET6 && ad.Type() == inet6GenMode:
						l.genMode, l.hasGenMode = ad.Uint8(), true
					}
				}
				return nil
			})
		}
	}
	return nil
}

// linkByName asks the kernel for one link. The error is os.ErrNotExist if there is
// none.
func (r *socket) linkByName(name string) (link, error) {
	return r.link(rtnl.IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) { ae.String(unix.IFLA_IFNAME, name) })
}

func (r *socket) linkByIndex(index int32) (link, error) {
	return r.link(rtnl.IfInfoMsg(index, 0, 0), nil)
}

// link asks without the statistics, which take the kernel most of its time. Some kernels
// leave the address generation mode out together with them, so that the link seems to
// have the default mode. They are asked once more, and with the statistics from then on.
func (r *socket) link(head []byte, attrs func(*netlink.AttributeEncoder)) (link, error) {
	if !r.withStats.Load() {
		l, err := r.linkWith(head, attrs, extFilterSkipStats)
		if err != nil || len(l.conf6) == 0 || l.hasGenMode {
			return l, err
		}
		r.withStats.Store(true)
	}
	return r.linkWith(head, attrs, 0)
}

func (r *socket) linkWith(head []byte, attrs func(*netlink.AttributeEncoder), filter uint32) (link, error) {
	replies, err := r.Do(rtnl.Message(unix.RTM_GETLINK, 0, head, func(ae *netlink.AttributeEncoder) {
		if attrs != nil {
			attrs(ae)
		}
		ae.Uint32(unix.IFLA_EXT_MASK, filter)
	}))
	if rtnl.Errno(err) == unix.ENODEV {
		return link{}, os.ErrNotExist
	}
	if err != nil {
		return link{}, err
	}
	if len(replies) == 0 {
		return link{}, errors.New("rtnetlink: no reply about a link")
	}
	return parseLink(replies[0].Data)
}

// counts returns the counts of the frames that went into a link.
func (r *socket) counts(index int32) (c capture.Counts, err error) {
	const sent, dropped, size = 8, 56, 64 // in struct rtnl_link_stats64
	replies, err := r.Do(rtnl.Message(unix.RTM_GETLINK, 0, rtnl.IfInfoMsg(index, 0, 0), nil))
	if err != nil {
		return c, err
	}
	for _, reply := range replies {
		if len(reply.Data) < unix.SizeofIfInfomsg {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(reply.Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return c, err
		}
		for ad.Next() {
			if b := ad.Bytes(); ad.Type() == unix.IFLA_STATS64 && len(b) >= size {
				return capture.Counts{Sent: binary.NativeEndian.Uint64(b[sent:]), Dropped: binary.NativeEndian.Uint64(b[dropped:])}, nil
			}
		}
	}
	return c, errors.New("rtnetlink: a link without counts")
}

// addVeth makes a veth pair. Its host end is in the ports' group from the first
// moment, so that the dataplane recognises a half-made one.
func (r *socket) addVeth(name, peer string, mac fabric.MAC, mtu int, queue uint32) error {
	_, err := r.Do(rtnl.Message(unix.RTM_NEWLINK, netlink.Acknowledge|netlink.Create|netlink.Excl, rtnl.IfInfoMsg(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
		ae.Bytes(unix.IFLA_ADDRESS, mac[:])
		ae.Uint32(unix.IFLA_GROUP, fabric.LinkGroup)
		ae.Uint32(unix.IFLA_TXQLEN, queue)
		if mtu != 0 {
			ae.Uint32(unix.IFLA_MTU, uint32(mtu))
		}
		ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
			ae.String(unix.IFLA_INFO_KIND, "veth")
			ae.Nested(unix.IFLA_INFO_DATA, func(ae *netlink.AttributeEncoder) error {
				ae.Do(vethPeer, func() ([]byte, error) {
					p := netlink.NewAttributeEncoder()
					p.String(unix.IFLA_IFNAME, peer)
					if mtu != 0 {
						p.Uint32(unix.IFLA_MTU, uint32(mtu))
					}
					b, err := p.Encode()
					return append(rtnl.IfInfoMsg(0, 0, 0), b...), err
				})
				return nil
			})
			return nil
		})
	}))
	if rtnl.Errno(err) == unix.EEXIST {
		return fmt.Errorf("a link named %s or %s is there already; remove it: ip link del %s", name, peer, peer)
	}
	return err
}

// addAltName gives a link an alternative name, if the kernel has these (altNames).
func (r *socket) addAltName(index int32, name string) error {
	_, err := r.Do(rtnl.Message(unix.RTM_NEWLINKPROP, netlink.Acknowledge|netlink.Create|netlink.Append|netlink.Excl, rtnl.IfInfoMsg(index, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Nested(unix.IFLA_PROP_LIST, func(ae *netlink.AttributeEncoder) error {
			ae.String(unix.IFLA_ALT_IFNAME, name)
			return nil
		})
	}))
	return err
}

// addTap makes a tap that stays when nobody holds it
// (Documentation/networking/tuntap). Until mark has returned, the tap would go with
// this process, so no unmarked tap is ever left behind. The error is [os.ErrExist]
// if there is a link of that name.
func addTap(name string, multiQueue bool, mark func() error) error {
	fd, err := openTun()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if multiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err {
	case nil:
	case unix.EBUSY, unix.EINVAL: // a tun device has the name, or another link
		return fmt.Errorf("make tap: %w (%w)", os.ErrExist, err)
	default:
		return fmt.Errorf("make tap: %w", err)
	}
	if err := mark(); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make tap persistent: %w", err)
	}
	return nil
}
