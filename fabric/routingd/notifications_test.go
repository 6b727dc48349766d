package routingd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vmfabric/vmfabric/fabric"
)

// TestSessionsHaveWhatWasFollowed: a NOTIFICATION that was followed stays known
// when a session says none, and gives way to one that was not.
func TestSessionsHaveWhatWasFollowed(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	followed := fabric.NewNotification(false, 6, 2, "planned work", at)
	other := fabric.NewNotification(true, 2, 2, "", time.Time{})
	for _, rr := range cluster.Reflectors {
		for name, tc := range map[string]struct{ says, want *fabric.Notification }{
			"nothing":  {nil, followed},
			"the same": {fabric.NewNotification(false, 6, 2, "planned work", time.Time{}), followed},
			"another":  {other, other},
		} {
			one := session(rr.Address.String(), "active", 0, 0)
			one.Notification = tc.says
			s := over(&client{sessions: []fabric.Session{one}})
			s.last.note("to_somebody", followed)
			s.last.note("to_somebody_else", other)
			got, err := s.Sessions(t.Context())
			require.NoError(t, err)
			require.Len(t, got, 1)
			assert.Equal(t, rr.Name, got[0].Peer)
			assert.Equal(t, tc.want, got[0].Notification, "%s, it says %s", rr.Name, name)
		}
	}
}

// TestFollowsAgain: a daemon that is not there is tried later and later, and
// soon again after one that was there for long.
func TestFollowsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := time.Now()
		s := over(&client{sessions: []fabric.Session{session("10.10.0.11", "idle", 0, 0)}})
		var tried []time.Duration
		s.cfg.Follow = func(ctx context.Context, emit func(string, *fabric.Notification)) error {
			tried = append(tried, time.Since(began)/time.Second)
			switch len(tried) {
			case 4:
				emit("to_somebody", fabric.NewNotification(true, 4, 0, "", time.Now()))
				time.Sleep(time.Minute)
			case 7:
				<-ctx.Done()
				return nil
			}
			return errors.New("it does not run")
		}
		ended := make(chan struct{})
		go func() { s.follow(ctx); close(ended) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Equal(t, []time.Duration{0, 1, 3, 7, 68, 70, 74}, tried)
		all, err := s.Sessions(ctx)
		require.NoError(t, err)
		assert.Equal(t, began.Add(7*time.Second), all[0].Notification.At)
		cancel()
		<-ended
	})
}
