package xds

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// outbound encodes what a proxy has besides its bundles: the listener that all
// calls of the pod come to, and what happens to those that no bundle takes.
//
// Its listener depends on the ranges of ClusterIPs only and, in a chain of its own, on
// refused addresses: a change there replaces that chain in place and cuts nothing. (A
// listener for each address would have that of a bundle which is going away.) Where its chains lead
// is a matter of the cluster egress, so that this setting cuts no connection.
func (e *encoder) outbound(o *mesh.Outbound) {
	e.part.Name = outboundName
	for _, end := range []deadEnd{
		{deniedName, whyDenied(o)},
		{egressDenied, fmt.Sprintf("egress is denied in namespace %s, and this is outside the mesh", o.Caller.Namespace)},
	} {
		e.add(Listener, end.name, e.deadEnd(o.Caller, end))
	}
	egress := originalDst(egressName)
	if !o.AllowEgress {
		egress = e.toListener(egressName, egressDenied)
	}
	e.add(Cluster, egressName, egress)
	e.add(Cluster, deniedName, e.toListener(deniedName, deniedName))
	e.add(Cluster, passthroughName, originalDst(passthroughName))
	e.add(Cluster, closedName, nowhere(closedName))
	e.add(Listener, outboundName, e.outboundListener(o))
}

func (e *encoder) outboundListener(o *mesh.Outbound) *listenerv3.Listener {
	l := e.captured(outboundName, bootstrap.OutboundPort, dualStack(o))
	l.TrafficDirection = corev3.TrafficDirection_OUTBOUND
	l.UseOriginalDst = wrapperspb.Bool(true)
	// Whoever connects to this port itself would be sent round for ever.
	direct := chain("direct", e.tcpProxy(outboundName, closedName, e.tcpLog(call(outboundName))))
	direct.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(bootstrap.OutboundPort)}
	l.FilterChains = []*listenerv3.FilterChain{direct}
	if len(o.ServiceCIDRs) > 0 {
		denied := chain("services", e.rememberAddress(), e.tcpProxy(outboundName, deniedName, e.tcpLog(call(outboundName))))
		denied.FilterChainMatch = &listenerv3.FilterChainMatch{}
		for _, p := range ranges(o.ServiceCIDRs) {
			denied.FilterChainMatch.PrefixRanges = append(denied.FilterChainMatch.PrefixRanges, cidr(p))
		}
		l.FilterChains = append(l.FilterChains, denied)
	}
	if len(o.Refused) > 0 {
		refused := chain("refused", e.rememberAddress(), e.tcpProxy(outboundName, deniedName, e.tcpLog(call(outboundName))))
		refused.FilterChainMatch = &listenerv3.FilterChainMatch{}
		for _, a := range o.Refused {
			refused.FilterChainMatch.PrefixRanges = append(refused.FilterChainMatch.PrefixRanges, cidr(netip.PrefixFrom(a, a.BitLen())))
		}
		l.FilterChains = append(l.FilterChains, refused)
	}
	l.DefaultFilterChain = chain("egress", e.rememberAddress(), e.tcpProxy(outboundName, egressName, e.tcpLog(call(outboundName))))
	return l
}

// ranges returns each range once: Envoy refuses a repetition.
func ranges(in []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(in))
	for i, p := range in {
		out[i] = p.Masked()
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// captured is a listener that iptables redirect to. It restores the address that
// was dialled.
func (e *encoder) captured(name string, port uint16, dualStack bool) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:            name,
		Address:         address(netip.AddrPortFrom(netip.IPv4Unspecified(), port)),
		ListenerFilters: []*listenerv3.ListenerFilter{e.originalDstFilter()},
	}
	if dualStack {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: address(netip.AddrPortFrom(netip.IPv6Unspecified(), port))}}
	}
	return l
}

