package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
)

// checksummed reports whether the UDP or TCP checksum of an IP packet without
// options is right.
func checksummed(p []byte) bool {
	var pseudo, body []byte
	var proto byte
	if p[0]>>4 == 4 {
		body, pseudo, proto = p[20:binary.BigEndian.Uint16(p[2:])], p[12:20], p[9]
	} else {
		body, pseudo, proto = p[40:40+int(binary.BigEndian.Uint16(p[4:]))], p[8:40], p[6]
	}
	sum := uint32(proto) + uint32(len(body))
	for _, b := range [][]byte{pseudo, body} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
}

// TestReplayBare: over a link whose frames have no header, and with checksums
// that the sender had left to its link.
func TestReplayBare(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		require.NoError(t, d.Put(t.Context(), p))
		known(t, p)
		plug(t, nil, p.Name)
		tun := openTun(t)
		require.NoError(t, d.Record(t.Context(), p.Name, true))
		from := listenUDP(t, lab.core, client[v4])
		const count = 30
		for i := range count {
			_, err := from.WriteToUDPAddrPort([]byte(strings.Repeat("x", 10+i)), netip.AddrPortFrom(guestAddr[v4], 9))
			require.NoError(t, err)
		}
		time.Sleep(20 * time.Millisecond)
		done, err := d.Divert(t.Context(), []fabric.Port{p}, fabric.Node{
			Name: "tunnelled", Address: netip.MustParseAddr("10.30.0.2"), Address6: netip.MustParseAddr("fd00:30::2"),
		})
		require.NoError(t, err)
		assert.Equal(t, count, done.Resent)
		buf := make([]byte, 1<<16)
		require.NoError(t, tun.SetReadDeadline(time.Now().Add(20*time.Second)))
		for i := 0; i < count; {
			n, err := tun.Read(buf)
			require.NoError(t, err, "%d came", i)
			proto := buf[6]
			if v4 {
				proto = buf[9]
			}
			if proto != unix.IPPROTO_UDP || (buf[0]>>4 == 4) != v4 {
				continue // of the kernel's own
			}
			header := map[bool]int{true: 28, false: 48}[v4]
			assert.Len(t, buf[:n], header+10+i, "in their order")
			assert.True(t, checksummed(buf[:n]))
			i++
		}
		require.NoError(t, d.Return(t.Context(), p.NIC.Prefixes()...))
		require.NoError(t, d.Remove(t.Context(), p.Name))
	})
}

// openTun makes a tun link of the node's, 10.30.0.1/30 and fd00:30::1/64.
func openTun(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	ifr, err := unix.NewIfreq("tun9")
	require.NoError(t, err)
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	f := os.NewFile(uintptr(fd), "tun9")
	t.Cleanup(func() { f.Close() })
	ipIn(t, nil, "link set tun9 up", "addr add 10.30.0.1/30 dev tun9", "addr add fd00:30::1/64 dev tun9 nodad")
	require.Eventually(t, func() bool { return link(t, "tun9").Attrs().OperState != netlink.OperDown }, 20*time.Second, 5*time.Millisecond)
	time.Sleep(20 * time.Millisecond)
	return f
}

// withoutOffload has a link checksum and cut what it sends.
func withoutOffload(t *testing.T, name string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for _, cmd := range []uint32{0x17, 0x1f, 0x24} { // ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO
		value := [2]uint32{cmd, 0}
		var ifr struct {
			name  [unix.IFNAMSIZ]byte
			value *[2]uint32
			_     [16]byte
		}
		copy(ifr.name[:], name)
		ifr.value = &value
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
		require.Zero(t, errno)
	}
}

// guestSpace is a guest with a TCP of its own, between a veth of the node's and
// one of the other node's, of which it hears one at a time.
func guestSpace(t *testing.T, lab *moveLab, p fabric.Port) *space {
	t.Helper()
	g := newSpace(t)
	at := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(g.handle))
	mac := p.NIC.MAC.String()
	ipIn(t, nil, "link set web_peer0 address "+mac, "link set web_peer0 netns "+at)
	ipIn(t, lab.other, "link add "+p.Name+" type veth peer name other0 netns "+at,
		"link set "+p.Name+" address "+p.Gateway.MAC.String()+" up", "addr add 169.254.1.1/32 dev "+p.Name, "addr add fe80::1/64 dev "+p.Name+" nodad")
	ipIn(t, g, "link set lo up", "link set web_peer0 up", "link set other0 address "+mac+" up")
	for _, a := range p.NIC.Addresses {
		ipIn(t, lab.other, "neigh replace "+a.String()+" lladdr "+mac+" dev "+p.Name, "route add "+fabric.HostPrefix(a).String()+" dev "+p.Name)
		ipIn(t, g, "addr add "+fabric.HostPrefix(a).String()+" dev lo")
	}
	for _, dev := range []string{"web_peer0", "other0"} {
		ipIn(t, g, "neigh replace 169.254.1.1 lladdr "+p.Gateway.MAC.String()+" dev "+dev, "neigh replace fe80::1 lladdr "+p.Gateway.MAC.String()+" dev "+dev)
	}
	for _, family := range []string{"inet", "inet6"} {
		rules(t, g, family, "rule add pref 10 lookup local", "rule del pref 0")
	}
	speaksThrough(t, g, "web_peer0")
	return g
}

