package why

import (
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A Verdict is the answer in one word.
type Verdict string

// The verdicts.
const (
	Allowed Verdict = "allowed"
	Denied  Verdict = "denied"
	// Partly says that it depends on which server a call comes to.
	Partly Verdict = "partly"
)

// A Side is which proxy denies a call.
type Side string

// The sides. Client is the proxy beside the caller, Server the one beside the
// application that is called.
const (
	Client Side = "client"
	Server Side = "server"
)

// A Reason says for machines why a call is allowed or denied. Reasons are never
// reworded.
type Reason string

// Why calls are allowed.
const (
	ByRule          Reason = "rule"           // an HTTP rule covers it
	ByTCPGrant      Reason = "tcp-grant"      // a grant opens the TCP port
	PermissiveMode  Reason = "permissive"     // the server's namespace is permissive
	EgressAllowed   Reason = "egress-allowed" // the caller's namespace may leave the mesh
	AlwaysReachable Reason = "always-reachable"
	OwnPod          Reason = "own-pod"      // it never meets a proxy
	NoProxies       Reason = "no-proxies"   // neither end has a proxy for this call
	PlainServer     Reason = "plain-server" // an endpoint outside the mesh, called in plain text
	NoEndpoint      Reason = "no-endpoint"  // nothing answers; the caller's proxy says 503
)

// Why calls are denied.
const (
	NoGrant      Reason = "no-grant"      // enforced, and nothing lets the caller call this server
	NoRule       Reason = "no-rule"       // enforced, and no rule covers the request
	EgressDenied Reason = "egress-denied" // outside the mesh
	PlainRefused Reason = "plain-refused" // the server wants mutual TLS
	PortClosed   Reason = "port-closed"   // the server does not serve this port to the mesh
	NothingThere Reason = "nothing-there" // no Service has this address and port
	NotHTTP      Reason = "not-http"      // the port is declared HTTP, the call is not
	// MutualTLSWanted: the server has no proxy, and the caller's mtls annotation
	// wants one.
	MutualTLSWanted Reason = "mutual-tls-wanted"

	EscapedSlash  Reason = "escaped-slash"  // %2F, %5C or %00 in the path
	NoMeshServers Reason = "no-mesh-server" // enforced, and no pod of the Service has a proxy
)

// A CallAnswer is what becomes of a call.
type CallAnswer struct {
	Verdict Verdict `json:"verdict"`
	// Side says where it is denied, if it is.
	Side   Side   `json:"side,omitempty"`
	Reason Reason `json:"reason"`
	// Message says why to a person, in whole sentences.
	Message string `json:"message"`

	Caller      Caller      `json:"caller"`
	Request     Request     `json:"request"`
	Destination Destination `json:"destination"`
	// Split is the object that shares the call out, if any does.
	Split    string    `json:"split,omitempty"`
	Backends []Backend `json:"backends,omitempty"`
	// Notes are facts that the caller will want to know besides.
	Notes []string `json:"notes,omitempty"`

	// NearMisses are what almost allows a denied call, nearest first.
	NearMisses []NearMiss `json:"nearMisses,omitempty"`
	// Change is the smallest change that would allow it, where one is known.
	Change *Change `json:"change,omitempty"`
}

// A Caller is who calls.
type Caller struct {
	Identity mesh.Identity `json:"identity"`
	// Pod is the pod that stands for the caller, "namespace/name". It is empty
	// when none is known.
	Pod string `json:"pod,omitempty"`
	// Proxy says that the pod has a sidecar.
	Proxy bool `json:"proxy"`
}

// A Request is what is asked for, as the server's proxy would see it.
type Request struct {
	Method    string `json:"method,omitempty"`
	Scheme    string `json:"scheme"`
	Authority string `json:"authority"`
	Path      string `json:"path,omitempty"` // normalised, without the query
}

// A Destination is what a URL leads to.
type Destination struct {
	Host string `json:"host"`
	Port uint16 `json:"port"`
	// Service is "namespace/name:port", empty outside the mesh's knowledge.
	Service   string   `json:"service,omitempty"`
	Protocol  string   `json:"protocol,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// A Backend is one kind of server that a call may come to.
type Backend struct {
	Service string `json:"service,omitempty"`
	// Server is who answers there; empty is outside the mesh.
	Server string `json:"server,omitempty"`
	Port   uint16 `json:"port,omitempty"`
	// Percent of the calls that go there.
	Percent   float64 `json:"percent"`
	Endpoints int     `json:"endpoints"`
	// Transport is "mtls" or "plain".
	Transport string  `json:"transport"`
	Verdict   Verdict `json:"verdict"`
	// Side says which proxy denies it, if one does.
	Side   Side   `json:"side,omitempty"`
	Reason Reason `json:"reason"`
	// Because names the object and the rule that allow it, or says what is missing.
	Because string `json:"because,omitempty"`
}

// A NearMiss is a grant that would allow the call, were something different.
type NearMiss struct {
	Object string `json:"object"`
	// Differs says what is different, in a sentence's end: "it allows POST, not
	// GET".
	Differs string `json:"differs"`
	far     int    // see miss
}

// headersOnly reports whether it is the caller's own rule, and the request lacks
// nothing but headers.
func (n NearMiss) headersOnly() bool {
	return n.far < farMethod && strings.HasPrefix(n.Differs, "of its rule")
}

// A Change would allow a denied call.
type Change struct {
	Text string `json:"text"`
	// Command is what to run, if that is all it takes.
	Command string `json:"command,omitempty"`
	// Sources are the TrafficTargets to add the entry in YAML to; without any, YAML
	// is objects to apply.
	Sources []string `json:"sources,omitempty"`
	YAML    string   `json:"yaml,omitempty"`
}