// dualStack reports whether pods have IPv6 too. Binding to an IPv6 address in a
// pod without it fails, and the listener with it.
func dualStack(o *mesh.Outbound) bool {
	for _, p := range o.ServiceCIDRs {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

func (e *encoder) originalDstFilter() *listenerv3.ListenerFilter {
	return e.listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
}

func (e *encoder) listenerFilter(name string, m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: e.any(m)}}
}

// rememberAddress hands the dialled address to a listener inside this Envoy,
// whose original_dst filter takes it from there.
func (e *encoder) rememberAddress() *listenerv3.Filter {
	return e.networkFilter("envoy.filters.network.set_filter_state", &setstatev3.Config{
		OnNewConnection: []*filterstatev3.FilterStateValue{{
			Key: &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: "envoy.filters.listener.original_dst.local_ip"},
			Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inline("%DOWNSTREAM_LOCAL_ADDRESS%")},
			}},
			SharedWithUpstream: filterstatev3.FilterStateValue_ONCE,
		}},
	})
}

// deniedTimeout is how long a client may stay silent where it is denied, before it is
// closed instead of told why. Nobody waits here who is allowed, and a client on a
// busy machine needs more than a moment to say its first word.
const deniedTimeout = 2 * time.Second

// A deadEnd is where a call ends that may not be made.
type deadEnd struct{ name, why string }

// deadEnd answers HTTP with the reason and closes everything else. It is a
// listener of its own because only here may one wait for what the client says:
// on the outbound listener that would delay every connection.
func (e *encoder) deadEnd(caller mesh.Identity, end deadEnd) *listenerv3.Listener {
	f := call(outboundName).with(fields{"decision": "denied", "reason": end.why})
	m := e.manager(outboundName, []*accesslogv3.AccessLog{e.httpLog(wanted(ownLog, httpErrors()), f), e.countRequests(f)})
	m.RouteSpecifier = byRoutes(&routev3.RouteConfiguration{
		Name: end.name,
		VirtualHosts: []*routev3.VirtualHost{anyHost(end.name, &routev3.Route{
			Match: e.routeMatch(mesh.HTTPMatch{}),
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
				Status:     403,
				BodyFormat: text(denial(caller.String(), end.why)),
			}},
		})},
	})
	// One answer for each connection: a client that keeps its connections is let
	// through by its next one as soon as policy allows the call.
	m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(1)}
	http := chain("http", e.httpFilterOf(m))
	http.FilterChainMatch = &listenerv3.FilterChainMatch{ApplicationProtocols: plainHTTP()}
	l := &listenerv3.Listener{
		Name:               end.name,
		ListenerSpecifier:  &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
		ListenerFilters:    []*listenerv3.ListenerFilter{e.originalDstFilter()},
		FilterChains:       []*listenerv3.FilterChain{http},
		DefaultFilterChain: chain("tcp", e.tcpProxy(outboundName, closedName, e.tcpLog(f), e.countRefused(nil, f))),
		TrafficDirection:   corev3.TrafficDirection_OUTBOUND,
	}
	e.sniff(l, deniedTimeout)
	return l
}

const notAllowed = "enforced mode: no policy lets it call this address, or nothing serves it"

// whyDenied says why a call inside the service ranges, or to a refused address, may
// not be made.
func whyDenied(o *mesh.Outbound) string {
	if o.MutualTLSOnly {
		return "enforced mode, or strict mutual TLS: no policy lets it call this address, or nothing with a proxy serves it"
	}
	return notAllowed
}

// denial says who may not call what, why, and what to run to find out more. The
// names in the command are those of the pod that asked; the quotes are for shells,
// which read much that a path may hold.
func denial(caller, why string) string {
	return caller + " may not call %DOWNSTREAM_LOCAL_ADDRESS% (%REQ(:AUTHORITY)%): " + why + ".\n" +
		"Run: outrigger why call %ENVIRONMENT(" + bootstrap.EnvPodNamespace + ")%/%ENVIRONMENT(" + bootstrap.EnvPodName + ")% %REQ(:METHOD)% 'http://%REQ(:AUTHORITY)%%PATH(NQ)%'\n"
}
