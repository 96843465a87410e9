package xds

import (
	"net/netip"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// sniffTimeout is how long a client of an undeclared port may stay silent before
// its connection is taken for one where the server speaks first.
const sniffTimeout = 200 * time.Millisecond

// What follows the mark in the name of a bundle's second resource of one type.
const (
	dialledVariant = "dialled"
	plainVariant   = "plain"
)

// dialledName is the cluster of the endpoints of a headless service that are
// dialled by their own address.
func dialledName(b *mesh.Bundle, plain bool) string {
	variant := dialledVariant
	if plain {
		variant = plainVariant
	}
	return b.Name.String() + variantMark + variant
}

// bundle encodes one service port as its callers see it. Addresses in taken
// belong to another bundle.
func (e *encoder) bundle(b *mesh.Bundle, taken lost) {
	name := b.Name.String()
	e.part.Name = name
	if !b.Passthrough {
		e.addCluster(e.serviceCluster(b), assignment(b))
		if !b.Protocol.IsHTTP() {
			e.idle(b)
		}
	}
	if b.Headless {
		e.headless(b, taken)
		return
	}
	addresses := taken.without(listens(b))
	if len(addresses) == 0 {
		return // only splits lead here
	}
	e.add(Listener, name, e.serviceListener(b, name, name, addresses))
	if b.Protocol != mesh.TCP && !b.Passthrough {
		e.routes(name, b, name)
	}
}

// headless encodes a listener for each endpoint, which leads to just this one.
func (e *encoder) headless(b *mesh.Bundle, taken lost) {
	used := map[bool]bool{} // by plain
	for _, ep := range b.Endpoints {
		a := netip.AddrPortFrom(ep.Address, ep.Port)
		if taken[a] {
			continue
		}
		plain := ep.Identity.IsZero()
		used[plain] = true
		name := b.Name.String() + variantMark + a.String()
		e.add(Listener, name, e.serviceListener(b, name, dialledName(b, plain), []netip.AddrPort{a}))
	}
	if b.Passthrough {
		return
	}
	for _, plain := range []bool{false, true} {
		if !used[plain] {
			continue
		}
		self := dialledName(b, plain)
		e.add(Cluster, self, e.dialledCluster(b, plain))
		if b.Protocol != mesh.TCP {
			e.routes(self, b, self)
		}
	}
}

// serviceListener is at the addresses of a service without being bound to them:
// the outbound listener hands over what was sent there. Routes and cluster that it
// leads to have one name.
func (e *encoder) serviceListener(b *mesh.Bundle, name, to string, addresses []netip.AddrPort) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:             name,
		Address:          address(addresses[0]),
		BindToPort:       wrapperspb.Bool(false),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
	}
	for _, a := range addresses[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: address(a)})
	}
	f := call(outboundName).with(fields{"service": b.Name.String()})
	if b.Passthrough || to == dialledName(b, true) {
		f["tls"] = plainMode
	}
	if b.Passthrough {
		l.FilterChains = []*listenerv3.FilterChain{chain("tcp", e.outboundTCP(passthroughName, f))}
		return l
	}
	switch {
	case b.Protocol.IsHTTP():
		l.FilterChains = []*listenerv3.FilterChain{chain("http", e.outboundHTTP(b, to, f))}
	case b.Protocol == mesh.TCP:
		l.FilterChains = []*listenerv3.FilterChain{chain("tcp", e.opaque(b, to, f)...)}
	default:
		e.sniff(l, sniffTimeout)
		http := chain("http", e.outboundHTTP(b, to, f))
		http.FilterChainMatch = &listenerv3.FilterChainMatch{ApplicationProtocols: plainHTTP()}
		l.FilterChains = []*listenerv3.FilterChain{http}
		l.DefaultFilterChain = chain("tcp", e.opaque(b, to, f)...)
	}
	return l
}

// sniff makes a listener tell HTTP from other protocols, as long as its client may
// stay silent.
func (e *encoder) sniff(l *listenerv3.Listener, silence time.Duration) {
	l.ListenerFilters = append(l.ListenerFilters, e.listenerFilter("envoy.filters.listener.http_inspector", &inspectorv3.HttpInspector{}))
	l.ListenerFiltersTimeout = durationpb.New(silence)
	l.ContinueOnListenerFiltersTimeout = true
}

// plainHTTP is what the inspector finds.
func plainHTTP() []string { return []string{"http/1.0", "http/1.1", "h2c"} }

func (e *encoder) outboundHTTP(b *mesh.Bundle, routes string, f fields) *listenerv3.Filter {
	m := e.manager(outboundName, []*accesslogv3.AccessLog{e.httpLog(wanted(ownLog, httpErrors()), f), e.countRequests(f)})
	m.RouteSpecifier = byRDS(routes)
	m.LocalReplyConfig = revoked()
	if b.Traced {
		e.trace(m, b.Name.String())
	}
	return e.httpFilterOf(m)
}

func (e *encoder) outboundTCP(cluster string, f fields) *listenerv3.Filter {
	return e.tcpProxy(outboundName, cluster, e.tcpLog(f), e.countConnections(f))
}

func chain(name string, filters ...*listenerv3.Filter) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Name: name, Filters: filters}
}
