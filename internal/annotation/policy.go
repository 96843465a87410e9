package annotation

import (
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// What a namespace says about policy. All are annotations.
const (
	// TrafficPolicy decides about calls to the namespace's pods that no grant
	// speaks of: "permissive" allows them, "enforced" denies them.
	TrafficPolicy = "outrigger.dev/traffic-policy"
	// Egress decides about calls of the namespace's pods to what is not in the
	// mesh: "allow" or "deny".
	Egress = "outrigger.dev/egress"
	// MTLS decides about clients of the namespace's pods that speak no mutual TLS:
	// "strict" refuses them, "permissive" lets them in where the traffic policy is
	// permissive too, so that a namespace can join step by step.
	MTLS = "outrigger.dev/mtls"
)

const (
	allowedMode   = "permissive or enforced"
	allowedEgress = "allow or deny"
	allowedMTLS   = "strict or permissive"
)

func policySubject() subject {
	return subject{
		title: "Who may call whom",
		text:  "SMI objects say more: see [using.md](using.md). Case does not matter.",
		keys: []Key{
			{
				Name: TrafficPolicy, On: Namespace, Type: "word", Allowed: allowedMode, Default: "the chart's `trafficPolicy`",
				Effect:    "calls to its pods that no grant speaks of: `permissive` allows them, `enforced` denies them",
				Otherwise: "enforced mode holds",
				Valid: func(v string) bool {
					_, err := NamespaceMode(map[string]string{TrafficPolicy: v}, mesh.Enforced)
					return err == nil
				},
			},
			{
				Name: MTLS, On: Namespace, Type: "word", Allowed: allowedMTLS, Default: "strict",
				Effect:    "clients of its pods that speak no mutual TLS: `strict` refuses them, `permissive` lets them in where the traffic policy is permissive too",
				Otherwise: "only mutual TLS is let in",
				Valid:     func(v string) bool { _, err := NamespacePlainText(map[string]string{MTLS: v}); return err == nil },
			},
			{
				Name: Egress, On: Namespace, Type: "word", Allowed: allowedEgress, Default: "the chart's `egress`",
				Effect:    "calls of its pods to what is not in the mesh",
				Otherwise: "egress is denied",
				Valid:     func(v string) bool { _, err := NamespaceEgress(map[string]string{Egress: v}, false); return err == nil },
			},
		},
	}
}

// NamespaceMode returns the mode of a namespace, which is the mesh's unless
// [TrafficPolicy] says otherwise. With the error it returns the stricter mode,
// which then holds.
func NamespaceMode(annotations map[string]string, meshWide mesh.Mode) (mesh.Mode, error) {
	value, ok := annotations[TrafficPolicy]
	if !ok {
		return meshWide, nil
	}
	switch strings.ToLower(value) {
	case "permissive":
		return mesh.Permissive, nil
	case "enforced":
		return mesh.Enforced, nil
	}
	return mesh.Enforced, &Error{Object: "namespace annotation", Key: TrafficPolicy, Value: value, Allowed: allowedMode}
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
	return false, &Error{Object: "namespace annotation", Key: Egress, Value: value, Allowed: allowedEgress}
}

// NamespacePlainText reports whether the pods of a namespace let clients in that
// speak no mutual TLS. They do not, unless [MTLS] says so. With the error it
// returns false, which then holds.
func NamespacePlainText(annotations map[string]string) (bool, error) {
	value, ok := annotations[MTLS]
	if !ok {
		return false, nil
	}
	switch strings.ToLower(value) {
	case "strict":
		return false, nil
	case "permissive":
		return true, nil
	}
	return false, &Error{Object: "namespace annotation", Key: MTLS, Value: value, Allowed: allowedMTLS}
}
