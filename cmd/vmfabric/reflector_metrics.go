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

// listenMetrics opens the port of the metrics; nil if the user asked for none.
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
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrapes := make(chan struct{}, 2)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		select {
		case scrapes <- struct{}{}:
			defer func() { <-scrapes }()
		default:
			http.Error(w, "others are reading the metrics; try again later", http.StatusServiceUnavailable)
			return
		}
		now := prometheus.NewRegistry()
		now.MustRegister(read(req.Context(), r, log))
		promhttp.HandlerFor(prometheus.Gatherers{process, now}, promhttp.HandlerOpts{}).ServeHTTP(w, req)
	})
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
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