func rules(t *testing.T, s *space, family string, commands ...string) {
	t.Helper()
	for _, c := range commands {
		c := c
		require.NoError(t, within(s, func() error {
			out, err := execIP(append([]string{"-f", family}, strings.Fields(c)...)...)
			if err != nil {
				return fmt.Errorf("%s: %w: %s", c, err, out)
			}
			return nil
		}))
	}
}

func speaksThrough(t *testing.T, g *space, dev string) {
	t.Helper()
	ipIn(t, g, "route replace default via 169.254.1.1 dev "+dev+" onlink", "route replace ::/0 via fe80::1 dev "+dev)
}

// connects opens a connection from a client to a guest, and gives both of its ends.
func connects(t *testing.T, from, to *space, v4 bool) (conn, peer net.Conn) {
	t.Helper()
	var server net.Listener
	require.NoError(t, within(to, func() (err error) {
		server, err = net.Listen("tcp", netip.AddrPortFrom(guestAddr[v4], 80).String())
		return err
	}))
	t.Cleanup(func() { _ = server.Close() })
	require.NoError(t, within(from, func() (err error) {
		dialer := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: client[v4].AsSlice()}}
		conn, err = dialer.Dial("tcp", netip.AddrPortFrom(guestAddr[v4], 80).String())
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	peer, err := server.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = peer.Close() })
	require.NoError(t, peer.SetDeadline(time.Now().Add(60*time.Second)))
	require.NoError(t, conn.SetDeadline(time.Now().Add(60*time.Second)))
	return conn, peer
}

// TestReplayTCP: the segments of a connection that were under way when its guest
// stopped, of 64 KiB each and without a checksum, arrive cut and checksummed.
func TestReplayTCP(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		lab := newMoveLab(t)
		d := open(t)
		p := movePort("web", fabric.NIC{Kind: fabric.Veth, Addresses: []netip.Addr{guestAddr[true], guestAddr[false]}})
		require.NoError(t, d.Put(t.Context(), p))
		g := guestSpace(t, lab, p)
		known(t, p)
		withoutOffload(t, "up0")
		require.NoError(t, d.Record(t.Context(), p.Name, true))

		conn, peer := connects(t, lab.core, g, v4)
		var received atomic.Int64
		var stop atomic.Bool
		var running sync.WaitGroup
		var sent int64
		running.Go(func() {
			block := make([]byte, 1<<18)
			for !stop.Load() {
				fill(block, sent)
				n, err := conn.Write(block)
				sent += int64(n)
				if !assert.NoError(t, err) {
					return
				}
			}
			assert.NoError(t, conn.(*net.TCPConn).CloseWrite())
		})
		running.Go(func() {
			block, want := make([]byte, 1<<18), make([]byte, 1<<18)
			for {
				n, err := peer.Read(block)
				fill(want[:n], received.Load())
				if !assert.True(t, string(want[:n]) == string(block[:n]), "what comes is what was sent") {
					return
				}
				received.Add(int64(n))
				if errors.Is(err, io.EOF) {
					return
				}
				if !assert.NoError(t, err) {
					return
				}
			}
		})
		atLeast(t, &received, 8<<20)

		seen := watchTCP(t, lab.other)
		for _, family := range []string{"inet", "inet6"} {
			rules(t, g, family, "rule add pref 1 iif web_peer0 blackhole")
		}
		speaksThrough(t, g, "other0")
		time.Sleep(10 * time.Millisecond)
		done, err := d.Divert(t.Context(), []fabric.Port{p}, otherNode)
		require.NoError(t, err)
		atLeast(t, &received, received.Load()+8<<20)
		stop.Store(true)
		running.Wait()
		assert.Equal(t, sent, received.Load())
		segments, wrong, long := seen()
		t.Logf("%d frames sent again, %d segments came, %d bytes in all", done.Resent, segments, sent)
		assert.Positive(t, done.Resent)
		assert.Greater(t, segments, done.Resent)
		assert.Zero(t, wrong, "checksums")
		assert.Zero(t, long, "longer than the link allows")
	})
}

func atLeast(t *testing.T, n *atomic.Int64, want int64) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); n.Load() < want; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(end), "%d of %d bytes came", n.Load(), want)
	}
}

// fill writes what a stream has at an offset.
func fill(b []byte, at int64) {
	for i := range b {
		n := at + int64(i)
		b[i] = byte(n ^ n>>8 ^ n>>16)
	}
}

// watchTCP looks at the first TCP segments that come in at a node.
func watchTCP(t *testing.T, s *space) (seen func() (segments, wrong, long int)) {
	t.Helper()
	var f *os.File
	require.NoError(t, within(s, func() error {
		l, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		f = os.NewFile(uintptr(fd), "watch")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	}))
	return func() (segments, wrong, long int) {
		defer f.Close()
		raw, err := f.SyscallConn()
		require.NoError(t, err)
		buf := make([]byte, 1<<17)
		require.NoError(t, raw.Control(func(fd uintptr) {
			for {
				n, from, err := unix.Recvfrom(int(fd), buf, 0)
				if err != nil {
					return
				}
				ip := buf[14:n]
				isTCP := len(ip) > 40 && (ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_TCP || ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_TCP)
				if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype != unix.PACKET_HOST || !isTCP {
					continue
				}
				segments++
				if !checksummed(ip) {
					wrong++
				}
				if n > 1514 {
					long++
				}
			}
		}))
		return segments, wrong, long
	}
}
