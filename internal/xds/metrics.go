package xds

import (
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	statsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// statsPrefix begins the names of the mesh's own metrics. Package bootstrap admits
// them.
const statsPrefix = "outrigger"

// modeKey, in the metadata of an endpoint outside the mesh, holds plainMode: what is
// not marked is reached by mutual TLS.
const (
	modeKey   = "tls"
	plainMode = "none"
)

// The label tls is the version of TLS, or plainMode. It is empty where nobody was
// reached.
const (
	upstreamTLS   = "%UPSTREAM_TLS_VERSION%%UPSTREAM_METADATA(envoy.transport_socket_match:" + modeKey + ")%"
	downstreamTLS = "%DOWNSTREAM_TLS_VERSION%"
)

// who are the labels that every metric has. None has a value that callers choose:
// identities are from certificates of the mesh, services and ports are configured.
func who(f fields) fields {
	out := fields{}
	for label, field := range map[string]string{
		"direction": "direction", "source": "caller", "destination": "server", "service": "service", "port": "port",
	} {
		if f[field] != "" {
			out[label] = f[field]
		}
	}
	return out
}

// outcome adds what became of a call.
func outcome(f fields) fields {
	out := who(f).with(fields{"flags": "%RESPONSE_FLAGS%"})
	for label, field := range map[string]string{
		"tls": "tls", "backend": "cluster", "decision": "decision", "reason": "reason", "policy": "policy", "allowed_by": "allowedBy",
	} {
		if f[field] != "" {
			out[label] = f[field]
		}
	}
	return out
}

// countRequests counts requests and how long they took. The fields are those of the
// access log, from which the labels are taken.
func (e *encoder) countRequests(f fields) *accesslogv3.AccessLog {
	return e.stats(nil, &statsv3.Config{
		Counters: []*statsv3.Config_Counter{one("requests_total", outcome(f).with(fields{
			"code": "%RESPONSE_CODE%", "grpc": "%GRPC_STATUS(SNAKE_STRING)%",
		}))},
		Histograms: []*statsv3.Config_Histogram{{
			Stat: stat("request_duration_milliseconds", who(f)),
			Unit: statsv3.Config_Histogram_Milliseconds, ValueFormat: "%DURATION%",
		}},
	})
}

// countConnections counts connections that are over, and their bytes.
func (e *encoder) countConnections(f fields) *accesslogv3.AccessLog {
	return e.stats(nil, &statsv3.Config{Counters: []*statsv3.Config_Counter{
		one("connections_total", outcome(f)),
		{Stat: stat("received_bytes_total", who(f)), ValueFormat: "%BYTES_RECEIVED%"},
		{Stat: stat("sent_bytes_total", who(f)), ValueFormat: "%BYTES_SENT%"},
	}})
}

// countRefused counts connections of which nothing became; there are no bytes.
func (e *encoder) countRefused(filter *accesslogv3.AccessLogFilter, f fields) *accesslogv3.AccessLog {
	return e.stats(filter, &statsv3.Config{Counters: []*statsv3.Config_Counter{one("connections_total", outcome(f))}})
}

func (e *encoder) stats(filter *accesslogv3.AccessLogFilter, c *statsv3.Config) *accesslogv3.AccessLog {
	// One scope for all loggers: the same labels are the same series.
	c.StatsScope = &typev3.Scope{Prefix: statsPrefix, SharingName: statsPrefix}
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.stats", Filter: filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: e.any(c)},
	}
}

func one(name string, labels fields) *statsv3.Config_Counter {
	return &statsv3.Config_Counter{Stat: stat(name, labels), ValueFixed: wrapperspb.UInt64(1)}
}

func stat(name string, labels fields) *statsv3.Config_Stat {
	out := &statsv3.Config_Stat{Name: name}
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		out.Tags = append(out.Tags, &statsv3.Config_Tag{Name: label, ValueFormat: labels[label]})
	}
	return out
}
