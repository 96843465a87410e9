package xds

import (
	"net/netip"
	"time"

	exprv1 "cel.dev/expr"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	detectorsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	tagsv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// trace makes a manager send spans of that name to the collector, if there is one:
// a manager changes only when tracing is switched on for the whole mesh.
//
// Which requests are told of is decided by the caller, if it has sent a
// traceparent, or else by a mark of the route ([traced]). What Envoy has for that
// (sampling in routes) was tried: it drops the spans of requests that the caller
// traces, and of all whose x-request-id is not a UUID. Whose spans they are is in
// Envoy's environment (package bootstrap), since pods share what is here.
func (e *encoder) trace(m *hcmv3.HttpConnectionManager, name string) {
	m.Tracing = &hcmv3.HttpConnectionManager_Tracing{
		Operation: name,
		// Without the query, where people put secrets.
		CustomTags: []*tagsv3.CustomTag{{
			Tag:  "http.url",
			Type: &tagsv3.CustomTag_Value{Value: "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ)%"},
		}},
		// Equal providers are one in an Envoy, so its expression costs once.
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: e.any(&tracev3.OpenTelemetryConfig{
				GrpcService: &corev3.GrpcService{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: tracingName}},
					Timeout:         durationpb.New(exportTimeout),
				},
				ResourceDetectors: []*corev3.TypedExtensionConfig{{
					Name:        "envoy.tracers.opentelemetry.resource_detectors.environment",
					TypedConfig: e.any(&detectorsv3.EnvironmentResourceDetectorConfig{}),
				}},
				Sampler: e.parentOr(marked()),
			})},
		},
	}
	// Leaves the decision to the sampler, and the application's x-request-id alone,
	// into which Envoy would write it.
	m.RequestIdExtension = &hcmv3.RequestIDExtension{TypedConfig: e.any(&uuidv3.UuidRequestIdConfig{
		PackTraceReason:              wrapperspb.Bool(false),
		UseRequestIdForTraceSampling: wrapperspb.Bool(false),
	})}
}

// exportTimeout ends a call to a collector that does not answer.
const exportTimeout = 5 * time.Second

// parentOr keeps what the caller decided. Where it did not, an expression decides.
func (e *encoder) parentOr(expression *exprv1.Expr) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{
		Name: "envoy.tracers.opentelemetry.samplers.parent_based",
		TypedConfig: e.any(&samplersv3.ParentBasedSamplerConfig{WrappedSampler: &corev3.TypedExtensionConfig{
			Name: "envoy.tracers.opentelemetry.samplers.cel",
			TypedConfig: e.any(&samplersv3.CELSamplerConfig{Expression: &xdstypev3.CelExpression{
				CelExprParsed: &exprv1.ParsedExpr{Expr: expression},
			}}),
		}}),
	}
}

// marked is true where the request's route has the mark, and false or an error,
// which counts as false, elsewhere. It is the expression
// xds.route_metadata.filter_metadata['outrigger']['trace'] == 'on', which the sampler
// wants parsed.
func marked() *exprv1.Expr {
	id := int64(0)
	node := func(e *exprv1.Expr) *exprv1.Expr {
		id++
		e.Id = id
		return e
	}
	text := func(s string) *exprv1.Expr {
		return node(&exprv1.Expr{ExprKind: &exprv1.Expr_ConstExpr{ConstExpr: &exprv1.Constant{ConstantKind: &exprv1.Constant_StringValue{StringValue: s}}}})
	}
	call := func(function string, args ...*exprv1.Expr) *exprv1.Expr {
		return node(&exprv1.Expr{ExprKind: &exprv1.Expr_CallExpr{CallExpr: &exprv1.Expr_Call{Function: function, Args: args}}})
	}
	field := func(of *exprv1.Expr, name string) *exprv1.Expr {
		return node(&exprv1.Expr{ExprKind: &exprv1.Expr_SelectExpr{SelectExpr: &exprv1.Expr_Select{Operand: of, Field: name}}})
	}
	metadata := field(field(node(&exprv1.Expr{ExprKind: &exprv1.Expr_IdentExpr{IdentExpr: &exprv1.Expr_Ident{Name: "xds"}}}), "route_metadata"), "filter_metadata")
	const index, equals = "_[_]", "_==_"
	return call(equals, call(index, call(index, metadata, text(metadataKey)), text(traceKey)), text(traceOn))
}

// The mark of a route whose requests are told of.
const (
	traceKey = "trace"
	traceOn  = "on"
)

// traced returns what a route becomes when some of its requests are told of: itself
// with a mark, without one, or both, where the first takes its part by chance.
func traced(r *routev3.Route, s mesh.Sampling) []*routev3.Route {
	if s == 0 {
		return []*routev3.Route{r}
	}
	marked := proto.CloneOf(r)
	if marked.Metadata == nil {
		marked.Metadata = metadata(map[string]string{})
	}
	marked.Metadata.FilterMetadata[metadataKey].Fields[traceKey] = structpb.NewStringValue(traceOn)
	if s >= mesh.Always {
		return []*routev3.Route{marked}
	}
	// Shares of a split are drawn by the same number; in parts of a million hardly
	// any weights are in step with it.
	marked.Match.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{
		Numerator: uint32(s) * 100, Denominator: typev3.FractionalPercent_MILLION,
	}}
	return []*routev3.Route{marked, r}
}

// collector encodes the cluster that spans go to. A collector in the mesh has the
// endpoints, identities and limits of its own bundle, under a name that listeners
// may hold for ever.
func (e *encoder) collector(to *mesh.Collector) {
	e.part.Name = tracingName
	if b := to.Bundle; b != nil {
		c, a := e.serviceCluster(b), assignment(b)
		c.Name, c.EdsClusterConfig.ServiceName, a.ClusterName = tracingName, tracingName, tracingName
		c.TypedExtensionProtocolOptions = e.http2()
		e.addCluster(c, a)
		return
	}
	c := nowhere(tracingName)
	if to.Host != "" {
		c = e.outsideCollector(to)
	}
	c.TypedExtensionProtocolOptions = e.http2()
	e.add(Cluster, tracingName, c)
}

// outsideCollector looks up the collector's name, if it is none of the mesh's.
func (e *encoder) outsideCollector(to *mesh.Collector) *clusterv3.Cluster {
	c := cluster(tracingName)
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: tracingName, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{lbEndpoint(&corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: to.Host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(to.Port)},
		}}})},
	}}}
	if _, err := netip.ParseAddr(to.Host); err == nil {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return c
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.clusters.dns",
		TypedConfig: e.any(&dnsv3.DnsCluster{
			DnsLookupFamily: commondnsv3.DnsLookupFamily_ALL,
			DnsRefreshRate:  durationpb.New(dnsRefresh),
		}),
	}}
	return c
}

// dnsRefresh is how soon a collector is found that moved.
const dnsRefresh = 30 * time.Second

// http2 is what gRPC needs.
func (e *encoder) http2() map[string]*anypb.Any {
	return map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": e.any(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
			}},
		}),
	}
}
