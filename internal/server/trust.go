package server

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// A vouched is what a chain of certificates proves.
type vouched struct {
	chain       []*x509.Certificate // leaf first, as it was shown
	identity    mesh.Identity
	trustDomain string
	roots       []string // SHA-256 of the DER of each that it leads to, in hexadecimal digits, sorted
	ends        time.Time
}

func (v vouched) leaf() *x509.Certificate { return v.chain[0] }

// A trust verifies chains against the accepted trust domains. It is safe for
// concurrent use.
type trust struct {
	credentials Credentials

	mu     sync.Mutex
	parsed map[mesh.TrustDomain]*domain // those of the last call of domains
}

// A domain is an accepted trust domain, parsed.
type domain struct {
	name  string
	pool  *x509.CertPool
	roots [][]byte // DER
}

func newTrust(c Credentials) *trust { return &trust{credentials: c} }

// domains returns the trust domains that are accepted now.
func (t *trust) domains() ([]*domain, error) {
	accepted, err := t.credentials.Trusted()
	if err != nil {
		return nil, fmt.Errorf("find out what is trusted: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	parsed := make(map[mesh.TrustDomain]*domain, len(accepted))
	all := make([]*domain, 0, len(accepted))
	for _, d := range accepted {
		known, ok := t.parsed[d]
		if !ok {
			var err error
			if known, err = parseDomain(d); err != nil {
				return nil, err
			}
		}
		parsed[d] = known
		all = append(all, known)
	}
	t.parsed = parsed
	return all, nil
}

func parseDomain(d mesh.TrustDomain) (*domain, error) {
	parsed := &domain{name: d.Name, pool: x509.NewCertPool()}
	rest := []byte(d.Bundle)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return parsed, nil
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse the roots of trust domain %s: %w", d.Name, err)
		}
		parsed.pool.AddCert(root)
		parsed.roots = append(parsed.roots, block.Bytes)
	}
}

// verify checks a chain, leaf first, against the roots of the trust domain that its
// SPIFFE ID names, and of no other.
func (t *trust) verify(chain []*x509.Certificate) (vouched, error) {
	if len(chain) == 0 {
		return vouched{}, errors.New("there is no certificate")
	}
	domains, err := t.domains()
	if err != nil {
		return vouched{}, err
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 {
		return vouched{}, fmt.Errorf("the certificate has %d URIs; exactly one is allowed", len(leaf.URIs))
	}
	err = fmt.Errorf("identity %q is of no trust domain that is accepted", leaf.URIs[0])
	for _, d := range domains {
		if leaf.URIs[0].Host != d.name {
			continue
		}
		var identity mesh.Identity
		if identity, err = mesh.ParseURI(leaf.URIs[0].String(), d.name); err != nil {
			break
		}
		options := x509.VerifyOptions{Roots: d.pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		for _, c := range chain[1:] {
			options.Intermediates.AddCert(c)
		}
		var chains [][]*x509.Certificate
		if chains, err = leaf.Verify(options); err != nil {
			break
		}
		way := chains[0]
		return vouched{chain: chain, identity: identity, trustDomain: d.name, roots: rootsOf(chains), ends: end(way[:len(way)-1])}, nil
	}
	return vouched{}, err
}

// messages returns the accepted trust domains for an agent.
func (t *trust) messages() ([]*signing.TrustDomain, error) {
	domains, err := t.domains()
	if err != nil {
		return nil, err
	}
	out := make([]*signing.TrustDomain, len(domains))
	for i, d := range domains {
		out[i] = &signing.TrustDomain{Name: d.name, Roots: d.roots}
	}
	return out, nil
}

// rootsOf names the roots of chains: a root that was renewed with its key, and the one
// of before, vouch for the same certificates.
func rootsOf(chains [][]*x509.Certificate) []string {
	var roots []string
	for _, way := range chains {
		roots = append(roots, fingerprint(way[len(way)-1].Raw))
	}
	slices.Sort(roots)
	return slices.Compact(roots)
}

// fingerprint names a certificate.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// end is when a leaf ends, or sooner where something else of its chain does.
func end(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}
