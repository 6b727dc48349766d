package core

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vmfabric/vmfabric/internal/probe"
)

// Prober sends ICMP echo requests at a steady rate and notes the answers.
type Prober = probe.Prober

// ProbeResult counts the answers to the requests of a [Prober].
type ProbeResult = probe.Result

// Ping sends ICMP echo requests from the host, a tenth of a second apart,
// until one is answered, and gives its round trip time. It fails when ctx ends
// first. The zone of a link-local address is the name of the host's link.
func (h *Host) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	return h.PingFrom(ctx, netip.Addr{}, to)
}

// PingFrom is Ping with a source address of the host's.
func (h *Host) PingFrom(ctx context.Context, from, to netip.Addr) (time.Duration, error) {
	p, err := h.ProbeFrom(from, to, 100*time.Millisecond)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.First():
	case <-ctx.Done():
	}
	r := p.Abandon()
	if r.Received == 0 {
		return 0, fmt.Errorf("ping %s from %s: %d sent, none answered, %d refused (%w)", to, h.name, r.Sent, r.Refused, context.Cause(ctx))
	}
	return r.FirstRTT, nil
}

// Probe starts to send echo requests from the host, one each interval.
func (h *Host) Probe(to netip.Addr, interval time.Duration) (*Prober, error) {
	return h.ProbeFrom(netip.Addr{}, to, interval)
}

// ProbeFrom is Probe with a source address of the host's.
func (h *Host) ProbeFrom(from, to netip.Addr, interval time.Duration) (p *Prober, err error) {
	cfg := probe.Config{From: from, To: to.WithZone(""), Interval: interval}
	if to.Zone() != "" {
		link, err := h.Link(to.Zone())
		if err != nil {
			return nil, fmt.Errorf("ping %s from %s: %w", to, h.name, err)
		}
		cfg.Link = link.Attrs().Index
	}
	err = h.Do(func() (err error) {
		p, err = probe.Start(cfg)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping from %s: %w", h.name, err)
	}
	return p, nil
}
