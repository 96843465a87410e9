package signing

import (
	"net/url"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// maxDNSName is the longest name that DNS knows, and maxLabel its longest label.
const (
	maxDNSName = 253
	maxLabel   = 63
)

// Names returns the subject alternative names that a certificate of the identity
// has: its SPIFFE ID and, where there is one, its DNS name. The agent asks for
// exactly these, and outriggerd signs nothing else.
func Names(id mesh.Identity, trustDomain string) (uris []*url.URL, dnsNames []string) {
	uris = []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}}
	if name, ok := DNSName(id.Namespace, id.ServiceAccount, trustDomain); ok {
		dnsNames = []string{name}
	}
	return uris, dnsNames
}

// DNSName returns "SERVICEACCOUNT.NAMESPACE.TRUSTDOMAIN", the name that OSM gave
// to workloads and that ingress controllers verify, and whether the identity may
// have it. A service account with a dot in its name, or a namespace called svc,
// would get a name that belongs to somebody else: outriggerd's own, for one.
func DNSName(namespace, serviceAccount, trustDomain string) (string, bool) {
	name := serviceAccount + "." + namespace + "." + trustDomain
	if strings.Contains(serviceAccount, ".") || namespace == "svc" || len(serviceAccount) > maxLabel || len(name) > maxDNSName {
		return "", false
	}
	return name, true
}
