package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/vmfabric/vmfabric/fabric"
)

// measured is a node's agent and its dataplane, as the metrics read them.
type measured struct {
	node       string
	status     func(ctx context.Context) (fabric.Status, error)
	statistics func(ctx context.Context) fabric.Statistics
	requests   func() []fabric.RequestCount
	drops      func(ctx context.Context) (map[string][]fabric.Drops, error)
	traffic    func(ctx context.Context) ([]fabric.Traffic, error)
	log        *slog.Logger
}

// metrics reads the node for one scrape.
func (m measured) metrics(ctx context.Context) scraped {
	now := prometheus.NewRegistry()
	prometheus.WrapRegistererWith(prometheus.Labels{"node": m.node}, now).MustRegister(m.read(ctx))
	traffic, err := m.traffic(ctx)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		m.log.Warn("traffic as it was when it was last known", "err", err)
	}
	return scraped{now, trafficMetrics{m.node, traffic}}
}

func (m measured) read(ctx context.Context) nodeReading {
	now := nodeReading{statistics: m.statistics(ctx), requests: m.requests()}
	var err error
	if now.status, err = m.status(ctx); err != nil {
		m.log.Warn("metrics incomplete", "err", err)
	}
	if now.drops, err = m.drops(ctx); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		m.log.Warn("metrics incomplete", "err", err)
	}
	return now
}

func nodeMetric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vmfabric_"+name, help, labels, nil)
}

// The metrics of a node, but for the traffic of guests. Each has the label node besides.
var (
	nodeHealthy     = nodeMetric("healthy", "Whether the node has no problems.")
	nodeProblems    = nodeMetric("problems", "Problems that the status of the node lists.")
	nodeDraining    = nodeMetric("draining", "Whether the node is being drained.")
	nodeGuests      = nodeMetric("guests", "Guests of the node by condition: wired, live, arriving, leaving; those in trouble are counted a second time.", "condition")
	nodePorts       = nodeMetric("ports", "Ports of the node by state: wired, live.", "state")
	nodeSession     = nodeMetric("session_up", "Whether the BGP session with the reflector is established.", "peer", "address")
	nodeAdvertised  = nodeMetric("session_advertised_prefixes", "Prefixes sent to the reflector.", "peer", "address")
	nodeAnnounced   = nodeMetric("announcements", "Routes that the node announces.", "family")
	nodeAttach      = nodeMetric("attach_seconds", "Time from a request until the guest has its network, of requests that succeeded.")
	nodeAttachError = nodeMetric("attach_errors_total", "Requests to bring a guest up that were refused or failed.", "reason")
	nodeRepairs     = nodeMetric("repairs_total", "Repairs of what was not as wanted, by kind.", "kind")
	nodeMoves       = nodeMetric("moves_total", "Moves to the node (in), from it (out), and those that failed.", "kind")
	nodeGap         = nodeMetric("move_gap_seconds", "Time in which a guest that moved to the node ran nowhere, by the clocks of both nodes.")
	nodeResent      = nodeMetric("move_resent_packets", "Packets that waited for a guest which left the node, and were sent again to where it went.")
	nodeDiversions  = nodeMetric("diversions", "Guests whose packets the node sends on to another node now.")
	nodeSource      = nodeMetric("source_connected", "Whether the agent is connected to the hypervisor.", "source")
	nodeRegistry    = nodeMetric("registry_healthy", "Whether the registry of addresses has no problems.", "kind")
	nodeDropped     = nodeMetric("dropped_packets_total", "Packets from the port or to it that the node dropped, by reason.", "port", "reason")
	nodeRequests    = nodeMetric("guest_requests_total", "Requests of guests for their configuration, by protocol and outcome: answered, refused.", "protocol", "outcome")
)

var nodeMetrics = []*prometheus.Desc{
	nodeHealthy, nodeProblems, nodeDraining, nodeGuests, nodePorts, nodeSession, nodeAdvertised, nodeAnnounced, nodeAttach, nodeAttachError,
	nodeRepairs, nodeMoves, nodeGap, nodeResent, nodeDiversions, nodeSource, nodeRegistry, nodeDropped, nodeRequests,
}

