package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vmfabric/vmfabric/fabric/gobgp/reflector"
)

// listenMetrics opens the port of the metrics, nil where none is asked for.
func listenMetrics(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	if host, port, err := net.SplitHostPort(address); err != nil || port == "" || host == "" {
		return nil, usageError{fmt.Errorf("--metrics: %q is not an address and a port; write 127.0.0.1:9179 or [::1]:9179", address)}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w; give --metrics an address of this machine and a free port", err)
	}
	return l, nil
}

// serveMetrics answers scrapes until ctx ends, and closes the listener.
func serveMetrics(ctx context.Context, l net.Listener, r *reflector.Reflector, log *slog.Logger) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		reflectorCollector{r, log},
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
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

// reflectorCollector asks the reflector at each scrape.
type reflectorCollector struct {
	*reflector.Reflector
	log *slog.Logger
}

// Describe implements [prometheus.Collector].
func (c reflectorCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sessionUp, received, accepted, advertised, routes} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c reflectorCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	peers, err := c.Peers(context.Background())
	if err != nil {
		c.log.Warn("metrics not read", "err", err)
		ch <- prometheus.NewInvalidMetric(sessionUp, err)
		return
	}
	for _, p := range peers {
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
	for family, v6 := range map[string]bool{"ipv4": false, "ipv6": true} {
		if n, err := c.Routes(context.Background(), v6); err == nil {
			gauge(routes, n, family)
		}
	}
}

var _ prometheus.Collector = reflectorCollector{}
