package probe

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// TestRequest compares requests with those of another implementation.
func TestRequest(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"203.0.113.10", "2001:db8:100::10"} {
		a := netip.MustParseAddr(to)
		for _, seq := range []int{0, 1, 70_000} {
			m := newRequest(a, 0xbeef, seq)
			proto := 1
			if a.Is6() {
				proto = 58
			}
			got, err := icmp.ParseMessage(proto, m.body)
			assert.NoError(t, err)
			echo := got.Body.(*icmp.Echo)
			assert.Equal(t, 0xbeef, echo.ID)
			assert.Equal(t, seq&0xffff, echo.Seq)
			again, pseudo := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: echo}, []byte(nil)
			if a.Is6() {
				again.Type, pseudo = ipv6.ICMPTypeEchoRequest, icmp.IPv6PseudoHeader(a.AsSlice(), a.AsSlice())
			}
			b, err := again.Marshal(pseudo)
			assert.NoError(t, err)
			assert.Equal(t, b, m.body)
		}
	}
}

func FuzzMessage(f *testing.F) {
	header4 := append([]byte{0x45}, make([]byte, 19)...)
	for _, to := range []string{"203.0.113.10", "2001:db8:100::10"} {
		a := netip.MustParseAddr(to)
		m := newRequest(a, 7, 3)
		whole, quoted := m.body, append(make([]byte, 40), m.body...)
		refusal := append([]byte{unreachable6}, make([]byte, 7)...)
		if a.Is4() {
			whole, quoted = append(header4[:20:20], m.body...), append(header4[:20:20], m.body...)
			refusal = append(header4[:20:20], append([]byte{unreachable4}, make([]byte, 7)...)...)
		}
		f.Add(a.Is6(), whole)
		f.Add(a.Is6(), append(refusal, quoted...))
	}
	f.Add(false, []byte{0x4f})
	f.Fuzz(func(t *testing.T, six bool, b []byte) {
		m, ok := parse(six, b)
		if !ok {
			return
		}
		m.data()
		if m.isRefusal() && len(m.data()) < 28 {
			assert.Zero(t, m.about())
		}
		m.about()
	})
}
