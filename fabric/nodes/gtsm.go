package nodes

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hopLimit is what a packet has that came through no router (RFC 5082).
const hopLimit = 255

// sendsNear has a socket send with the highest TTL.
func sendsNear(network, _ string, c syscall.RawConn) error {
	return control(c, "TTL", func(fd int) error {
		if strings.HasSuffix(network, "6") {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hopLimit)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hopLimit)
	})
}

// hearsNear has a listener drop, from the first packet on, what was sent with a
// lower one. Only a listener: who calls must hear the reset of a peer that has
// no such connection any more, which its kernel sends with its default TTL.
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
