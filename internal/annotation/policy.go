package annotation

import (
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// What a namespace, a Service or a pod says about policy. All are annotations.
const (
	// TrafficPolicy decides about calls to pods that no grant speaks of:
	// "permissive" allows them, "enforced" denies them. It stands on a namespace, and
	// on a Service for the ports that this leads to.
	TrafficPolicy = "outrigger.dev/traffic-policy"
	// Egress decides about calls of the namespace's pods to what is not in the
	// mesh: "allow" or "deny".
	Egress = "outrigger.dev/egress"
	// MTLS decides about plain text. At a server, "strict" refuses clients that
	// speak no mutual TLS, "permissive" lets them in where the traffic policy is
	// permissive too, so that a namespace can join step by step. Of a caller, "strict"
	// says that it calls nothing in the mesh's namespaces in plain text. It stands on a
	// namespace, a pod, and a Service, where it may name ports.
	MTLS = "outrigger.dev/mtls"
	// AllowFrom names callers that may do everything in enforced mode. It stands on
	// a namespace, and on a Service for the ports that this leads to.
	AllowFrom = "outrigger.dev/allow-from"
)

const (
	allowedMode        = "permissive or enforced"
	allowedEgress      = "allow or deny"
	allowedMTLS        = "strict or permissive"
	allowedServiceMTLS = "strict or permissive, for ports of the Service PORT=strict or PORT=permissive, separated by commas"
	allowedCallers     = "namespaces (shop or shop/*), service accounts (shop/web) or * for everyone in the mesh, separated by commas"
)

func policySubject() subject {
	valid := func(key string, parse func(map[string]string) error) func(string) bool {
		return func(v string) bool { return parse(map[string]string{key: v}) == nil }
	}
	return subject{
		title: "Who may call whom",
		text: "[using.md](using.md) tells how these go together, and with SMI objects. The most specific holds: a port's word before its Service's, then the pod's, then the " +
			"namespace's. Where several Services lead to one port of a pod, the strictest mode among theirs holds, and callers that any of them allows may call. Case does not matter in words.",
		keys: []Key{
			{
				Name: TrafficPolicy, On: Namespace | Service, Type: "word", Allowed: allowedMode, Default: "the namespace's, the chart's `trafficPolicy`",
				Effect:    "calls to its pods, or to the ports that the Service leads to, that no grant speaks of: `permissive` allows them, `enforced` denies them",
				Otherwise: "enforced mode holds",
				Valid:     valid(TrafficPolicy, func(a map[string]string) error { _, _, err := ServiceMode(a); return err }),
			},
			{
				Name: AllowFrom, On: Namespace | Service, Type: "list", Allowed: allowedCallers, Default: "the namespace's, nobody",
				Effect:    "in enforced mode these may call its pods, or the ports that the Service leads to: every request, and TCP. An empty list is nobody. It adds nothing for service accounts that a TrafficTarget has as destination",
				Otherwise: "that entry allows nobody",
				Valid:     valid(AllowFrom, func(a map[string]string) error { _, err := ServiceAllowFrom(a); return err }),
			},
			{
				Name: MTLS, On: Namespace | Pod, Type: "word", Allowed: allowedMTLS, Default: "the namespace's, `strict` for servers and `permissive` for callers",
				Effect: "as a server: `strict` refuses clients that speak no mutual TLS, `permissive` lets them in where the traffic policy is permissive too. " +
					"As a caller: with `strict` nothing leaves in plain text for pods without a proxy in the mesh's namespaces",
				Otherwise: "`strict` holds",
				Valid:     valid(MTLS, func(a map[string]string) error { _, err := PodMTLS(a); return err }),
			},
			{
				Name: MTLS, On: Service, Type: "list", Allowed: allowedServiceMTLS, Default: "the pod's, the namespace's",
				Effect:    "as above for the ports that the Service leads to, as a server: `strict, 8080=permissive`",
				Otherwise: "`strict` holds on all its ports",
				Valid:     valid(MTLS, func(a map[string]string) error { _, err := ServiceMTLS(a); return err }),
			},
			{
				Name: Egress, On: Namespace, Type: "word", Allowed: allowedEgress, Default: "the chart's `egress`",
				Effect:    "calls of its pods to what is not in the mesh",
				Otherwise: "egress is denied",
				Valid:     valid(Egress, func(a map[string]string) error { _, err := NamespaceEgress(a, false); return err }),
			},
		},
	}
}

// NamespaceMode returns the mode of a namespace, which is the mesh's unless
// [TrafficPolicy] says otherwise. With the error it returns the stricter mode,
// which then holds.
func NamespaceMode(annotations map[string]string, meshWide mesh.Mode) (mesh.Mode, error) {
	mode, said, err := mode(Namespace, annotations)
	if !said {
		return meshWide, nil
	}
	return mode, err
}

// ServiceMode returns the mode that a Service asks for, and whether it says
// anything about it. With the error it returns the stricter mode, which then holds.
func ServiceMode(annotations map[string]string) (m mesh.Mode, said bool, err error) {
	return mode(Service, annotations)
}

func mode(on Place, annotations map[string]string) (m mesh.Mode, said bool, err error) {
	value, said := annotations[TrafficPolicy]
	switch strings.ToLower(value) {
	case "permissive":
		return mesh.Permissive, said, nil
	case "enforced":
		return mesh.Enforced, said, nil
	}
	if said {
		err = policyError(on, TrafficPolicy, value, allowedMode)
	}
	return mesh.Enforced, said, err
}

func policyError(on Place, key, value, allowed string) *Error {
	return &Error{Object: on.String() + " annotation", Key: key, Value: value, Allowed: allowed}
}

// NamespaceEgress reports whether the pods of a namespace may leave the mesh,
// which is as in the whole mesh unless [Egress] says otherwise. With the error it
// returns false, which then holds.
func NamespaceEgress(annotations map[string]string, meshWide bool) (bool, error) {
	value, ok := annotations[Egress]
	if !ok {
		return meshWide, nil
	}
	switch strings.ToLower(value) {
	case "allow":
		return true, nil
	case "deny":
		return false, nil
	}
	return false, policyError(Namespace, Egress, value, allowedEgress)
}
