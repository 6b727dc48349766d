package resend

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestRemovals(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	one, two, three := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("2001:db8:100::2/128"), netip.MustParsePrefix("203.0.113.3/32")
	var rs Removals
	rs.Add(now, one)
	rs.Add(now.Add(time.Second), two, one)
	assert.Equal(t, []netip.Prefix{one, two}, rs.Since(now))
	assert.Equal(t, []netip.Prefix{two, one}, rs.Since(now.Add(time.Second)))
	assert.Empty(t, rs.Since(now.Add(time.Minute)))
	rs.Add(now.Add(time.Minute), three)
	assert.Equal(t, []netip.Prefix{three}, rs.Since(now), "the others are forgotten")
}
