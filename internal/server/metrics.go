package server

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connected  prometheus.Gauge
	refused    *prometheus.CounterVec // streams, by reason
	pushes     *prometheus.CounterVec // by type
	bytes      *prometheus.CounterVec // by type
	nacks      *prometheus.CounterVec // by type
	acked      *prometheus.HistogramVec
	invalid    prometheus.Counter
	turnedAway prometheus.Counter     // connections
	signed     *prometheus.CounterVec // by outcome and reason
}

func newMetrics(registry prometheus.Registerer) metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "outrigger_proxies_connected",
			Help: "Proxies with an open xDS stream to this replica.",
		}),
		refused: counter("outrigger_xds_streams_refused_total", "xDS streams that were refused, by reason.", "reason"),
		pushes:  counter("outrigger_xds_pushes_total", "Responses sent to proxies, by type of resource.", "type"),
		bytes:   counter("outrigger_xds_push_bytes_total", "Bytes of resources sent to proxies, by type of resource.", "type"),
		nacks:   counter("outrigger_xds_nacks_total", "Responses that proxies refused, by type of resource.", "type"),
		acked: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "outrigger_xds_ack_seconds",
			Help:    "Time from a new snapshot to a proxy's acknowledgement, by type of resource.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"type"}),
		invalid: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "outrigger_xds_invalid_total",
			Help: "Configurations that Envoy would refuse and that were therefore not sent.",
		}),
		turnedAway: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "outrigger_connections_refused_total",
			Help: "Connections that were closed because there were too many without a client certificate, of one address or in all.",
		}),
		signed: counter("outrigger_signing_requests_total", "Requests for certificates, by outcome and reason of refusal.", "outcome", "reason"),
	}
	registry.MustRegister(m.connected, m.refused, m.pushes, m.bytes, m.nacks, m.acked, m.invalid, m.turnedAway, m.signed)
	return m
}