// nodeReading has a node's answers for one scrape.
type nodeReading struct {
	status     fabric.Status
	statistics fabric.Statistics
	requests   []fabric.RequestCount
	drops      map[string][]fabric.Drops
}

// Describe implements [prometheus.Collector].
func (nodeReading) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range nodeMetrics {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (now nodeReading) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	st, counted := now.status, now.statistics
	gauge(nodeHealthy, flag(st.Healthy))
	gauge(nodeProblems, float64(len(st.Problems)))
	gauge(nodeDraining, flag(st.Draining))
	for _, c := range fabric.GuestConditions() {
		gauge(nodeGuests, float64(counted.Guests[c]), string(c))
	}
	gauge(nodePorts, float64(st.Live), fabric.Live.String())
	gauge(nodePorts, float64(st.Ports-st.Live), fabric.Wired.String())
	for _, s := range st.Sessions {
		gauge(nodeSession, flag(s.State == "established"), s.Peer, s.Address)
		gauge(nodeAdvertised, float64(s.Advertised), s.Peer, s.Address)
	}
	for _, s := range st.Sources {
		gauge(nodeSource, flag(s.Connected), s.Name)
	}
	under := 0
	for _, d := range st.Diversions {
		if d.Ended.IsZero() {
			under++
		}
	}
	gauge(nodeDiversions, float64(under))
	if r := st.Registry; r != nil {
		gauge(nodeRegistry, flag(r.Healthy), r.Kind)
	}
	if counted.Announcements != nil {
		for _, f := range []fabric.Family{fabric.IPv4, fabric.IPv6} {
			gauge(nodeAnnounced, float64(counted.Announcements[f]), string(f))
		}
	}
	counter(nodeAttachError, counted.AttachRefused, "refused")
	counter(nodeAttachError, counted.AttachFailed, "failed")
	for _, k := range fabric.RepairKinds() {
		counter(nodeRepairs, counted.Repairs[k], string(k))
	}
	for _, k := range fabric.MoveKinds() {
		counter(nodeMoves, counted.Moves[k], string(k))
	}
	for d, h := range map[*prometheus.Desc]fabric.Histogram{nodeAttach: counted.Attach, nodeGap: counted.MoveGap, nodeResent: counted.MoveResent} {
		ch <- histogram(d, h)
	}
	for port, drops := range now.drops {
		for _, d := range drops {
			counter(nodeDropped, d.Packets, port, string(d.Reason))
		}
	}
	for _, r := range now.requests {
		counter(nodeRequests, r.Answered, string(r.Protocol), "answered")
		counter(nodeRequests, r.Refused, string(r.Protocol), "refused")
	}
}

var _ prometheus.Collector = nodeReading{}

