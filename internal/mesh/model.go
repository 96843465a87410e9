package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Parts is the raw material of a Snapshot, in any order.
type Parts struct {
	Settings   Settings    `json:"settings"`
	Namespaces []Namespace `json:"namespaces,omitempty"`
	Workloads  []Workload  `json:"workloads,omitempty"`
	Services   []Service   `json:"services,omitempty"`
	Grants     []Grant     `json:"grants,omitempty"`
	Splits     []Split     `json:"splits,omitempty"`
}

// Settings hold for the whole mesh.
type Settings struct {
	TrustDomain   string `json:"trustDomain"`
	ClusterDomain string `json:"clusterDomain"`
	// TrustBundle holds the roots that peers are verified against, as PEM
	// certificates. Empty means that nobody is trusted.
	TrustBundle string `json:"trustBundle,omitempty"`
	// AlsoTrusted are further trust domains whose identities are accepted, during a
	// change of the trust domain that signs. TrustDomain is not among them. One is left
	// in two steps, see [TrustDomain].
	AlsoTrusted []TrustDomain `json:"alsoTrusted,omitempty"`
	// OldTLS lets clients in that speak TLS 1.2. Proxies themselves speak 1.3.
	OldTLS bool `json:"oldTLS,omitempty"`
	// ServiceCIDRs are the ranges of ClusterIPs. Inside them only what policy
	// allows is reachable; nothing is passed through.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	// Tracing is nil where nothing is traced.
	Tracing *Tracing `json:"tracing,omitempty"`
}

// A Mode says what happens to a call that no Grant speaks of. The zero Mode is
// the safe one.
type Mode string

// The modes.
const (
	Enforced   Mode = ""           // denied
	Permissive Mode = "permissive" // allowed, for every identity of the mesh
)

// String returns "enforced" or "permissive".
func (m Mode) String() string {
	if m == Permissive {
		return "permissive"
	}
	return "enforced"
}

// An AccessLog says which calls leave a line in the access log of a proxy.
type AccessLog string

// What is logged.
const (
	LogErrors AccessLog = ""    // what was denied or failed
	LogOn     AccessLog = "on"  // everything
	LogOff    AccessLog = "off" // nothing
)

// More reports whether a logs more than b.
func (a AccessLog) More(b AccessLog) bool {
	order := []AccessLog{LogOff, LogErrors, LogOn}
	return slices.Index(order, a) > slices.Index(order, b)
}

// A Namespace is a namespace of the mesh and what holds for its workloads.
// Namespaces that are not in the mesh are not listed.
type Namespace struct {
	Name string `json:"name"`
	// Mode decides about calls to the workloads of this namespace.
	Mode Mode `json:"mode,omitempty"`
	// ModeBy names what decided Mode, for people: "Namespace shop annotation".
	// Empty is the mesh's setting.
	ModeBy string `json:"modeBy,omitempty"`
	// AllowEgress lets the workloads of this namespace reach what is outside
	// the mesh.
	AllowEgress bool `json:"allowEgress,omitempty"`
	// PlainText lets clients in that speak no mTLS, while Mode is Permissive: they
	// have no identity, so no grant can speak of them.
	PlainText bool `json:"plainText,omitempty"`
	// MutualTLSOnly is said of its workloads, where they do not say otherwise; see
	// [Workload].
	MutualTLSOnly bool `json:"mutualTLSOnly,omitempty"`
}

// A PortPolicy is what holds on one port of a pod, where that is not just what the
// pod's namespace says.
type PortPolicy struct {
	// Mode decides about calls that no grant speaks of.
	Mode Mode `json:"mode,omitempty"`
	// ModeBy names what decided Mode, for people: "Service shop/web annotation".
	// Empty is the namespace.
	ModeBy string `json:"modeBy,omitempty"`
	// PlainText lets clients in that speak no mTLS, while Mode is Permissive.
	PlainText   bool   `json:"plainText,omitempty"`
	PlainTextBy string `json:"plainTextBy,omitempty"` // as ModeBy
	// Grants let callers do everything on this port.
	Grants []PortGrant `json:"grants,omitempty"`
}

// ByPod is PlainTextBy where the pod itself says so. It has no name in it, so that
// replicas are alike.
const ByPod = "Pod annotation"

// A PortGrant lets some callers do everything on the port that it belongs to:
// every request, and every connection.
type PortGrant struct {
	// Source names what made the grant, for people: "Service shop/web allow-from".
	Source  string     `json:"source"`
	Callers []Identity `json:"callers,omitempty"`
	Groups  []Group    `json:"groups,omitempty"`
}

// Has reports whether g lets an identity in. Nobody stands for an identity of
// which nothing is known: only what lets everyone in has it.
func (g PortGrant) Has(caller Identity) bool {
	return slices.Contains(g.Callers, caller) || InGroups(g.Groups, caller)
}

