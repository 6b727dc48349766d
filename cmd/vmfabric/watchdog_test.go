package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestKeepAlive: an agent that answers gives three signs of life in an interval, and one
// that does not gives none.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var signs atomic.Int32
		stuck := make(chan struct{})
		ask := func() {
			if signs.Load() == 7 {
				<-stuck
			}
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			keepAlive(ctx, 30*time.Second, ask, func() { signs.Add(1) })
		}()
		time.Sleep(31 * time.Second)
		assert.EqualValues(t, 4, signs.Load())
		time.Sleep(time.Hour)
		assert.EqualValues(t, 7, signs.Load())
		cancel()
		<-ended
		close(stuck)
	})
	keepAlive(t.Context(), 0, func() { t.Error("asked") }, func() { t.Error("told") }) // without a watchdog
}

// TestWatchdogOfSystemd: what systemd sets is understood, and the sign of life is what it
// waits for.
func TestWatchdogOfSystemd(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	assert.Zero(t, watchdogInterval(log))
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	assert.Equal(t, 30*time.Second, watchdogInterval(log))
	notify(log, daemon.SdNotifyWatchdog)
	b := make([]byte, 100)
	n, err := socket.Read(b)
	require.NoError(t, err)
	assert.Equal(t, "WATCHDOG=1", string(b[:n]))
	t.Setenv("WATCHDOG_PID", "1")
	assert.Zero(t, watchdogInterval(log), "another process's")
}
