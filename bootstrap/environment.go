package bootstrap

import "github.com/outrigger-mesh/outrigger/internal/mesh"

// EnvIdentity is, in Envoy's own environment, the identity of its pod as its
// certificate has it. Access log, metrics and answers to denied callers say it.
const EnvIdentity = "IDENTITY"

// EnvResource is, in Envoy's own environment, what OpenTelemetry calls a resource:
// whose spans they are.
const EnvResource = "OTEL_RESOURCE_ATTRIBUTES"

// Environment returns what Envoy's environment holds, and nothing else of the
// pod's is to reach it: the names that its configuration, which all pods of a
// workload share, leaves open.
func Environment(s Settings, n Node) []string {
	return []string{
		EnvPodNamespace + "=" + n.Namespace,
		EnvPodName + "=" + n.Pod,
		EnvServiceAccount + "=" + n.ServiceAccount,
		EnvResource + "=service.name=" + n.ServiceAccount + "." + n.Namespace + ",k8s.namespace.name=" + n.Namespace + ",k8s.pod.name=" + n.Pod + ",k8s.pod.uid=" + n.UID,
		EnvIdentity + "=" + mesh.Identity{Namespace: n.Namespace, ServiceAccount: n.ServiceAccount}.URI(s.TrustDomain),
	}
}
