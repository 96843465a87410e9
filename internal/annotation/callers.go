package annotation

import (
	"cmp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// Callers are those whom [AllowFrom] names, sorted.
type Callers struct {
	Said       bool // an empty list is said too, and has nobody
	Identities []mesh.Identity
	Groups     []mesh.Group
}

// Nobody reports whether c lets nobody in.
func (c Callers) Nobody() bool { return len(c.Identities)+len(c.Groups) == 0 }

// NamespaceAllowFrom returns the callers that a namespace lets in. The error names
// the entries that are not allowed; the others are returned, and hold.
func NamespaceAllowFrom(annotations map[string]string) (Callers, error) {
	return callers(Namespace, annotations)
}

// ServiceAllowFrom does for a Service what [NamespaceAllowFrom] does for a
// namespace.
func ServiceAllowFrom(annotations map[string]string) (Callers, error) {
	return callers(Service, annotations)
}

func callers(on Place, annotations map[string]string) (Callers, error) {
	value, said := annotations[AllowFrom]
	out := Callers{Said: said}
	if strings.TrimSpace(value) == "" {
		return out, nil
	}
	var refused []string
	for entry := range strings.SplitSeq(value, ",") {
		entry = strings.TrimSpace(entry)
		ns, account, both := strings.Cut(entry, "/")
		switch {
		case entry == string(mesh.Everyone):
			out.Groups = append(out.Groups, mesh.Everyone)
		case len(validation.IsDNS1123Label(ns)) > 0:
			refused = append(refused, entry)
		case !both || account == "*":
			out.Groups = append(out.Groups, mesh.Group(ns))
		case len(validation.IsDNS1123Subdomain(account)) > 0:
			refused = append(refused, entry)
		default:
			out.Identities = append(out.Identities, mesh.Identity{Namespace: ns, ServiceAccount: account})
		}
	}
	out.Identities = union(mesh.Identity.Compare, out.Identities)
	out.Groups = union(cmp.Compare[mesh.Group], out.Groups)
	if len(refused) > 0 {
		return out, policyError(on, AllowFrom, strings.Join(refused, ", "), allowedCallers)
	}
	return out, nil
}
