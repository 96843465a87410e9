package xds

import (
	"fmt"
	"net/netip"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// plainTimeout is how long a client may stay silent before its connection counts as
// plain text, where the server may speak first. It is long enough for a ClientHello
// that is late or was lost twice on its way.
const plainTimeout = 2 * time.Second

// The proxy reaches its own application from the source addresses, by which
// iptables know not to redirect again; what it sends from there to an own address
// they lead to the pod's. outrigger-init puts those of IPv6 on loopback.
var ( //nolint:gochecknoglobals // constants, if Go had them of this type
	sourceAddress  = netip.AddrFrom4([4]byte{127, 0, 0, 6})
	sourceAddress6 = netip.AddrFrom16([16]byte{15: 6})
	ownAddress     = netip.AddrFrom4([4]byte{127, 0, 0, 7})
	ownAddress6    = netip.AddrFrom16([16]byte{15: 7})
)

// First and last of the ports that are the sidecar's own. Nothing is forwarded
// there.
const (
	firstOwnPort = 15000
	lastOwnPort  = 15020
)

// An inboundPart is what the inbound part is encoded from.
type inboundPart struct {
	*mesh.Inbound
	trust     *mesh.Trust
	dualStack bool
}

// inbound encodes what a workload serves. The listener depends on the ports'
// numbers and protocols, and on whether they take plain text. Who may call is in
// routes for HTTP and in secrets for TCP, which are there in every mode and even
// where nobody may, so that no change of policy changes a listener. Nor does a
// change of trust: whose certificates HTTP ports take at all is a secret too.
func (e *encoder) inbound(in inboundPart) {
	e.part.Name = inboundName
	l := e.captured(inboundName, bootstrap.InboundPort, in.dualStack)
	l.TrafficDirection = corev3.TrafficDirection_INBOUND
	// Both are for ports that take plain text, and hold always: a change of what is
	// not in a chain would replace the whole listener, and cut the connections of
	// every port. To a silent client of a strict port it is closed either way.
	l.ListenerFiltersTimeout = durationpb.New(plainTimeout)
	l.ContinueOnListenerFiltersTimeout = true
	accepted, members := domains(in.TrustDomain, in.AlsoTrusted), false
	var served []*listenerv3.ListenerFilterChainMatchPredicate
	for _, p := range in.Ports {
		if p.Port >= firstOwnPort && p.Port <= lastOwnPort {
			continue
		}
		served = append(served, isPort(p.Port))
		l.FilterChains = append(l.FilterChains, e.inboundChains(in, p)...)
		e.add(Cluster, applicationName(p), e.application(p, in.dualStack))
		if p.Protocol != mesh.TCP {
			e.inboundRoute(in.Inbound, p)
			members = true
		}
		if !p.Protocol.IsHTTP() {
			e.validation(allowName(p), in.trust, mayConnect(accepted, p))
			e.policySecret(p)
		}
	}
	if members {
		e.validation(membersName, in.trust, anyName(accepted))
	}
	if len(served) > 0 {
		l.ListenerFilters = append(l.ListenerFilters, e.tlsInspector(served))
	}
	// A listener must have a chain; and so that a port which is not served is
	// closed in the same way whatever else the workload has.
	l.DefaultFilterChain = chain("closed", e.tcpProxy(inboundName, closedName, e.closedLog()...))
	l.AccessLog = e.handshakeLog()
	e.logSettings(in.Inbound)
	e.add(Listener, inboundName, l)
}

// tlsInspector waits for what the client says, on the ports that are served;
// others are closed at once.
func (e *encoder) tlsInspector(served []*listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	f := e.listenerFilter("envoy.filters.listener.tls_inspector", &inspectorv3.TlsInspector{})
	f.FilterDisabled = &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: served[0]}}
	if len(served) > 1 {
		f.FilterDisabled.Rule = &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: served}},
		}}
	}
	return f
}

func isPort(p uint16) *listenerv3.ListenerFilterChainMatchPredicate {
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
		DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1},
	}}
}

