package xds

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// unsentHeader says, in an answer of a server's proxy, that the request never
// reached the application: it may be made again, whatever its method.
const unsentHeader = "x-outrigger-unsent"

// manager is what all HTTP connection managers have in common. Their statistics
// share one prefix for each direction; what tells services apart is elsewhere.
func (e *encoder) manager(prefix string, log []*accesslogv3.AccessLog, filters ...*hcmv3.HttpFilter) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:  prefix,
		CodecType:   hcmv3.HttpConnectionManager_AUTO,
		HttpFilters: append(filters, e.router()),
		// An application behind the mesh and a rule on paths must see one path:
		// without this /ok/../admin passes a rule for /ok.*
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		// The mesh adds nothing that the application did not say.
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		PreserveExternalRequestId:  true,
		StreamIdleTimeout:          never(),
		HttpProtocolOptions:        &corev3.Http1ProtocolOptions{AcceptHttp_10: true, EnableTrailers: true},
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		AccessLog:                  log,
	}
}

// revoked answers on connections that are still open when their service is taken
// away from the caller, as new ones are answered: see deadEnd.
func revoked() *hcmv3.LocalReplyConfig {
	return &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{
		Filter:             flag("NC"), // the cluster is gone
		StatusCode:         wrapperspb.UInt32(403),
		BodyFormatOverride: text(denial("%ENVIRONMENT("+bootstrap.EnvPodNamespace+")%/%ENVIRONMENT("+bootstrap.EnvServiceAccount+")%", notAllowed)),
	}}}
}

func (e *encoder) router() *hcmv3.HttpFilter {
	return e.httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true})
}

func (e *encoder) httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: e.any(m)}}
}

// byRDS takes the routes from the stream, where they change without touching a
// connection.
func byRDS(name string) *hcmv3.HttpConnectionManager_Rds {
	return &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: name}}
}

func byRoutes(c *routev3.RouteConfiguration) *hcmv3.HttpConnectionManager_RouteConfig {
	return &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: c}
}

// text is a body that Envoy fills in.
func text(format string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{
		Format:      &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inline(format)},
		ContentType: "text/plain; charset=utf-8",
	}
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

func (e *encoder) networkFilter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: e.any(m)}}
}

func (e *encoder) httpFilterOf(m *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	return e.networkFilter("envoy.filters.network.http_connection_manager", m)
}

// tcpProxy hands a connection to a cluster. It lives as long as both ends want.
func (e *encoder) tcpProxy(prefix, cluster string, log ...*accesslogv3.AccessLog) *listenerv3.Filter {
	return e.networkFilter(tcpProxyFilter, tcpProxy(prefix, cluster, log))
}

const tcpProxyFilter = "envoy.filters.network.tcp_proxy"

func tcpProxy(prefix, cluster string, log []*accesslogv3.AccessLog) *tcpv3.TcpProxy {
	return &tcpv3.TcpProxy{
		StatPrefix:       prefix,
		ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster},
		IdleTimeout:      never(),
		// Nothing was sent yet when a connection cannot be made.
		MaxConnectAttempts: wrapperspb.UInt32(connectAttempts),
		AccessLog:          log,
	}
}

const connectAttempts = 3
