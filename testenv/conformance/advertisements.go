package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// speakerAdvertisements checks a speaker's advertisements, if it supports them:
// each prefix is reported as sent once it is announced, and as not sent once it is
// withdrawn.
func speakerAdvertisements(t *testing.T, s fabric.Speaker, c SpeakerControls) {
	if _, err := s.Advertisements(t.Context(), both[0]); errors.Is(err, errors.ErrUnsupported) {
		return
	}
	sent := func(p netip.Prefix, want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s was sent: %v", p, want), func() bool {
			all, err := s.Advertisements(t.Context(), p)
			require.NoError(t, err)
			require.NotEmpty(t, all)
			return !slices.ContainsFunc(all, func(a fabric.Advertisement) bool {
				assert.NotEmpty(t, a.Peer)
				return a.Sent != want
			})
		})
	}
	c.prepare(t, both)
	require.NoError(t, s.Put(t.Context(), routes(both[:1])...))
	sent(both[0], true)
	sent(both[1], false)
	require.NoError(t, s.Put(t.Context(), routes(both[1:])...))
	sent(both[1], true)
	require.NoError(t, s.Remove(t.Context(), both[0]))
	sent(both[0], false)
	sent(both[1], true)
	require.NoError(t, s.Remove(t.Context(), both...))
	sent(both[1], false)
}