// A Protocol is what a port speaks. The zero Protocol is found out connection
// by connection.
type Protocol string

// The protocols.
const (
	Auto Protocol = ""     // sniffed, with a short timeout that falls back to TCP
	HTTP Protocol = "http" // HTTP/1.x and HTTP/2 with prior knowledge
	GRPC Protocol = "grpc" // as HTTP
	TCP  Protocol = "tcp"  // opaque, TLS of the application and server-first protocols included
)

// IsHTTP reports whether p is always HTTP.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == GRPC }

// A Workload is a pod with a proxy.
type Workload struct {
	ID       ProxyID  `json:"id"`
	Identity Identity `json:"identity"`
	// Zone and Node are where it runs, if that is known.
	Zone string `json:"zone,omitempty"`
	Node string `json:"node,omitempty"`
	// Ports are the ports it serves to the mesh: those that the Services which
	// select the pod lead to. Anything else is closed to other pods.
	Ports []WorkloadPort `json:"ports,omitempty"`
	// MutualTLSOnly says that nothing may leave it in plain text for endpoints in
	// namespaces of the mesh, those without a proxy included.
	MutualTLSOnly bool `json:"mutualTLSOnly,omitempty"`
	// AccessLog is what it logs of what it sends, and of what it is sent on none of
	// its ports.
	AccessLog AccessLog `json:"accessLog,omitempty"`
}

// A WorkloadPort is a port of a pod that a Service leads to.
type WorkloadPort struct {
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol,omitempty"`
	// Policy is nil where the namespace's holds.
	Policy *PortPolicy `json:"policy,omitempty"`
	// AccessLog is what holds here, whoever said it.
	AccessLog AccessLog `json:"accessLog,omitempty"`
	// Sampling counts for requests that no other proxy has decided about. It is nil
	// where the mesh's holds.
	Sampling *Sampling `json:"sampling,omitempty"`
}

// A ServiceName names a Kubernetes Service.
type ServiceName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// String returns "namespace/name".
func (s ServiceName) String() string { return s.Namespace + "/" + s.Name }

// Compare orders services by namespace and name.
func (s ServiceName) Compare(t ServiceName) int {
	return cmp.Or(strings.Compare(s.Namespace, t.Namespace), strings.Compare(s.Name, t.Name))
}

// A PortName names one port of a Service. Its String is the name of the
// listener, route, cluster and endpoints that lead there.
type PortName struct {
	ServiceName
	Port uint16 `json:"port"`
}

// String returns "namespace/name:port".
func (p PortName) String() string { return fmt.Sprintf("%s:%d", p.ServiceName, p.Port) }

// Compare orders service ports by namespace, name and port number.
func (p PortName) Compare(q PortName) int {
	return cmp.Or(p.ServiceName.Compare(q.ServiceName), cmp.Compare(p.Port, q.Port))
}

// A Service is one port of a Kubernetes Service.
type Service struct {
	Name     PortName `json:"name"`
	Protocol Protocol `json:"protocol,omitempty"`
	// InMesh says that the Service's namespace is in the mesh. Calls to other
	// Services are egress: they go where the pod addressed them, in plain text,
	// if the caller's namespace allows egress.
	InMesh bool `json:"inMesh,omitempty"`
	// AlwaysReachable exempts the Kubernetes API server, and the cluster's DNS over
	// TCP, from the egress setting.
	AlwaysReachable bool `json:"alwaysReachable,omitempty"`
	// Addresses are the ClusterIPs. A headless Service has none.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Headless  bool         `json:"headless,omitempty"`
	// Identities are those that a server of this Service may present: the
	// service accounts of the pods in the Service's own namespace that its
	// selector matches, ready or not, so that a name is accepted before the
	// first endpoint with it appears. Empty means nobody.
	Identities []Identity `json:"identities,omitempty"`
	// Unserved says that the Service selects pods and that there is none now, with
	// or without a proxy, so that nobody knows which identities will serve it.
	Unserved bool `json:"unserved,omitempty"`
	// NodeLocal says that only endpoints for the caller's own node may be called
	// (internalTrafficPolicy: Local).
	NodeLocal bool `json:"nodeLocal,omitempty"`
	// TargetPorts are the ports on which those pods serve it, ready or not; without
	// pods, the one on which they would, if it has a number.
	TargetPorts []uint16   `json:"targetPorts,omitempty"`
	Endpoints   []Endpoint `json:"endpoints,omitempty"`
	// Policy is what this Service says, and holds while it has no pod. It is nil
	// where the namespace's holds.
	Policy *PortPolicy `json:"policy,omitempty"`
	// Targets are what Identities and TargetPorts come to where on any of the ports
	// something else holds than in the namespace. Otherwise it is empty.
	Targets []Target `json:"targets,omitempty"`
	// Traffic is how its callers shall call it. Callers of a Service outside the
	// mesh do not.
	Traffic Traffic `json:"traffic,omitzero"`
}

