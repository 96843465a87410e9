package mesh

import (
	"slices"
	"strings"
)

// TrustConfigMap is the ConfigMap that holds the mesh's roots, in each of its namespaces
// and in the system namespace.
const TrustConfigMap = "outrigger-trust"

// A TrustDomain is one whose identities are accepted, and who vouches for them.
type TrustDomain struct {
	Name string `json:"name"`
	// Bundle holds the roots that vouch for identities of this domain and of no
	// other, as PEM certificates. Empty means that nobody new of it is trusted, while
	// requests over connections from before go on. So a trust domain is left in two
	// steps: without its bundle, callers make new connections, with the certificates
	// that they have now; when all have acknowledged that, nobody uses its names.
	Bundle string `json:"bundle,omitempty"`
}

// Trust is what peers are verified against: the accepted trust domains, by name.
// It does not say which of them signs, so that a change of that changes nothing
// here.
type Trust struct {
	Key         string `json:"key"`
	TrustDomain string `json:"trustDomain"` // the first of them
	Bundle      string `json:"bundle"`      // PEM; empty trusts nobody of TrustDomain
	// Also are the others. Every identity is accepted in each of them, and each is
	// verified against its own bundle.
	Also []TrustDomain `json:"also,omitempty"`
}

// Domains returns the accepted trust domains by name, never none.
func (t *Trust) Domains() []TrustDomain {
	return append([]TrustDomain{{Name: t.TrustDomain, Bundle: t.Bundle}}, t.Also...)
}

// Trust returns what peers are verified against under the settings, with the key
// that proxies acknowledge.
func (s Settings) Trust() *Trust {
	domains := s.domains()
	t := &Trust{TrustDomain: domains[0].Name, Bundle: domains[0].Bundle}
	if len(domains) > 1 {
		t.Also = domains[1:]
	}
	t.Key = digest(t)
	return t
}

// domains returns the accepted trust domains by name.
func (s Settings) domains() []TrustDomain {
	all := append([]TrustDomain{{Name: s.TrustDomain, Bundle: s.TrustBundle}}, s.AlsoTrusted...)
	slices.SortFunc(all, func(a, b TrustDomain) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// ParseURI returns the identity that a SPIFFE ID names in one of the accepted trust
// domains, and in which.
func (s Settings) ParseURI(uri string) (Identity, string, error) {
	id, err := ParseURI(uri, s.TrustDomain)
	if err == nil {
		return id, s.TrustDomain, nil
	}
	for _, d := range s.AlsoTrusted {
		if id, err := ParseURI(uri, d.Name); err == nil {
			return id, d.Name, nil
		}
	}
	return Identity{}, "", err
}

// callerDomains are the trust domains that callers may have: the first, and the
// others.
func (t *Trust) callerDomains() (first string, also []string) {
	for _, d := range t.Also {
		also = append(also, d.Name)
	}
	return t.TrustDomain, also
}

// serverDomains are the trust domains that servers may have, which are those that
// somebody vouches for: a name that no new connection can show is of no use to a
// caller.
func (t *Trust) serverDomains() (first string, also []string) {
	for _, d := range t.Domains() {
		switch {
		case d.Bundle == "":
		case first == "":
			first = d.Name
		default:
			also = append(also, d.Name)
		}
	}
	if first == "" {
		return t.TrustDomain, nil // nobody is trusted
	}
	return first, also
}
