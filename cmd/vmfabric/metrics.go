package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// metricsOf reads a program for one scrape.
type metricsOf func(ctx context.Context) scraped

// scraped is what a program says at one scrape.
type scraped struct {
	prometheus.Gatherer
	many manyMetrics // tens of thousands of others, none of which Gatherer has; nil: there are none
}

// manyMetrics write themselves as text, which takes a fraction of the time that the
// encoder takes, and of the memory.
type manyMetrics interface {
	prometheus.Gatherer
	writeText(w io.Writer) error
}

// allOf gathers from several that have no metric in common. It does not compare them, as
// [prometheus.Gatherers] does: with thousands of guests that takes longer than all else.
type allOf []prometheus.Gatherer

// Gather implements [prometheus.Gatherer].
func (gs allOf) Gather() (all []*dto.MetricFamily, err error) {
	for _, g := range gs {
		families, failed := g.Gather()
		all, err = append(all, families...), errors.Join(err, failed)
	}
	slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return all, err
}

// listenMetrics opens the port of the metrics; nil if the user asked for none.
func listenMetrics(address, otherwise string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	if host, port, err := net.SplitHostPort(address); err != nil || port == "" || host == "" {
		return nil, usageError{fmt.Errorf("--metrics: %q is not an address and a port; write %s", address, otherwise)}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w; give --metrics an address of this machine and a free port", err)
	}
	return l, nil
}

// serveMetrics answers scrapes until ctx ends, and closes the listener.
func serveMetrics(ctx context.Context, l net.Listener, of metricsOf, log *slog.Logger) error {
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
		now := of(req.Context())
		gather, text := allOf{process, now}, expfmt.NegotiateAccept(req.Header, expfmt.DefaultAcceptedFormats()...).FormatType() == expfmt.TypeTextPlain
		if now.many != nil && !text {
			gather = append(gather, now.many)
		}
		families, err := gather.Gather()
		if err != nil {
			http.Error(w, "metrics: "+err.Error(), http.StatusInternalServerError)
			return
		}
		// Compressing the metrics of thousands of guests takes longer than all else.
		all := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, nil })
		promhttp.HandlerFor(all, promhttp.HandlerOpts{DisableCompression: true}).ServeHTTP(w, req)
		if now.many != nil && text {
			if err := now.many.writeText(w); err != nil {
				log.Debug("a scrape ended early", "err", err)
			}
		}
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