// A Target is a port that pods of an identity serve a Service on, ready or not.
type Target struct {
	Identity Identity    `json:"identity"`
	Port     uint16      `json:"port"`
	Policy   *PortPolicy `json:"policy,omitempty"` // nil where the namespace's holds
}

// An Endpoint is one address that serves a Service port.
type Endpoint struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	// Identity is who answers there. It is nobody for an endpoint outside the
	// mesh, which is reached in plain text.
	Identity Identity `json:"identity,omitzero"`
	// Outside says that it is no pod of the mesh's namespaces, but an address that
	// somebody wrote down: to call it is egress.
	Outside bool `json:"outside,omitempty"`
	// OnNode says that it is a pod which has its node's address.
	OnNode bool `json:"onNode,omitempty"`
	// Draining endpoints finish what they have and get nothing new while others
	// are left.
	Draining bool   `json:"draining,omitempty"`
	Zone     string `json:"zone,omitempty"`
	// ForZones and ForNodes are where it should be called from, if it is ready; see
	// nearest. They are not in Views.
	ForZones []string `json:"forZones,omitempty"`
	ForNodes []string `json:"forNodes,omitempty"`
	Hostname string   `json:"hostname,omitempty"`
	// Weight is relative to the other endpoints; zero counts as one.
	Weight uint32 `json:"weight,omitempty"`
	// Policy is what holds there. It is nil where the namespace's holds, and in a
	// [Bundle], whose callers it was asked for.
	Policy *PortPolicy `json:"policy,omitempty"`
}

// Unproxied reports whether it is a pod of the mesh's namespaces without a proxy.
func (e Endpoint) Unproxied() bool { return e.Identity.IsZero() && !e.Outside }

// A Grant lets some identities call the workloads of one service account.
type Grant struct {
	// Source names the object that made the grant, for people: "TrafficTarget
	// bookstore/bookbuyer".
	Source  string     `json:"source"`
	Server  Identity   `json:"server"`
	Callers []Identity `json:"callers"` // at least one
	// HTTP says which requests are allowed on HTTP ports; any one match is
	// enough. Empty allows none: a grant opens what it names and nothing else.
	HTTP []HTTPMatch `json:"http,omitempty"`
	// Ports are the server's ports (not the Service's). For TCP they are opened;
	// empty opens none. For HTTP they narrow the grant to these ports; empty
	// means every HTTP port.
	Ports []uint16 `json:"ports,omitempty"`
	// Narrow says that Ports only narrow HTTP, and open nothing.
	Narrow bool `json:"narrow,omitempty"`
}

// A HTTPMatch describes requests. All its conditions must hold; the zero
// HTTPMatch is every request.
type HTTPMatch struct {
	// Path is matched without the query, after normalisation.
	Path    StringMatch   `json:"path,omitzero"`
	Methods []string      `json:"methods,omitempty"` // any one of them; empty is any
	Headers []HeaderMatch `json:"headers,omitempty"` // all of them
}

// A HeaderMatch is a condition on one header. Name is in lower case; a
// condition on host is written with the name ":authority".
type HeaderMatch struct {
	Name  string      `json:"name"`
	Value StringMatch `json:"value"`
}

// A MatchKind says how a StringMatch compares.
type MatchKind string

// The kinds of match.
const (
	Any    MatchKind = ""       // every value
	Exact  MatchKind = "exact"  // the whole value is equal
	Prefix MatchKind = "prefix" // for a path: of whole segments
	Regex  MatchKind = "regex"  // RE2, and the whole value must match
)

// A StringMatch is a condition on a string.
type StringMatch struct {
	Kind  MatchKind `json:"kind,omitempty"`
	Value string    `json:"value,omitempty"`
}

// A Split shares the calls of a Service out among others of its namespace.
type Split struct {
	Source   string          `json:"source"`
	Apex     ServiceName     `json:"apex"`
	Backends []WeightedShare `json:"backends"`
	// Matches narrows an HTTP split to some requests; empty means all. The
	// others go to the apex itself.
	Matches []HTTPMatch `json:"matches,omitempty"`
	// LeftOut are backends that were written and can take none of its calls, whoever
	// makes them. They are for people.
	LeftOut []LeftOut `json:"leftOut,omitempty"`
}

// A LeftOut is a backend as it was written, and why it is none.
type LeftOut struct {
	Service string `json:"service"`
	Why     string `json:"why"`
}

// A WeightedShare is a backend of a Split, a Service in the apex's namespace.
type WeightedShare struct {
	Service string `json:"service"`
	Weight  uint32 `json:"weight"`
}
