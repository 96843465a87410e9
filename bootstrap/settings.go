package bootstrap

// Settings is the one argument that the injector gives to outrigger-agent, as
// JSON. It says what differs from mesh to mesh and from pod to pod; everything
// about the pod's own identity comes from the downward API (see the Env
// constants) and the mounted volumes. It stays small, because it is part of
// every pod object.
type Settings struct {
	// Mesh is the mesh's name and the audience of the mounted token.
	Mesh string `json:"mesh"`
	// TrustDomain of the workload's SPIFFE ID.
	TrustDomain string `json:"trustDomain"`
	// AlsoTrusted are trust domains in which outriggerd may be, too, until it says
	// itself which: the pod is made while the mesh changes its trust domain.
	AlsoTrusted []string `json:"alsoTrusted,omitempty"`
	// ControlPlane is the host:port where outriggerd serves xDS and signing.
	ControlPlane string `json:"controlPlane"`
	// ControlPlaneID is the SPIFFE ID that outriggerd must present, in TrustDomain; in
	// another trust domain that is accepted its path must be the same.
	ControlPlaneID string `json:"controlPlaneID"`
	// LogLevel is Envoy's: trace, debug, info, warning, error, critical or off.
	// Empty is warning.
	LogLevel string `json:"logLevel,omitempty"`
	// Concurrency is the number of Envoy's worker threads. Zero is 2.
	Concurrency int `json:"concurrency,omitempty"`
	// DrainSeconds is the pod's grace period: the time in which connections are
	// asked to end. Zero is 30.
	DrainSeconds int64 `json:"drainSeconds,omitempty"`
	// MemoryLimit of the container in bytes, from which the overload manager
	// takes its bounds. Zero sets none.
	MemoryLimit int64 `json:"memoryLimit,omitempty"`
	// Identity is where the certificate comes from. Nil is outriggerd.
	Identity *Identity `json:"identity,omitempty"`
	// Probes are the pod's own probes and lifecycle hooks, answered by the agent.
	Probes []Probe `json:"probes,omitempty"`
}

// An Identity is somebody else than outriggerd who gives the pod its certificate,
// by what is mounted at [IdentityDir].
type Identity struct {
	// WorkloadAPI is the file name of a SPIFFE Workload API's socket. Empty means
	// that there are the files [IdentityChain] and [IdentityKey].
	WorkloadAPI string `json:"workloadAPI,omitempty"`
}

// A Probe is a kubelet probe, or an HTTP lifecycle hook, that was rewritten to
// the agent's port. The agent answers at exactly Path and asks the original
// target at the pod's own address.
type Probe struct {
	// Path at the agent, for example "/probe/app/liveness". For a probe that was
	// gRPC it is an HTTP path too.
	Path string `json:"path"`
	// Exactly one of these is set.
	HTTP *HTTPProbe `json:"http,omitempty"`
	TCP  *TCPProbe  `json:"tcp,omitempty"`
	GRPC *GRPCProbe `json:"grpc,omitempty"`
	// TimeoutSeconds is the original's; zero is 1, as in Kubernetes. A lifecycle
	// hook has the pod's grace period.
	TimeoutSeconds int32 `json:"timeout,omitempty"`
}

// A HTTPProbe is an httpGet.
type HTTPProbe struct {
	Port     int32    `json:"port"`
	PortName string   `json:"portName,omitempty"` // how the pod said it; only for uninject
	Path     string   `json:"path,omitempty"`
	TLS      bool     `json:"tls,omitempty"` // the certificate is not verified, as in the kubelet
	Headers  []Header `json:"headers,omitempty"`
}

// A Header is sent with a probe; a Host header sets the request's host.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// A TCPProbe is a tcpSocket.
type TCPProbe struct {
	Port     int32  `json:"port"`
	PortName string `json:"portName,omitempty"` // how the pod said it; only for uninject
}

// A GRPCProbe is a grpc health check.
type GRPCProbe struct {
	Port    int32  `json:"port"`
	Service string `json:"service,omitempty"`
}

// Ports of the pod that belong to the mesh.
const (
	OutboundPort = 15001 // Envoy: what the pod sends
	InboundPort  = 15003 // Envoy: what the pod is sent
	MetricsPort  = 15010 // Prometheus metrics
	AgentPort    = 15020 // outrigger-agent: probes and readiness
)

// ProxyUID is the user and group that Envoy and its agent run as. Traffic of this
// user is not redirected.
const ProxyUID = 1500

// Environment of the sidecar, from the downward API.
const (
	EnvPodName        = "POD_NAME"
	EnvPodNamespace   = "POD_NAMESPACE"
	EnvPodUID         = "POD_UID"
	EnvPodIPs         = "POD_IPS" // comma-separated
	EnvServiceAccount = "SERVICE_ACCOUNT"
	EnvNodeName       = "NODE_NAME"
	EnvZone           = "TOPOLOGY_ZONE" // the pod's label topology.kubernetes.io/zone; may be empty
)

// Where the sidecar finds its volumes.
const (
	// StateDir is a tmpfs, for the key, the certificates and Envoy's sockets.
	StateDir = "/var/run/outrigger"
	// TokenFile holds the projected service account token for signing.
	TokenFile = "/var/run/secrets/outrigger.dev/token/token"
	// TrustFile holds the roots that outriggerd is verified against, PEM.
	TrustFile = "/var/run/secrets/outrigger.dev/trust/ca.crt"
	// IdentityDir is where certificates of somebody else come from.
	IdentityDir = "/var/run/secrets/outrigger.dev/identity"
)

// Names of the files in [IdentityDir], both PEM: the chain, leaf first, and its key.
const (
	IdentityChain = "tls.crt"
	IdentityKey   = "tls.key"
)
