package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// A View is one proxy's part of a Snapshot. It holds nothing of the proxy's own
// pod, so that replicas share all of it. Equal keys mean equal content, within a
// Snapshot and across Snapshots.
type View struct {
	Trust    *Trust    `json:"trust"`
	Inbound  *Inbound  `json:"inbound"`
	Outbound *Outbound `json:"outbound"`
}

// Inbound is what a workload serves. All replicas of a workload share one.
type Inbound struct {
	Key string `json:"key"`
	// TrustDomain and AlsoTrusted are where callers are accepted, by name.
	TrustDomain string        `json:"trustDomain"`
	AlsoTrusted []string      `json:"alsoTrusted,omitempty"`
	Identity    Identity      `json:"identity"`
	OldTLS      bool          `json:"oldTLS,omitempty"` // clients may speak TLS 1.2
	Ports       []InboundPort `json:"ports,omitempty"`  // by port number
	// AccessLog says which calls leave a line, of those that the workload makes and
	// of those to none of its ports.
	AccessLog AccessLog `json:"accessLog,omitempty"`
	// Traced says that there is a collector.
	Traced bool `json:"traced,omitempty"`
}

// An InboundPort is a port that a workload serves to the mesh.
type InboundPort struct {
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol,omitempty"`
	Mode     Mode     `json:"mode,omitempty"`
	// ModeBy names what decided Mode; empty is the mesh's setting.
	ModeBy string `json:"modeBy,omitempty"`
	// Rules say which requests are allowed when the port speaks HTTP in enforced
	// mode: a request is allowed if any rule covers it. No rule denies all.
	Rules []Rule `json:"rules,omitempty"`
	// PlainText also lets clients in that speak no mTLS.
	PlainText bool `json:"plainText,omitempty"`
	// PlainTextBy names the object that decided PlainText, where it was not the
	// namespace.
	PlainTextBy string `json:"plainTextBy,omitempty"`
	// Callers and Groups may connect when the port speaks TCP in enforced mode.
	// Both empty means nobody. Permissive mode lets everyone in who has the mesh's
	// trust.
	Callers []Identity `json:"callers,omitempty"`
	Groups  []Group    `json:"groups,omitempty"`
	// AccessLog says which calls leave a line.
	AccessLog AccessLog `json:"accessLog,omitempty"`
	// Sampling counts for requests that nobody has decided about before.
	Sampling Sampling `json:"sampling,omitempty"`
}

// MayConnect reports whether the port's list for TCP has a caller.
func (p InboundPort) MayConnect(caller Identity) bool {
	return slices.Contains(p.Callers, caller) || InGroups(p.Groups, caller)
}

// A Rule allows some identities some requests.
type Rule struct {
	Source  string     `json:"source"` // the object that made it, as in Grant
	Match   HTTPMatch  `json:"match"`
	Callers []Identity `json:"callers"`          // sorted; with Groups never empty
	Groups  []Group    `json:"groups,omitempty"` // sorted
}

// Has reports whether r allows a caller what it matches.
func (r Rule) Has(caller Identity) bool {
	return slices.Contains(r.Callers, caller) || InGroups(r.Groups, caller)
}

// Outbound is where the calls of an identity may go. All workloads of a service
// account share one, or two where only some of them are MutualTLSOnly.
type Outbound struct {
	Key          string         `json:"key"` // of everything here but Bundles and Collector
	TrustDomain  string         `json:"trustDomain"`
	Caller       Identity       `json:"caller"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	AllowEgress  bool           `json:"allowEgress,omitempty"`
	// MutualTLSOnly forbids plain text into the namespaces of the mesh: no bundle has
	// an endpoint then that would need it. Refused are the addresses of pods without a
	// proxy that Services lead to, sorted: what is dialled there is denied, at any port
	// that no bundle has.
	MutualTLSOnly bool         `json:"mutualTLSOnly,omitempty"`
	Refused       []netip.Addr `json:"refused,omitempty"`
	// Bundles are sorted by name. An address inside ServiceCIDRs that no bundle
	// has is denied.
	Bundles []*Bundle `json:"bundles,omitempty"`
	// Collector is nil where nothing is traced.
	Collector *Collector `json:"collector,omitempty"`
}

// A Bundle is one Service port as some callers see it. Callers that see it
// alike share the same Bundle.
type Bundle struct {
	Key         string       `json:"key"`
	Name        PortName     `json:"name"`
	TrustDomain string       `json:"trustDomain"`
	AlsoTrusted []string     `json:"alsoTrusted,omitempty"` // where servers are accepted, beside TrustDomain; by name
	Protocol    Protocol     `json:"protocol,omitempty"`
	Addresses   []netip.Addr `json:"addresses,omitempty"` // ClusterIPs
	// Headless bundles are reached by the endpoints' own addresses, which several
	// of them may share.
	Headless bool `json:"headless,omitempty"`
	// Passthrough bundles lead, in plain text, to the address that the
	// application dialled; they have neither routes nor identities.
	Passthrough bool `json:"passthrough,omitempty"`
	// Routes are for HTTP, tried in order; the last one matches everything.
	Routes []Route `json:"routes,omitempty"`
	// Identities that a server may present, sorted. Empty means nobody.
	Identities []Identity `json:"identities,omitempty"`
	// Endpoints that the callers may use, sorted by address and port. A TCP split
	// has its backends' endpoints here, with their weights.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// IdleTimeout ends connections that are not HTTP and on which nothing moves;
	// zero is none.
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"`
	// Pool is how the endpoints are used, by whatever route they are reached.
	Pool Pool `json:"pool,omitzero"`
	// Traced says that its routes have a Sampling, because there is a collector.
	Traced bool `json:"traced,omitempty"`
}

// A Route sends the requests that it matches to its shares.
type Route struct {
	Match HTTPMatch `json:"match,omitzero"`
	// Shares lead to bundles of the same Outbound. Weights are relative. Empty,
	// or all of weight zero, answers 503.
	Shares      []Share       `json:"shares,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`     // zero is none
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"` // zero is none
	Retry       Retry         `json:"retry,omitzero"`
	// HashHeaders are what those shares go by whose Pool goes by a header, sorted.
	HashHeaders []string `json:"hashHeaders,omitempty"`
	// Sampling counts for requests that nobody has decided about before.
	Sampling Sampling `json:"sampling,omitempty"`
}

// A Share is a part of the traffic that goes to one bundle's endpoints.
type Share struct {
	To     PortName `json:"to"`
	Weight uint32   `json:"weight"`
}