func allowName(p mesh.InboundPort) string { return fmt.Sprintf("allow:%d", p.Port) }

// applicationName is the cluster that leads to the application at a port.
func applicationName(p mesh.InboundPort) string { return routeName(p) }

func routeName(p mesh.InboundPort) string { return fmt.Sprintf("%s:%d", inboundName, p.Port) }

// httpChain ends the name of a chain for HTTP by mutual TLS.
const httpChain = "http"

// inboundChains are the ways into one port.
func (e *encoder) inboundChains(in inboundPart, p mesh.InboundPort) []*listenerv3.FilterChain {
	var chains []*listenerv3.FilterChain
	add := func(kind string, c *tlsv3.CommonTlsContext, f *listenerv3.Filter, match *listenerv3.FilterChainMatch) {
		match.DestinationPort = wrapperspb.UInt32(uint32(p.Port))
		out := chain(fmt.Sprintf("%d %s", p.Port, kind), f)
		out.FilterChainMatch = match
		if c != nil {
			match.TransportProtocol = "tls"
			match.ServerNames = []string{"*" + serverNameSuffix}
			if in.OldTLS {
				c.TlsParams.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_2
			}
			out.TransportSocket = e.serverTLS(c)
		}
		chains = append(chains, out)
	}
	members, allowed := onlyBySecret(membersName), onlyBySecret(allowName(p))
	switch {
	case p.Protocol.IsHTTP():
		add(httpChain, members, e.inboundHTTP(in.Inbound, p, downstreamTLS), &listenerv3.FilterChainMatch{})
	case p.Protocol == mesh.TCP:
		add("tcp", allowed, e.inboundTCP(p), &listenerv3.FilterChainMatch{})
	default:
		add(httpChain, members, e.inboundHTTP(in.Inbound, p, downstreamTLS), &listenerv3.FilterChainMatch{ApplicationProtocols: []string{"h2", "http/1.1"}})
		add("tcp", allowed, e.inboundTCP(p), &listenerv3.FilterChainMatch{})
	}
	if !p.PlainText {
		return chains
	}
	if p.Protocol.IsHTTP() {
		add("plain-http", nil, e.inboundHTTP(in.Inbound, p, plainMode), &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"})
	}
	// The application's own TLS is opaque, and so is an undeclared port.
	f := onPort(p).with(fields{"tls": plainMode, "decision": "allowed"})
	add("plain", nil, e.tcpProxy(inboundName, applicationName(p), e.stdout(wanted(portLog(p.Port), anyFlag()), f), e.countConnections(f.with(clusterPolicy()))), &listenerv3.FilterChainMatch{})
	return chains
}

// mayConnect are the names that a TCP client may have.
func mayConnect(domains []string, p mesh.InboundPort) []*tlsv3.SubjectAltNameMatcher {
	if p.Mode == mesh.Permissive {
		return anyName(domains)
	}
	return uriNames(names(domains, p.Callers, p.Groups))
}

// inboundTCP hands a connection to the application once the handshake has shown
// that it may: nobody else makes it so much as accept.
func (e *encoder) inboundTCP(p mesh.InboundPort) *listenerv3.Filter {
	proxy := tcpProxy(inboundName, applicationName(p), e.inboundTCPLog(p))
	proxy.UpstreamConnectMode = tcpv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	return e.networkFilter(tcpProxyFilter, proxy)
}

// inboundHTTP is what an HTTP port has for connections in one mode of TLS.
func (e *encoder) inboundHTTP(in *mesh.Inbound, p mesh.InboundPort, tls string) *listenerv3.Filter {
	f := onPort(p).with(httpDecision()).with(fields{"tls": tls})
	m := e.manager(bootstrap.InboundStats, []*accesslogv3.AccessLog{e.httpLog(wanted(portLog(p.Port), httpErrors()), f), e.countRequests(f)}, e.httpFilter(rbacFilter, denyAll()))
	m.RouteSpecifier = byRDS(routeName(p))
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	if in.Traced {
		e.trace(m, fmt.Sprintf("port %d", p.Port))
	}
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	m.LocalReplyConfig = &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{
		{
			Filter:       flag("UF"),
			HeadersToAdd: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: unsentHeader, Value: "1"}}},
		},
		{
			Filter: status(accesslogv3.ComparisonFilter_EQ, 403),
			BodyFormatOverride: text(fmt.Sprintf("%%DOWNSTREAM_PEER_URI_SAN%% may not %%REQ(:METHOD)%% %%PATH(NQ)%% at port %d of %s: no policy allows it (%%METADATA(ROUTE:"+metadataKey+":"+policyKey+")%%).\n"+
				"Run: outrigger why call %%DOWNSTREAM_PEER_URI_SAN%% %%REQ(:METHOD)%% 'http://%%REQ(:AUTHORITY)%%%%PATH(NQ)%%'\n", p.Port, in.Identity)),
		},
	}}
	return e.httpFilterOf(m)
}

