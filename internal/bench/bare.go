package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/lab/core"
	"golang.org/x/sys/unix"
)

// bareGroup is the interface group of bare ports, for their common removal.
const bareGroup = 77

// bare makes ports on a node with the fewest system calls that the kernel needs. It
// leaves out everything that makes them safe or recognisable: marks, settings, a
// look at existing links.
type bare struct {
	node    *core.Host
	gateway fabric.Gateway
	// peer makes the guest's addresses the peer addresses of the port. From these
	// the kernel makes the routes, and BIRD's protocol direct reads them.
	peer  bool
	fd    int
	index map[string]uint32
}

func newBare(node *core.Host, gateway fabric.Gateway) (*bare, error) {
	b := &bare{node: node, gateway: gateway, index: map[string]uint32{}}
	err := node.Do(func() (err error) {
		b.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("rtnetlink of %s: %w", node.Name(), err)
	}
	return b, nil
}

func (b *bare) close() error { return unix.Close(b.fd) }

// add makes a guest's port and routes, and returns when it began and how long it
// took.
func (b *bare) add(g guest) (x span, err error) {
	err = b.node.Do(func() error {
		began := time.Now()
		if err := newTap(g.port()); err != nil {
			return err
		}
		index, err := b.indexOf(g.port())
		if err != nil {
			return err
		}
		b.index[g.name] = index
		err = b.batch(append(b.setUp(index), b.addresses(unix.RTM_NEWADDR, netlink.Create|netlink.Excl, index, g)...)...)
		x = since(began)
		return err
	})
	if err != nil {
		return x, fmt.Errorf("bare port %s: %w", g.port(), err)
	}
	return x, nil
}

// unroute takes a guest's routes away.
func (b *bare) unroute(g guest) (span, error) {
	index := b.index[g.name]
	var msgs []netlink.Message
	if b.peer {
		msgs = b.addresses(unix.RTM_DELADDR, 0, index, g)
	} else {
		msgs = b.routes(unix.RTM_DELROUTE, 0, index, g)
	}
	began := time.Now()
	err := b.batch(msgs...)
	return since(began), err
}

// remove removes one port.
func (b *bare) remove(g guest) error {
	index := b.index[g.name]
	delete(b.index, g.name)
	return b.batch(request(unix.RTM_DELLINK, 0, linkHead(index, 0), nil))
}

// removeAll removes all ports at once.
func (b *bare) removeAll() error {
	clear(b.index)
	err := b.batch(request(unix.RTM_DELLINK, 0, linkHead(0, 0), func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_GROUP, bareGroup)
	}))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil // there were none
	}
	return err
}

// newTap makes a persistent tap in the namespace of the calling thread.
func newTap(name string) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1)
}

// indexOf asks for a link's index. Kernels since 6.8 then also process that the tap
// lost its carrier when it was closed. Once the link is up, that would cost a walk
// over all IPv6 routes.
func (b *bare) indexOf(name string) (uint32, error) {
	answer, err := b.exchange(1, request(unix.RTM_GETLINK, 0, linkHead(0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	}))
	if err != nil {
		return 0, err
	}
	if len(answer) < 8 {
		return 0, fmt.Errorf("rtnetlink: an answer of %d bytes", len(answer))
	}
	return binary.NativeEndian.Uint32(answer[4:]), nil
}

// setUp returns the messages that make a link a port that is up. There are two: the
// kernel announces a change of a link that is up (NETDEV_CHANGE), which without
// carrier costs that walk again.
func (b *bare) setUp(index uint32) []netlink.Message {
	return []netlink.Message{
		request(unix.RTM_SETLINK, 0, linkHead(index, 0), func(ae *netlink.AttributeEncoder) {
			ae.Bytes(unix.IFLA_ADDRESS, b.gateway.MAC[:])
			ae.Uint32(unix.IFLA_GROUP, bareGroup)
		}),
		request(unix.RTM_SETLINK, 0, linkHead(index, unix.IFF_UP), nil),
	}
}

