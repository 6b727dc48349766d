package doctor

import (
	"cmp"
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

// pingFor is how long an answer may take. Each size is sent twice, and twice again where
// small ones alone are answered: a busy machine loses some.
const (
	pingFor = time.Second
	rounds  = 2
)

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
	for round := range uint16(rounds) {
		small := 2 * round
		for range 2 {
			for i, bytes := range []int{64, size} {
				body := make([]byte, bytes-header-8)
				binary.BigEndian.PutUint16(body, id)
				if _, err := conn.WriteTo(packets.Echo(to, to, id, small+uint16(i), body), &net.IPAddr{IP: to.AsSlice()}); err != nil {
					return fmt.Errorf("send: %w", errors.Unwrap(err))
				}
			}
		}
		answered, err := answers(conn, to, id, small)
		if err != nil || ctx.Err() != nil || answered != onlySmall {
			return cmp.Or(ctx.Err(), err)
		}
	}
	return errTooLarge
}

// answered says which of a round's echo requests were answered.
type answered int

const (
	none answered = iota
	onlySmall
	anyLarge
)

// answers reads answers to echo requests with that id, until a large one is answered, one with
// an odd number, or the time is over. Of the small ones, those with the number small count.
func answers(conn net.PacketConn, to netip.Addr, id, small uint16) (got answered, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(pingFor)); err != nil {
		return none, err
	}
	for buf := make([]byte, 1<<16); ; {
		n, source, err := conn.ReadFrom(buf)
		if err != nil {
			return got, nil // the time is over
		}
		of, number, reply := packets.IsReply(to.Is6(), buf[:n])
		switch {
		case !reply || of != id || number > small+1 || source.String() != to.String():
		case number%2 == 1:
			return anyLarge, nil
		case number == small:
			got = onlySmall
		}
	}
}