// inboundRoute encodes the route of a port, with who may use it.
func (e *encoder) inboundRoute(in *mesh.Inbound, p mesh.InboundPort) {
	name := routeName(p)
	e.add(Route, name, &routev3.RouteConfiguration{
		Name: name,
		VirtualHosts: []*routev3.VirtualHost{anyHost(name, traced(&routev3.Route{
			Match: e.routeMatch(mesh.HTTPMatch{}),
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: applicationName(p)},
				Timeout:          never(),
				RetryPolicy:      e.retryReset(),
			}},
			Metadata:             metadata(map[string]string{policyKey: policy(p)}),
			TypedPerFilterConfig: map[string]*anypb.Any{rbacFilter: e.any(e.access(in, p))},
		}, p.Sampling)...)},
		// Only this proxy may say it, see unsentHeader.
		ResponseHeadersToRemove: []string{unsentHeader},
	})
}

// retryReset sends a request again where the application closed the connection
// without an answer: servers do that to idle connections, when they are told to
// stop for one, at the very moment when a request comes over them. Whether it was
// read nobody knows, so this is for methods that ask for nothing to be done. It is
// what HTTP clients do by themselves, and did before this proxy stood between.
func (e *encoder) retryReset() *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:    "reset",
		NumRetries: wrapperspb.UInt32(retryAttempts),
		RetriableRequestHeaders: []*routev3.HeaderMatcher{{
			Name: ":method",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: e.regex("GET|HEAD|OPTIONS|TRACE")},
			}},
		}},
		RetryBackOff: &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(retryBackOff)},
	}
}

// application leads to the pod's own application at a port: at the pod's address,
// where calls would go without a proxy, and if nothing listens there at localhost.
// Envoy goes on to the next address when a connection fails, before anything was
// sent, and remembers nothing, so an application may change its mind. The ports of
// localhost that no Service leads to are not reached by this.
func (e *encoder) application(p mesh.InboundPort, dualStack bool) *clusterv3.Cluster {
	addresses := []netip.Addr{ownAddress, netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if dualStack {
		addresses = []netip.Addr{ownAddress, ownAddress6, addresses[1], netip.IPv6Loopback()}
	}
	end := &endpointv3.Endpoint{Address: address(netip.AddrPortFrom(addresses[0], p.Port))}
	for _, a := range addresses[1:] {
		end.AdditionalAddresses = append(end.AdditionalAddresses, &endpointv3.Endpoint_AdditionalAddress{Address: address(netip.AddrPortFrom(a, p.Port))})
	}
	name := applicationName(p)
	c := cluster(name)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: end}}},
	}}}
	if !p.Protocol.IsHTTP() {
		c.Metadata = connectionPolicy(p)
	}
	c.TypedExtensionProtocolOptions = e.sameProtocol()
	c.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: socket(netip.AddrPortFrom(sourceAddress, 0))}
	if dualStack {
		c.UpstreamBindConfig.ExtraSourceAddresses = []*corev3.ExtraSourceAddress{{Address: socket(netip.AddrPortFrom(sourceAddress6, 0))}}
	}
	return c
}
