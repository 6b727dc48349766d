package kernel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/fabric"
	"github.com/vmfabric/vmfabric/fabric/kernel/internal/rtnl"
)

// underlay is the network between the cluster's machines.
type underlay struct {
	rtnl     *socket
	machines addressList // of the others
}

func newUnderlay(s *socket, machines []netip.Addr) *underlay {
	u := &underlay{rtnl: s}
	u.machines.set(machines)
	return u
}

// addressList has addresses of the configuration, which may be another one later. It is
// safe for concurrent use; the zero value has none.
type addressList struct{ p atomic.Pointer[[]netip.Addr] }

func (a *addressList) set(all []netip.Addr) { a.p.Store(&all) }

func (a *addressList) get() []netip.Addr {
	if all := a.p.Load(); all != nil {
		return *all
	}
	return nil
}

// links returns the names of the links by which the kernel now reaches the
// cluster's other machines.
func (u *underlay) links() ([]string, error) {
	indexes := map[int32]bool{}
	for _, a := range u.machines.get() {
		replies, err := u.rtnl.Do(routeRequest(a, routeMatch))
		if err != nil {
			if rtnl.Errno(err) == 0 {
				return nil, err
			}
			continue // no route to that machine
		}
		for _, reply := range replies {
			for _, index := range routeLinks(reply.Data) {
				indexes[index] = true
			}
		}
	}
	var names []string
	for index := range indexes {
		l, err := u.rtnl.linkByIndex(index)
		if err != nil {
			continue // gone meanwhile
		}
		if _, _, _, ours := fabric.ParseAlias(l.alias); !ours && l.flags&unix.IFF_LOOPBACK == 0 {
			names = append(names, l.name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// routeLinks lists the links of a route; there are several if it has several paths.
func routeLinks(data []byte) []int32 {
	if len(data) < unix.SizeofRtMsg {
		return nil
	}
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofRtMsg:])
	if err != nil {
		return nil
	}
	links := map[int32]bool{}
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_OIF:
			links[int32(ad.Uint32())] = true
		case unix.RTA_MULTIPATH:
			// A list of struct rtnexthop: length, flags, hops, index of the link.
			for b := ad.Bytes(); len(b) >= unix.SizeofRtNexthop; {
				links[int32(nativeUint32(b[4:]))] = true
				n := (int(nativeUint16(b)) + 3) &^ 3
				b = b[min(len(b), max(n, unix.SizeofRtNexthop)):]
			}
		}
	}
	return slices.SortedFunc(maps.Keys(links), cmp.Compare)
}
