package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// watchdogInterval returns how long systemd waits for a sign of life; zero: it waits
// for none.
func watchdogInterval(log *slog.Logger) time.Duration {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not told that the agent lives", "err", err)
	}
	return interval
}

// keepAlive gives signs of life, three in each interval, until ctx ends. Before each it
// asks the agent: one that does not answer any more gives none. systemd then ends it and
// starts it again, which guests do not notice.
func keepAlive(ctx context.Context, interval time.Duration, ask, sign func()) {
	if interval <= 0 {
		return
	}
	ticks := time.NewTicker(interval / 3)
	defer ticks.Stop()
	for {
		answered := make(chan struct{})
		go func() { // it may never end
			defer close(answered)
			ask()
		}()
		select {
		case <-ctx.Done():
			return
		case <-answered:
			sign()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}