func flag(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func histogram(d *prometheus.Desc, h fabric.Histogram) prometheus.Metric {
	upTo, all := map[float64]uint64{}, uint64(0)
	for i, n := range h.Counts {
		all += n
		if i < len(h.Bounds) {
			upTo[h.Bounds[i]] = all
		}
	}
	return prometheus.MustNewConstHistogram(d, all, h.Sum, upTo)
}

// The names of the metrics of traffic.
const (
	guestBytes   = "vmfabric_guest_bytes_total"
	guestPackets = "vmfabric_guest_packets_total"
)

var trafficHelp = map[string]string{
	guestBytes:   "Bytes that the node has forwarded for the guest, from the IP header on, by address, direction as the guest sees it, and whether the other end is in the cluster. A guest's total is the sum over all nodes.",
	guestPackets: "Packets that the node has forwarded for the guest, likewise.",
}

// trafficMetrics are the metrics of the traffic of guests, without the checks of a
// registry: there are eight for each address of a guest.
type trafficMetrics struct {
	node    string
	traffic []fabric.Traffic
}

// trafficCounter is one of the four that an address has, with its labels.
type trafficCounter struct {
	direction, scope string
	of               func(*fabric.Traffic) fabric.Count
}

// trafficCounters are in the order of their labels.
var trafficCounters = []trafficCounter{
	{"received", "external", func(t *fabric.Traffic) fabric.Count { return t.Received.External }},
	{"received", "internal", func(t *fabric.Traffic) fabric.Count { return t.Received.Internal }},
	{"sent", "external", func(t *fabric.Traffic) fabric.Count { return t.Sent.External }},
	{"sent", "internal", func(t *fabric.Traffic) fabric.Count { return t.Sent.Internal }},
}

// trafficUnits are the two metrics.
var trafficUnits = []struct {
	name string
	of   func(fabric.Count) uint64
}{
	{guestBytes, func(c fabric.Count) uint64 { return c.Bytes }},
	{guestPackets, func(c fabric.Count) uint64 { return c.Packets }},
}

// Gather implements [prometheus.Gatherer].
func (m trafficMetrics) Gather() ([]*dto.MetricFamily, error) {
	if len(m.traffic) == 0 {
		return nil, nil
	}
	pair := func(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
	on, kind := pair("node", m.node), dto.MetricType_COUNTER
	families := make([]*dto.MetricFamily, 0, len(trafficUnits))
	for _, unit := range trafficUnits {
		name, help := unit.name, trafficHelp[unit.name]
		f := &dto.MetricFamily{Name: &name, Help: &help, Type: &kind, Metric: make([]*dto.Metric, 0, len(trafficCounters)*len(m.traffic))}
		for _, t := range m.traffic {
			address, vm := pair("address", addressLabel(t)), pair("vm", t.VM)
			for _, c := range trafficCounters {
				v := float64(unit.of(c.of(&t)))
				labels := []*dto.LabelPair{address, pair("direction", c.direction), on, pair("scope", c.scope), vm}
				f.Metric = append(f.Metric, &dto.Metric{Label: labels, Counter: &dto.Counter{Value: &v}})
			}
		}
		families = append(families, f)
	}
	return families, nil
}

// writeText writes what Gather gives in the text format of Prometheus
// (prometheus.io/docs/instrumenting/exposition_formats).
func (m trafficMetrics) writeText(w io.Writer) error {
	if len(m.traffic) == 0 {
		return nil
	}
	const part = 32 << 10 // bytes that are written at once
	text := make([]byte, 0, part+4096)
	var address, vm []byte
	between := make([][]byte, len(trafficCounters)) // the labels that no guest has of its own
	for i, c := range trafficCounters {
		between[i] = appendLabel(appendLabel(appendLabel([]byte{','}, "direction", c.direction, ','), "node", m.node, ','), "scope", c.scope, ',')
	}
	for _, unit := range trafficUnits {
		text = fmt.Appendf(text, "# HELP %s %s\n# TYPE %[1]s counter\n", unit.name, trafficHelp[unit.name])
		for i := range m.traffic {
			t := &m.traffic[i]
			address = appendLabel(append(append(address[:0], unit.name...), '{'), "address", addressLabel(*t))
			vm = appendLabel(vm[:0], "vm", t.VM, '}', ' ')
			for j, c := range trafficCounters {
				text = append(append(append(text, address...), between[j]...), vm...)
				text = append(strconv.AppendUint(text, unit.of(c.of(t)), 10), '\n')
			}
			if len(text) >= part {
				if _, err := w.Write(text); err != nil {
					return err
				}
				text = text[:0]
			}
		}
	}
	_, err := w.Write(text)
	return err
}

// escapes are those of the text format in the value of a label.
var escapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// appendLabel appends a label with its value, and what comes then.
func appendLabel(text []byte, name, value string, then ...byte) []byte {
	if strings.ContainsAny(value, "\\\n\"") {
		value = escapes.Replace(value)
	}
	text = append(append(text, name...), '=', '"')
	return append(append(append(text, value...), '"'), then...)
}

// addressLabel is an address, or the prefix that is routed to the guest.
func addressLabel(t fabric.Traffic) string {
	if t.Prefix.IsSingleIP() {
		return t.Prefix.Addr().String()
	}
	return t.Prefix.String()
}
