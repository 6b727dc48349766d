package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmfabric/vmfabric/internal/packets"
)

// errTooLarge says that a machine answers small packets, and no large ones.
var errTooLarge = errors.New("large packets get lost")

// pingFor is how long an answer may take. Each size is sent twice.
const pingFor = time.Second

// each calls f for 0 to n-1 at the same time, and waits.
func each(n int, f func(int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// pathTakes sends echo requests of up to size bytes that nobody may fragment. It
// returns errTooLarge if only small ones are answered, and nil if the machine answers
// none: many do not.
func pathTakes(ctx context.Context, from, to netip.Addr, size int) error {
	network, header := "ip4:icmp", 20
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if to.Is6() {
		network, header = "ip6:ipv6-icmp", 40
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	whole := func(_, _ string, c syscall.RawConn) error { // fragment nothing, whatever the kernel has learned of the path
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_PROBE))
		}), err)
	}
	conn, err := (&net.ListenConfig{Control: whole}).ListenPacket(ctx, network, from.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	id := uint16(rand.IntN(1 << 16))
	const small, large = 0, 1
	for range 2 {
		for kind, bytes := range []int{small: 64, large: size} {
			body := make([]byte, bytes-header-8)
			binary.BigEndian.PutUint16(body, id)
			if _, err := conn.WriteTo(packets.Echo(to, to, id, uint16(kind), body), &net.IPAddr{IP: to.AsSlice()}); err != nil {
				return fmt.Errorf("send: %w", errors.Unwrap(err))
			}
		}
	}
	answered := [2]bool{}
	if err := conn.SetReadDeadline(time.Now().Add(pingFor)); err != nil {
		return err
	}
	for buf := make([]byte, 1<<16); !answered[large]; {
		n, source, err := conn.ReadFrom(buf)
		if err != nil {
			break // the time is over
		}
		of, kind, reply := packets.IsReply(to.Is6(), buf[:n])
		if reply && of == id && kind <= large && source.String() == to.String() {
			answered[kind] = true
		}
	}
	if ctx.Err() == nil && answered[small] && !answered[large] {
		return errTooLarge
	}
	return ctx.Err()
}
