package xds

import (
	"cmp"
	"fmt"
	"strconv"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/generic_secret/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// What a server's proxy decided, and why, for the access log and for metrics.
//
// A decision is made from an allow list, which names no rule when it denies. So
// what made the port enforced is told beside it: for HTTP in the metadata of the
// port's route; for TCP, where the decision falls in the handshake before there
// is a route or a cluster, in a secret that only the access log reads. Both
// change without the listener.

// noGrant is the reason of a denial: nothing that was granted covers the call.
const noGrant = "no grant matched"

// stranger is the reason of a denial: the caller is nobody of the mesh.
const stranger = "no certificate of this mesh"

// policy says what holds on a port and what decided so.
func policy(p mesh.InboundPort) string {
	return fmt.Sprintf("%s: %s", p.Mode, cmp.Or(p.ModeBy, "mesh setting"))
}

// metadataKey is the name of the mesh's own metadata.
const metadataKey = "outrigger"

// policyKey is where the metadata of a route, of a TCP port's cluster, and the
// formatter of a TCP port say what holds. allowedKey, in that of a cluster, says why
// a connection is allowed, if it is not for a grant.
const (
	policyKey  = "policy"
	allowedKey = "allowedBy"
)

// clusterPolicy is what metrics have about a TCP connection. One that is denied has
// no cluster yet.
func clusterPolicy() fields {
	return fields{
		"policy":    "%METADATA(CLUSTER:" + metadataKey + ":" + policyKey + ")%",
		"allowedBy": "%METADATA(CLUSTER:" + metadataKey + ":" + allowedKey + ")%",
	}
}

// connectionPolicy is the metadata of a TCP port's cluster.
func connectionPolicy(p mesh.InboundPort) *corev3.Metadata {
	values := map[string]string{policyKey: policy(p)}
	if p.Mode == mesh.Permissive {
		values[allowedKey] = permissivePolicy
	}
	return metadata(values)
}

func metadata(values map[string]string) *corev3.Metadata {
	fields := map[string]*structpb.Value{}
	for key, value := range values {
		fields[key] = structpb.NewStringValue(value)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataKey: {Fields: fields}}}
}

// httpDecision is what the RBAC filter says about a request.
func httpDecision() fields {
	result := "metadata.filter_metadata['" + rbacFilter + "']['enforced_engine_result']"
	return fields{
		"decision":  "%DYNAMIC_METADATA(" + rbacFilter + ":enforced_engine_result)%",
		"allowedBy": "%DYNAMIC_METADATA(" + rbacFilter + ":enforced_effective_policy_id)%",
		"reason":    "%CEL(" + result + " == 'denied' ? '" + noGrant + "' : '')%",
		"policy":    "%METADATA(ROUTE:" + metadataKey + ":" + policyKey + ")%",
	}
}

// What a handshake came to. A name that the port's secret does not have is the
// one fault of a certificate that a grant mends; and where it is the caller that
// broke off, it was not denied.
const (
	failure    = "connection.transport_failure_reason"
	failed     = "has(" + failure + ")"
	wrongName  = failure + ".contains('SAN match')"
	unverified = "(" + failure + ".contains('CERTIFICATE_VERIFY_FAILED') || " + failure + ".contains('PEER_DID_NOT_RETURN'))"
)

// handshake is what a handshake says about a call. A wrong name has that reason.
func handshake(wrong string) fields {
	return fields{
		"decision":      "%CEL(!" + failed + " ? 'allowed' : " + unverified + " ? 'denied' : '')%",
		"reason":        "%CEL(" + wrongName + " ? '" + wrong + "' : " + unverified + " ? '" + stranger + "' : '')%",
		"downstreamTLS": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
	}
}

// onPort are the fields of calls to a port.
func onPort(p mesh.InboundPort) fields {
	return call(inboundName).with(fields{"port": strconv.Itoa(int(p.Port))})
}

// inboundTCPLog writes a line for each connection to a TCP port that was denied
// or failed, and counts all.
func (e *encoder) inboundTCPLog(p mesh.InboundPort) []*accesslogv3.AccessLog {
	f := onPort(p).with(handshake(noGrant))
	log := e.stdout(wanted(portLog(p.Port), anyOf(anyFlag(), e.holds(failed))), f.with(fields{"policy": "%SECRET(" + policyKey + ")%"}), &corev3.TypedExtensionConfig{
		Name: "envoy.formatter.generic_secret",
		TypedConfig: e.any(&secretv3.GenericSecret{SecretConfigs: map[string]*tlsv3.SdsSecretConfig{
			policyKey: {Name: policyName(p), SdsConfig: ads()},
		}}),
	})
	return []*accesslogv3.AccessLog{log, e.countConnections(f.with(clusterPolicy()))}
}

// handshakeLog is for connections to an HTTP port that came to nothing before
// there was a request. The port is one that has a chain, so there are few.
func (e *encoder) handshakeLog() []*accesslogv3.AccessLog {
	f := call(inboundName).with(handshake(stranger)).with(fields{"port": "%DOWNSTREAM_LOCAL_PORT%"})
	only := e.holds(failed + " && xds.filter_chain_name.endsWith(' " + httpChain + "')")
	return []*accesslogv3.AccessLog{e.stdout(allOf(only, ofRuntime(ownLog+errorsKey, 100)), f), e.countRefused(only, f)}
}

// closedLog is for connections that no chain takes. Callers choose the port, so it
// is no label.
func (e *encoder) closedLog() []*accesslogv3.AccessLog {
	f := call(inboundName).with(fields{
		"decision": "denied",
		"reason":   "plain text where only mutual TLS is taken, or a port that no Service leads to",
	})
	return []*accesslogv3.AccessLog{e.tcpLog(f), e.countRefused(nil, f)}
}

// policyName is the secret with what holds on a TCP port. It is none, but it comes
// like one.
func policyName(p mesh.InboundPort) string { return fmt.Sprintf("policy:%d", p.Port) }

func (e *encoder) policySecret(p mesh.InboundPort) {
	name := policyName(p)
	e.add(Secret, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{
		GenericSecret: &tlsv3.GenericSecret{Secret: inline(policy(p))},
	}})
}
