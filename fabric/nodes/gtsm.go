package nodes

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hopLimit is the TTL or hop limit of a packet that came through no router (RFC
// 5082).
const hopLimit = 255

// sendsNear makes a socket send with the highest TTL.
func sendsNear(network, _ string, c syscall.RawConn) error {
	return control(c, "TTL", func(fd int) error {
		if strings.HasSuffix(network, "6") {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hopLimit)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hopLimit)
	})
}

// hearsNear makes a listener drop packets with a lower TTL, from the first one on.
// A calling socket must not do so: it needs the reset of a peer that has lost the
// connection, and the peer's kernel sends that with its default TTL.
func hearsNear(network, address string, c syscall.RawConn) error {
	return errors.Join(sendsNear(network, address, c), control(c, "minimal TTL", func(fd int) error {
		if strings.HasSuffix(network, "6") {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, hopLimit)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, hopLimit)
	}))
}

func control(c syscall.RawConn, what string, f func(fd int) error) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = os.NewSyscallError("set "+what, f(int(fd))) }), err)
}
