package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// metadataPorts are the ports of TCP of which the service takes one: another program
// may serve port 80 on all addresses of the node.
var metadataPorts = []uint16{14780, 14781, 14782, 14783}

const (
	metadataPort = 80 // to which guests connect

	// How many connections are open at a time.
	metadataOfPort = 8
	metadataOfAll  = 256
)

// metadata takes the guests' connections to [fabric.Metadata4] and [fabric.Metadata6],
// TCP port 80, and says of which port each is.
//
// The packet filter gives the packets that come from a port to these addresses a mark
// and another destination port; a rule of that mark leads those to the first address to
// this node. No forwarded packet and no packet of the node itself comes there, and so
// 169.254.169.254 leads the node where it led before. The sockets take no packet without
// the mark, and so nothing from the underlay. The node's packets to a guest get the
// port 80 back. They do not outlive a hop: what a guest forwards to others is lost.
type metadata struct {
	portOf    func(from netip.Addr, index int32) (fabric.Port, bool)
	number    uint16 // the port of TCP; 0: there is no service
	listeners []net.Listener

	mu    sync.Mutex
	open  map[string]int // connections by port
	total int
}

func newMetadata(portOf func(netip.Addr, int32) (fabric.Port, bool)) *metadata {
	return &metadata{portOf: portOf, open: map[string]int{}}
}

// listen opens the sockets. close closes them, also after an error.
func (m *metadata) listen(ctx context.Context, ipv6 bool) (err error) {
	for _, number := range metadataPorts {
		if err = m.listenOn(ctx, number, ipv6); err == nil {
			m.number = number
			return nil
		}
		err = errors.Join(err, m.close())
		m.listeners = nil
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return err
}

func (m *metadata) listenOn(ctx context.Context, number uint16, ipv6 bool) error {
	networks := map[string]netip.Addr{"tcp4": fabric.Metadata4}
	if ipv6 {
		networks["tcp6"] = netip.IPv6Unspecified() // the address is one of every port
	}
	for network, a := range networks {
		lc := net.ListenConfig{Control: controlMetadata}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(ctx, network, netip.AddrPortFrom(a, number).String())
		if err != nil {
			return err
		}
		m.listeners = append(m.listeners, guestListener{l, m})
	}
	return nil
}

// controlMetadata makes a socket one of the service's. What connects to it has the same
// options.
func controlMetadata(network, _ string, c syscall.RawConn) error {
	var err error
	set := func(fd, level, option, value int, name string) {
		err = errors.Join(err, os.NewSyscallError(name, unix.SetsockoptInt(fd, level, option, value)))
	}
	failed := c.Control(func(fd uintptr) {
		if network == "tcp4" {
			set(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1, "setsockopt IP_TRANSPARENT")
			set(int(fd), unix.SOL_IP, unix.IP_TTL, 1, "setsockopt IP_TTL")
		} else {
			set(int(fd), unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, 1, "setsockopt IPV6_UNICAST_HOPS")
		}
		err = errors.Join(err, onlyMarked(int(fd)))
	})
	return errors.Join(failed, err)
}

// onlyMarked has a socket take no packet without the mark.
func onlyMarked(fd int) error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtMark},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: fabric.MetadataMark, SkipFalse: 1},
		bpf.RetConstant{Val: ^uint32(0)},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}))
}

// close closes the sockets. Connections that are open stay so.
func (m *metadata) close() error {
	var errs []error
	for _, l := range m.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) { // its user closes it, too
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// MetadataListeners returns the listeners for guests' connections to the metadata
// service, until the dataplane is closed; none if [fabric.Guests] has no such service,
// or if it does not work here. They close a connection of a guest that is to have no
// metadata, and one too many. [PortOf] says whose a connection is.
func (d *Dataplane) MetadataListeners() []net.Listener { return d.metadata.listeners }

// PortOf returns the port whose guest made a connection. ok is false for a connection
// of no port that this dataplane has put.
func PortOf(c net.Conn) (p fabric.Port, ok bool) {
	g, is := c.(*guestConn)
	if !is || !g.known {
		return fabric.Port{}, false
	}
	return g.port, true
}

type guestListener struct {
	net.Listener
	metadata *metadata
}

// guestConn is a connection of a guest.
type guestConn struct {
	net.Conn
	port  fabric.Port
	known bool
	leave func()
}

// Accept implements [net.Listener].
func (l guestListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g := l.metadata.admit(c); g != nil {
			return g, nil
		}
		_ = c.Close()
	}
}

