package kernel_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/testenv/conformance"
	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// TestConformance runs the dataplane's laws on the real kernel, in the network
// namespace of this test.
func TestConformance(t *testing.T) {
	conformance.Dataplane(t, func(t *testing.T) (fabric.Dataplane, conformance.Controls) {
		underlay(t)
		d := newFor(t, conformance.ClusterName)
		last := d
		t.Cleanup(func() {
			require.NoError(t, last.Close())
			sweep(t)
		})
		holders := map[string]*os.File{}
		t.Cleanup(func() {
			for _, f := range holders {
				f.Close()
			}
		})
		return d, conformance.Controls{
			Again: func(t *testing.T) fabric.Dataplane {
				require.NoError(t, last.Close()) // one agent runs at a time
				last = newFor(t, conformance.ClusterName)
				return last
			},
			Guest: &conformance.Guest{
				Send: func(t *testing.T, port string, frame []byte) {
					_, err := holders[port].Write(frame)
					require.NoError(t, err)
				},
				Received: func(t *testing.T, port string) [][]byte { return waiting(t, holders[port]) },
			},
			Mover: &conformance.Mover{
				Other: fabric.Node{Name: "node2", Address: node2[true], Address6: node2[false]},
				Hear:  func(t *testing.T, p fabric.Port) { speak(t, p.Name, p.NIC.MAC) },
				Say: func(t *testing.T, p fabric.Port, from netip.Addr) {
					_, err := holders[p.Name].Write(packetFrom(p.NIC.MAC, from))
					require.NoError(t, err)
				},
			},
			Breaker: conformance.Breaker{
				AddLink: func(t *testing.T, name string) {
					require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Flags: 1}, PeerName: "x" + name[1:]}))
					require.NoError(t, netlink.LinkSetUp(link(t, name)))
				},
				HasForeign: func(_ *testing.T, name string) bool {
					l, err := netlink.LinkByName(name)
					return err == nil && l.Attrs().Alias == ""
				},
				DelLink: func(t *testing.T, name string) { require.NoError(t, netlink.LinkDel(link(t, name))) },
				SetDown: func(t *testing.T, name string) { require.NoError(t, netlink.LinkSetDown(link(t, name))) },
				DelAddress: func(t *testing.T, port string, gateway netip.Addr) {
					all, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link(t, port), netlink.FAMILY_ALL) })
					require.NoError(t, err)
					for _, a := range all {
						if a.IP.Equal(gateway.AsSlice()) {
							require.NoError(t, netlink.AddrDel(link(t, port), &a))
							return
						}
					}
					require.Fail(t, "no such address", "%s on %s", gateway, port)
				},
				DelRoute: func(t *testing.T, port string, p netip.Prefix) {
					delRoute := func(more ...string) ([]byte, error) {
						return exec.Command("ip", append([]string{map[bool]string{true: "-4", false: "-6"}[p.Addr().Is4()], "route", "del", p.String(), "dev", port}, more...)...).CombinedOutput()
					}
					out, err := delRoute()
					if err != nil {
						out, err = delRoute("table", fmt.Sprint(fabric.ArrivingTable))
					}
					require.NoError(t, err, string(out))
				},
				SetCarrier: func(t *testing.T, port string, up bool) { setCarrier(t, holders, port, up) },
			},
		}
	})
}

// waiting reads the frames that wait in a tap.
func waiting(t *testing.T, tap *os.File) (frames [][]byte) {
	t.Helper()
	fd := int(tap.Fd())
	require.NoError(t, unix.SetNonblock(fd, true))
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return frames
		}
		require.NoError(t, err)
		frames = append(frames, slices.Clone(buf[:n]))
	}
}

// speak sends a reverse ARP request (RFC 903) into a tap, as QEMU does for its guest.
func speak(t *testing.T, name string, mac fabric.MAC) {
	t.Helper()
	tap := hold(t, name, 0)
	defer tap.Close()
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac[:]...)
	frame = append(frame, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3)
	_, err := tap.Write(append(frame, make([]byte, 32)...))
	require.NoError(t, err)
}

func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err, name)
	return l
}

// setCarrier opens or closes the other end of a port: a tap's file, or a
// veth's peer.
func setCarrier(t *testing.T, holders map[string]*os.File, port string, up bool) {
	t.Helper()
	l := link(t, port)
	if v, ok := l.(*netlink.Veth); ok {
		i, err := netlink.VethPeerIndex(v)
		require.NoError(t, err)
		peer, err := netlink.LinkByIndex(i)
		require.NoError(t, err)
		if up {
			require.NoError(t, netlink.LinkSetUp(peer))
		} else {
			require.NoError(t, netlink.LinkSetDown(peer))
		}
		return
	}
	if !up {
		if f := holders[port]; f != nil {
			require.NoError(t, f.Close())
			delete(holders, port)
		}
		return
	}
	holders[port] = hold(t, port, 0)
}

// hold opens a tap as a hypervisor does.
func hold(t *testing.T, name string, flags uint16) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	require.NoError(t, err)
	ifr, err := unix.NewIfreq(name)
	require.NoError(t, err)
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
	require.NoError(t, unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr))
	return f
}

// dump repeats a listing that the kernel interrupted because what it lists
// changed meanwhile.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for {
		found, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
}

// sweep removes every link but the loopback.
func sweep(t testing.TB) {
	t.Helper()
	labtest.Long(t)
	links, err := dump(func() ([]netlink.Link, error) { return netlink.LinkList() })
	require.NoError(t, err)
	for _, l := range links {
		if l.Attrs().Name != "lo" && (l.Type() == "tuntap" || l.Type() == "veth") {
			_ = netlink.LinkDel(l) // the other end of a pair has gone already
		}
	}
}
