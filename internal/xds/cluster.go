package xds

import (
	"math"
	"net/netip"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const connectTimeout = 5 * time.Second

// Retries may be a quarter of what is under way, and this many in any case: the
// death of one of two pods makes every other request a retry for a moment.
const (
	retryBudgetPercent = 25
	retryMinimum       = 100
)

// cluster is what all clusters have in common. Policy sets limits; none come by
// default.
func cluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:           name,
		ConnectTimeout: durationpb.New(connectTimeout),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(math.MaxUint32),
			MaxPendingRequests: wrapperspb.UInt32(math.MaxUint32),
			MaxRequests:        wrapperspb.UInt32(math.MaxUint32),
			RetryBudget: &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
				BudgetPercent:       &typev3.Percent{Value: retryBudgetPercent},
				MinRetryConcurrency: wrapperspb.UInt32(retryMinimum),
			},
		}}},
	}
}

// originalDst is a cluster that leads to the address that was dialled.
func originalDst(name string) *clusterv3.Cluster {
	c := cluster(name)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	return c
}

// toListener is a cluster that leads to a listener inside the same Envoy.
func (e *encoder) toListener(name, listener string) *clusterv3.Cluster {
	c := cluster(name)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{lbEndpoint(&corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{
			EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
				AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listener},
			},
		}})},
	}}}
	c.TransportSocket = e.transportSocket("envoy.transport_sockets.internal_upstream", &internalv3.InternalUpstreamTransport{TransportSocket: e.raw()})
	return c
}

// nowhere is a cluster without endpoints: a TCP connection to it is closed.
func nowhere(name string) *clusterv3.Cluster {
	c := cluster(name)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	return c
}

func (e *encoder) raw() *corev3.TransportSocket {
	return e.transportSocket(rawSocket, &rawv3.RawBuffer{})
}

// sameProtocol makes HTTP go on in the version that it came in. Its pools offer
// that as ALPN, by which the server tells HTTP from TCP; a TCP connection of the
// same cluster offers none.
func (e *encoder) sameProtocol() map[string]*anypb.Any {
	return map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": e.any(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
				UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
					HttpProtocolOptions:  &corev3.Http1ProtocolOptions{AcceptHttp_10: true, EnableTrailers: true},
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
				},
			},
		}),
	}
}

// serviceCluster is the cluster of a bundle's endpoints.
func (e *encoder) serviceCluster(b *mesh.Bundle) *clusterv3.Cluster {
	name := b.Name.String()
	c := cluster(name)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name}
	// Which endpoints may be used is said for each; Envoy shall not think better.
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}}
	balance(c, b)
	limit(c, b.Pool)
	leaveOut(c, b.Pool.Outlier)
	c.TypedExtensionProtocolOptions = e.sameProtocol()
	c.TransportSocket = e.clientTLS(b)
	c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{{
		Name:            "plain",
		Match:           plainMark(),
		TransportSocket: e.raw(),
	}}
	return c
}

// dialledCluster leads to the endpoint of a headless service that was dialled,
// in plain text or by mutual TLS.
func (e *encoder) dialledCluster(b *mesh.Bundle, plain bool) *clusterv3.Cluster {
	c := originalDst(dialledName(b, plain))
	limit(c, b.Pool)
	c.TypedExtensionProtocolOptions = e.sameProtocol()
	c.TransportSocket = e.raw()
	if !plain {
		c.TransportSocket = e.clientTLS(b)
	}
	return c
}

// assignment lists the endpoints of a bundle by zone, in the order given.
func assignment(b *mesh.Bundle) *endpointv3.ClusterLoadAssignment {
	a := &endpointv3.ClusterLoadAssignment{ClusterName: b.Name.String()}
	othersLeft := slices.ContainsFunc(b.Endpoints, func(ep mesh.Endpoint) bool { return !ep.Draining })
	zones := map[string]*endpointv3.LocalityLbEndpoints{}
	for _, ep := range b.Endpoints {
		zone, ok := zones[ep.Zone]
		if !ok {
			zone = &endpointv3.LocalityLbEndpoints{}
			if ep.Zone != "" {
				zone.Locality = &corev3.Locality{Zone: ep.Zone}
			}
			zones[ep.Zone] = zone
			a.Endpoints = append(a.Endpoints, zone)
		}
		zone.LbEndpoints = append(zone.LbEndpoints, serviceEndpoint(ep, othersLeft))
	}
	return a
}

func serviceEndpoint(ep mesh.Endpoint, othersLeft bool) *endpointv3.LbEndpoint {
	lb := lbEndpoint(address(netip.AddrPortFrom(ep.Address, ep.Port)))
	lb.GetEndpoint().Hostname = ep.Hostname
	if ep.Draining && othersLeft {
		lb.HealthStatus = corev3.HealthStatus_DRAINING
	}
	if ep.Weight > 0 {
		lb.LoadBalancingWeight = wrapperspb.UInt32(ep.Weight)
	}
	if ep.Identity.IsZero() {
		lb.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"envoy.transport_socket_match": plainMark(),
		}}
	}
	return lb
}

// plainMark marks an endpoint outside the mesh.
func plainMark() *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{modeKey: structpb.NewStringValue(plainMode)}}
}

func lbEndpoint(a *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}}}
}