// Close implements [net.Conn].
func (c *guestConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// admit returns the connection as one of its guest, or nil if the guest is not served.
func (m *metadata) admit(c net.Conn) *guestConn {
	from, index, err := peerOf(c)
	if err != nil {
		return nil // it is closed already
	}
	p, known := m.portOf(from, index)
	if p.NoMetadata || !m.enter(p.Name) {
		return nil
	}
	return &guestConn{Conn: c, port: p, known: known, leave: sync.OnceFunc(func() { m.left(p.Name) })}
}

// enter counts a connection, and reports whether there is room for it. All of unknown
// ports share the room of one.
func (m *metadata) enter(port string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total >= metadataOfAll || m.open[port] >= metadataOfPort {
		return false
	}
	m.total++
	m.open[port]++
	return true
}

func (m *metadata) left(port string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total--
	if m.open[port]--; m.open[port] == 0 {
		delete(m.open, port)
	}
}

// peerOf returns the other end of a connection, and the index of the link of a
// link-local one, of which each link has its own.
func peerOf(c net.Conn) (from netip.Addr, index int32, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return from, 0, err
	}
	failed := raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, err = unix.Getpeername(int(fd)); err != nil {
			return
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			from = netip.AddrFrom4(sa.Addr)
		case *unix.SockaddrInet6:
			from, index = netip.AddrFrom16(sa.Addr), int32(sa.ZoneId)
		}
	})
	return from, index, errors.Join(failed, err)
}

// openMetadata opens the service, if the cluster has one. Without it everything else
// works as ever.
func (d *Dataplane) openMetadata(ctx context.Context, g fabric.Guests) {
	if !g.Metadata {
		return
	}
	if err := d.metadata.listen(ctx, d.host.ipv6); err != nil {
		d.conditions.set("metadata", fmt.Sprintf("guests get no metadata: %v; free one of the TCP ports %d to %d (ss -ltnp), and restart the agent",
			err, metadataPorts[0], metadataPorts[len(metadataPorts)-1]))
		d.log.Warn("metadata service", "err", err)
	}
	if err := d.leadToMetadata(); err != nil {
		d.log.Warn("metadata service", "err", err) // keepRules tries again, and reports it
	}
}

// leadToMetadata makes the rule and the route that lead guests' packets to the service,
// if they are missing.
func (d *Dataplane) leadToMetadata() error {
	if d.metadata.number == 0 {
		return nil
	}
	lead := rule{family: unix.AF_INET, priority: fabric.MetadataRule, mark: fabric.MetadataMark, table: fabric.MetadataTable}
	if err := d.rtnl.ensureRules([]rule{lead}); err != nil {
		return err
	}
	head := rtnl.RtMsg(unix.AF_INET, 32, routeProtocol, unix.RT_SCOPE_HOST, 0)
	head[4], head[7] = fabric.MetadataTable, unix.RTN_LOCAL
	_, err := d.rtnl.Do(rtnl.Message(unix.RTM_NEWROUTE, netlink.Acknowledge|netlink.Create|netlink.Excl, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, fabric.Metadata4.AsSlice())
		ae.Uint32(unix.RTA_OIF, loopbackIndex)
	}))
	if err != nil && rtnl.Errno(err) != unix.EEXIST {
		return fmt.Errorf("route to %s in table %d: %w", fabric.Metadata4, fabric.MetadataTable, err)
	}
	return nil
}
