package xds

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/generic_secret/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// What holds where a Service says when an endpoint is left out, but not how often
// that is looked at or how long it lasts.
const (
	outlierInterval     = 10 * time.Second
	outlierEjectionTime = 30 * time.Second
	// Half of the endpoints may be left out: one of two, and never the only one.
	outlierPercent = 50
)

// limit sets the limits of a cluster.
func limit(c *clusterv3.Cluster, p mesh.Pool) {
	limits := c.CircuitBreakers.Thresholds[0]
	if p.MaxConnections > 0 {
		limits.MaxConnections = wrapperspb.UInt32(p.MaxConnections)
		// Envoy counts here who waits for a connection, even for the first one.
		limits.MaxPendingRequests = wrapperspb.UInt32(p.MaxConnections)
	}
	if p.MaxRequests > 0 {
		limits.MaxRequests = wrapperspb.UInt32(p.MaxRequests)
	}
}

// leaveOut makes a service cluster leave out endpoints that fail. What servers
// answer and what Envoy finds itself is counted apart, so that a call that is
// answered does not make up for one that could not be made.
func leaveOut(c *clusterv3.Cluster, o mesh.Outlier) {
	if o.ConsecutiveErrors == 0 {
		return
	}
	// When the others have gone, those that were left out are better than none.
	c.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: 1}
	n := wrapperspb.UInt32(o.ConsecutiveErrors)
	c.OutlierDetection = &clusterv3.OutlierDetection{
		Consecutive_5Xx:                    n,
		ConsecutiveGatewayFailure:          n,
		EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(100),
		SplitExternalLocalOriginErrors:     true,
		ConsecutiveLocalOriginFailure:      n,
		Interval:                           durationpb.New(cmp.Or(o.Interval, outlierInterval)),
		BaseEjectionTime:                   durationpb.New(cmp.Or(o.EjectionTime, outlierEjectionTime)),
		MaxEjectionPercent:                 wrapperspb.UInt32(outlierPercent),
		// Comparing endpoints with each other was not asked for.
		EnforcingSuccessRate:            wrapperspb.UInt32(0),
		EnforcingLocalOriginSuccessRate: wrapperspb.UInt32(0),
	}
}

// balance chooses among the endpoints of a service cluster.
func balance(c *clusterv3.Cluster, b *mesh.Bundle) {
	switch b.Pool.LoadBalancer.Policy {
	case mesh.RoundRobin:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case mesh.LeastRequest:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	case mesh.Random:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case mesh.RingHash:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
	default:
		// Weights are shares of connections, which only round robin keeps exactly;
		// requests go where the fewest are.
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if b.Protocol.IsHTTP() {
			c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		}
	}
}

// statusCodes are the numbers among the words that a retry is on.
func statusCodes(r mesh.Retry) []uint32 {
	var out []uint32
	for _, word := range r.On {
		if n, err := strconv.ParseUint(word, 10, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

// words are the others, and the one that makes numbers count.
func words(r mesh.Retry) []string {
	out := slices.DeleteFunc(slices.Clone(r.On), func(word string) bool {
		_, err := strconv.ParseUint(word, 10, 32)
		return err == nil
	})
	if len(out) < len(r.On) {
		out = append(out, "retriable-status-codes")
	}
	return out
}

// hashes makes equal values of the headers go to the same endpoint.
func hashes(headers []string) []*routev3.RouteAction_HashPolicy {
	var out []*routev3.RouteAction_HashPolicy
	for _, h := range headers {
		out = append(out, &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h},
		}})
	}
	return out
}

// idleName is the secret that holds the idle timeout of a bundle's connections
// that are not HTTP.
func idleName(b *mesh.Bundle) string { return b.Name.String() + variantMark + "idle" }

// noTimeout is the idle timeout where there is none. Envoy passes over what is no
// number.
const noTimeout = "none"

// idle writes how long connections of a bundle that are not HTTP may be idle. Only
// a listener can say that, or a secret, which Envoy reads for each connection and
// which changes without the listener.
func (e *encoder) idle(b *mesh.Bundle) {
	text := noTimeout
	if b.IdleTimeout > 0 {
		text = strconv.FormatInt(max(b.IdleTimeout.Milliseconds(), 1), 10)
	}
	e.add(Secret, idleName(b), &tlsv3.Secret{Name: idleName(b), Type: &tlsv3.Secret_GenericSecret{
		GenericSecret: &tlsv3.GenericSecret{Secret: inline(text)},
	}})
}

// opaque are the filters of a chain that carries what is not HTTP to a cluster of
// a bundle.
func (e *encoder) opaque(b *mesh.Bundle, cluster string, f fields) []*listenerv3.Filter {
	const secret = "idle"
	return []*listenerv3.Filter{
		e.networkFilter("envoy.filters.network.set_filter_state", &setstatev3.Config{
			OnNewConnection: []*filterstatev3.FilterStateValue{{
				Key: &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: "envoy.tcp_proxy.per_connection_idle_timeout_ms"},
				Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
					Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inline("%SECRET(" + secret + ")%")},
					Formatters: []*corev3.TypedExtensionConfig{{
						Name: "envoy.formatter.generic_secret",
						TypedConfig: e.any(&secretv3.GenericSecret{SecretConfigs: map[string]*tlsv3.SdsSecretConfig{
							secret: {Name: idleName(b), SdsConfig: ads()},
						}}),
					}},
				}},
			}},
		}),
		e.outboundTCP(cluster, f),
	}
}
