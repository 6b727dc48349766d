package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
)

// reflectorMetrics reads the reflector for one scrape.
func reflectorMetrics(r *reflector.Reflector, log *slog.Logger) metricsOf {
	return func(ctx context.Context) scraped {
		now := prometheus.NewRegistry()
		now.MustRegister(read(ctx, r, log))
		return scraped{Gatherer: now}
	}
}

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vmfabric_reflector_"+name, help, labels, nil)
}

var (
	sessionUp  = metric("session_up", "Whether the session with the peer is established.", "peer", "address", "role")
	received   = metric("received_prefixes", "Prefixes that the peer sent, taken or not.", "peer", "address", "family")
	accepted   = metric("accepted_prefixes", "Prefixes of the peer that the policy let pass.", "peer", "address", "family")
	advertised = metric("advertised_prefixes", "Prefixes sent to the peer.", "peer", "address", "family")
	routes     = metric("routes", "Prefixes that the reflector has taken.", "family")
)

// reading has a reflector's answers for one scrape.
type reading struct {
	peers  []reflector.Peer
	routes map[string]uint64 // by family
	err    error
}

func read(ctx context.Context, r *reflector.Reflector, log *slog.Logger) reading {
	peers, err := r.Peers(ctx)
	if err != nil {
		log.Warn("metrics not read", "err", err)
		return reading{err: err}
	}
	now := reading{peers: peers, routes: map[string]uint64{}}
	for family, v6 := range map[string]bool{"ipv4": false, "ipv6": true} {
		if n, err := r.Routes(ctx, v6); err == nil {
			now.routes[family] = n
		}
	}
	return now
}

// Describe implements [prometheus.Collector].
func (reading) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sessionUp, received, accepted, advertised, routes} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (now reading) Collect(ch chan<- prometheus.Metric) {
	if now.err != nil {
		ch <- prometheus.NewInvalidMetric(sessionUp, now.err)
		return
	}
	gauge := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for _, p := range now.peers {
		var up uint64
		if p.State == "established" {
			up = 1
		}
		gauge(sessionUp, up, p.Peer, p.Address, p.Role)
		for family, n := range map[string]reflector.Counts{"ipv4": p.IPv4, "ipv6": p.IPv6} {
			gauge(received, n.Received, p.Peer, p.Address, family)
			gauge(accepted, n.Accepted, p.Peer, p.Address, family)
			gauge(advertised, n.Advertised, p.Peer, p.Address, family)
		}
	}
	for family, n := range now.routes {
		gauge(routes, n, family)
	}
}

var _ prometheus.Collector = reading{}
