package xds

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Names of the resources that every Set has.
const (
	outboundName    = "outbound" // listener: what the pod sends
	inboundName     = "inbound"  // listener: what the pod is sent; with a port, cluster and route: its own application
	deniedName      = "denied"   // listener and cluster: answers a call that may not be made
	egressName      = "egress"   // cluster: what is outside the mesh, or egressDenied
	egressDenied    = "denied-egress"
	passthroughName = "passthrough" // cluster: the address that the application dialled
	closedName      = "closed"      // cluster: nothing; whatever is sent there is closed
	trustName       = "trust"       // secret: the roots of the mesh
	membersName     = "members"     // secret: the roots, for every identity of the mesh
	tracingName     = "tracing"     // cluster: the collector of spans, where something is traced
)

// ads is a source that a proxy already has: the stream that this came by.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: socket(a)}}
}

func socket(a netip.AddrPort) *corev3.SocketAddress {
	return &corev3.SocketAddress{
		Address:       a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}
}

func cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}

func (e *encoder) transportSocket(name string, m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: name, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: e.any(m)}}
}

// never switches off a timeout that is on by default.
func never() *durationpb.Duration { return durationpb.New(0) }
