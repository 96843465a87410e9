package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// An Identity is a service account, which is what the mesh authenticates. The
// zero Identity is nobody: an endpoint outside the mesh has it.
type Identity struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// String returns "namespace/serviceaccount".
func (i Identity) String() string { return i.Namespace + "/" + i.ServiceAccount }

// URI returns the SPIFFE ID of i in a trust domain, the only URI SAN of its
// certificates.
func (i Identity) URI(trustDomain string) string {
	return "spiffe://" + trustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// IsZero reports whether i is nobody.
func (i Identity) IsZero() bool { return i == Identity{} }

// Compare orders identities by namespace, then service account.
func (i Identity) Compare(j Identity) int {
	return cmp.Or(strings.Compare(i.Namespace, j.Namespace), strings.Compare(i.ServiceAccount, j.ServiceAccount))
}

// ParseURI returns the identity that a SPIFFE ID names in a trust domain. Only
// the exact form that [Identity.URI] writes is accepted.
func ParseURI(uri, trustDomain string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://"+trustDomain+"/ns/")
	if !ok {
		return Identity{}, fmt.Errorf("identity %q is not of the form spiffe://%s/ns/NAMESPACE/sa/SERVICEACCOUNT", uri, trustDomain)
	}
	ns, sa, ok := strings.Cut(rest, "/sa/")
	if !ok || ns == "" || sa == "" || strings.Contains(ns, "/") || strings.Contains(sa, "/") {
		return Identity{}, fmt.Errorf("identity %q is not of the form spiffe://%s/ns/NAMESPACE/sa/SERVICEACCOUNT", uri, trustDomain)
	}
	return Identity{Namespace: ns, ServiceAccount: sa}, nil
}

// A Group is a set of identities: all service accounts of the namespace that it
// names, or [Everyone]. The zero Group has nobody.
type Group string

// Everyone is every identity of the mesh.
const Everyone Group = "*"

// Has reports whether an identity belongs to g. Nobody belongs to Everyone only.
func (g Group) Has(id Identity) bool {
	return g == Everyone || g != "" && string(g) == id.Namespace
}

// String returns "everyone in the mesh" or "namespace NAME".
func (g Group) String() string {
	if g == Everyone {
		return "everyone in the mesh"
	}
	return "namespace " + string(g)
}

// URIPrefix returns what the SPIFFE IDs of the group's identities begin with, and
// no other identity's.
func (g Group) URIPrefix(trustDomain string) string {
	if g == Everyone {
		return "spiffe://" + trustDomain + "/ns/"
	}
	return "spiffe://" + trustDomain + "/ns/" + string(g) + "/sa/"
}

// InGroups reports whether an identity belongs to one of the groups.
func InGroups(groups []Group, id Identity) bool {
	return slices.ContainsFunc(groups, func(g Group) bool { return g.Has(id) })
}

// A ProxyID names one proxy: the pod it runs in, and which incarnation of it.
type ProxyID struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid"`
}

// String returns the form that proxies send as their node id:
// "namespace/pod/uid".
func (p ProxyID) String() string { return p.Namespace + "/" + p.Pod + "/" + p.UID }

// Compare orders proxies by namespace, pod and uid.
func (p ProxyID) Compare(q ProxyID) int {
	return cmp.Or(strings.Compare(p.Namespace, q.Namespace), strings.Compare(p.Pod, q.Pod), strings.Compare(p.UID, q.UID))
}

// maxNodeID bounds a node id before it is parsed: two DNS labels or names of at
// most 253 bytes and a uid, with room to spare.
const maxNodeID = 640

// ParseProxyID parses a node id as [ProxyID.String] writes it. It is given
// untrusted input.
func ParseProxyID(s string) (ProxyID, error) {
	if len(s) > maxNodeID {
		return ProxyID{}, fmt.Errorf("node id is %d bytes long; at most %d are allowed", len(s), maxNodeID)
	}
	parts := strings.Split(s, "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return ProxyID{}, fmt.Errorf("node id %q is not of the form NAMESPACE/POD/UID", s)
	}
	return ProxyID{Namespace: parts[0], Pod: parts[1], UID: parts[2]}, nil
}