// addresses returns the messages for the gateway's addresses on a port, and, but
// for peers, for the routes to the guest.
func (b *bare) addresses(typ netlink.HeaderType, flags netlink.HeaderFlags, index uint32, g guest) []netlink.Message {
	if b.peer {
		// BIRD leaves link-local addresses out, so the port has another.
		return []netlink.Message{
			addrRequest(typ, flags, index, b.gateway.IPv4, fabric.HostPrefix(g.a4)),
			addrRequest(typ, flags, index, peerGateway6, fabric.HostPrefix(g.a6)),
		}
	}
	return append([]netlink.Message{
		addrRequest(typ, flags, index, b.gateway.IPv4, fabric.HostPrefix(b.gateway.IPv4)),
		addrRequest(typ, flags, index, b.gateway.IPv6, netip.PrefixFrom(b.gateway.IPv6, 64)),
	}, b.routes(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, index, g)...)
}

var peerGateway6 = netip.MustParseAddr("fd00:10:20::1")

func (b *bare) routes(typ netlink.HeaderType, flags netlink.HeaderFlags, index uint32, g guest) []netlink.Message {
	var msgs []netlink.Message
	for _, p := range g.prefixes() {
		head := make([]byte, unix.SizeofRtMsg)
		head[0], head[1] = family(p.Addr()), byte(p.Bits())
		head[4], head[5], head[7] = unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RTN_UNICAST
		if p.Addr().Is4() {
			head[6] = unix.RT_SCOPE_LINK
		}
		msgs = append(msgs, request(typ, flags, head, func(ae *netlink.AttributeEncoder) {
			ae.Bytes(unix.RTA_DST, p.Addr().AsSlice())
			ae.Uint32(unix.RTA_OIF, index)
		}))
	}
	return msgs
}

// batch sends requests in one system call and waits for their acknowledgements.
func (b *bare) batch(msgs ...netlink.Message) error {
	for i := range msgs {
		msgs[i].Header.Flags |= netlink.Acknowledge
	}
	_, err := b.exchange(len(msgs), msgs...)
	return err
}

// exchange sends requests in one system call and reads so many answers, without
// Go's poller: the kernel has answered by the time the call returns. It returns the
// body of the last answer, and the first error.
func (b *bare) exchange(answers int, msgs ...netlink.Message) (body []byte, err error) {
	var out []byte
	for _, m := range msgs {
		m.Header.Length = uint32(unix.SizeofNlMsghdr + len(m.Data))
		bytes, err := m.MarshalBinary()
		if err != nil {
			return nil, err
		}
		out = append(out, bytes...)
	}
	if err := unix.Sendto(b.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8192)
	for range answers {
		n, _, rerr := unix.Recvfrom(b.fd, buf, 0)
		if rerr != nil {
			return nil, rerr
		}
		if n < unix.SizeofNlMsghdr+4 {
			return nil, fmt.Errorf("rtnetlink: an answer of %d bytes", n)
		}
		body = buf[unix.SizeofNlMsghdr:n]
		if binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			continue
		}
		if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
			err = cmp.Or[error](err, unix.Errno(errno))
		}
	}
	return body, err
}

func addrRequest(typ netlink.HeaderType, flags netlink.HeaderFlags, index uint32, local netip.Addr, to netip.Prefix) netlink.Message {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0], head[1] = family(local), byte(to.Bits())
	binary.NativeEndian.PutUint32(head[4:], index)
	return request(typ, flags, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_LOCAL, local.AsSlice())
		ae.Bytes(unix.IFA_ADDRESS, to.Addr().AsSlice())
		if local.Is6() {
			ae.Uint32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
		}
	})
}

// linkHead makes the fixed header of a link's message, which sets flags.
func linkHead(index, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags)
	return b
}

func request(typ netlink.HeaderType, flags netlink.HeaderFlags, head []byte, attrs func(*netlink.AttributeEncoder)) netlink.Message {
	ae := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(ae)
	}
	body, err := ae.Encode()
	if err != nil {
		panic(err) // all attributes are made here
	}
	return netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
		Data:   append(head, body...),
	}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
