package identity

import (
	"bytes"
	"crypto/x509"
	"errors"
	"slices"
	"sync"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// An Authority is who may sign for a trust domain; see package rotation.
type Authority = rotation.Authority

// An Opened authority is one that this replica can use.
type Opened struct {
	Authority Authority
	Issuer    Issuer
}

// Accepted is what holds at one moment.
type Accepted struct {
	// Generation counts the changes of what is accepted, in the whole mesh.
	Generation int64
	// Signing signs for workloads, Serving for outriggerd itself. Both are among
	// Trusted, which are those whose certificates are good.
	Signing, Serving Opened
	Trusted          []Opened
	// Fading are trust domains without an authority, whose names are known still.
	Fading []string
}

// MayNameNoPod reports whether certificates of the mesh may leave out whose pod
// they are: one of those that sign or are trusted follows rules of its own.
func (a *Authorities) MayNameNoPod() bool {
	now, err := a.Now()
	return err == nil && slices.ContainsFunc(now.Trusted, func(o Opened) bool { return mayNameNoPod(o.Authority) })
}

// mayNameNoPod reports it of one authority: cert-manager signs by any issuer.
func mayNameNoPod(a Authority) bool { return a.CertManager != nil }

// A Domain is a trust domain with all roots of its authorities.
type Domain struct {
	Name  string
	Roots []*x509.Certificate
}

// Bundle returns the roots as PEM.
func (d Domain) Bundle() string { return string(encodeCertificates(d.Roots...)) }

// Domains returns the trust domains that are accepted: that of the authority which
// signs first, the others by name. Each has roots of its own, which are good for
// no other domain; one that fades has none.
func (a Accepted) Domains() []Domain {
	first := a.Signing.Authority.TrustDomain
	domains := []Domain{{Name: first}}
	for _, opened := range a.Trusted {
		i := slices.IndexFunc(domains, func(d Domain) bool { return d.Name == opened.Authority.TrustDomain })
		if i < 0 {
			i = len(domains)
			domains = append(domains, Domain{Name: opened.Authority.TrustDomain})
		}
		domains[i].Roots = append(domains[i].Roots, opened.Issuer.Roots()...)
	}
	for i := range domains {
		domains[i].Roots = unique(domains[i].Roots)
	}
	for _, name := range a.Fading {
		domains = append(domains, Domain{Name: name})
	}
	slices.SortStableFunc(domains[1:], func(a, b Domain) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return domains
}

// Roots returns the roots of all that is trusted, whatever their domain.
func (a Accepted) Roots() []*x509.Certificate {
	var roots []*x509.Certificate
	for _, opened := range a.Trusted {
		roots = append(roots, opened.Issuer.Roots()...)
	}
	return unique(roots)
}

// unique returns each certificate once, where it was first.
func unique(all []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range all {
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// Authorities are those of the moment. The zero value has none. It is safe for
// concurrent use.
type Authorities struct {
	mu      sync.Mutex
	now     *Accepted
	why     error // that there are none
	changed chan struct{}
}

// Now returns what holds. The error says why nothing can be signed or trusted yet.
func (a *Authorities) Now() (Accepted, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.now != nil:
		return *a.now, nil
	case a.why != nil:
		return Accepted{}, a.why
	default:
		return Accepted{}, errors.New("no authority is open yet")
	}
}

// Set replaces what holds, and wakes those who wait for Changed.
func (a *Authorities) Set(next Accepted) {
	next.Trusted = slices.Clone(next.Trusted)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = &next
	a.wake()
}

// Missing says why there is nothing to set; what holds stays.
func (a *Authorities) Missing(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.why = why
}

// RootsChanged wakes those who wait for Changed, because an issuer has other roots.
func (a *Authorities) RootsChanged() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wake()
}

func (a *Authorities) wake() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// Changed returns a channel that is closed at the next change.
func (a *Authorities) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	return a.changed
}
