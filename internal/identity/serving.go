package identity

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// ServiceAccount is outriggerd's own, in the system namespace.
const ServiceAccount = "outriggerd"

// retry is how soon after a failure a certificate is asked for again.
const retry = 10 * time.Second

// servingTimeout bounds one request for it.
const servingTimeout = time.Minute

// Serving keeps the certificate that outriggerd shows to proxies and agents. Key
// and certificate are in memory only, different in each replica. Until Run has
// got the first one there is none.
type Serving struct {
	authorities *Authorities
	namespace   string
	lifetime    time.Duration
	current     atomic.Pointer[served]
	missing     atomic.Pointer[error] // why there is none; nil for no reason yet
}

// served is a certificate, whose it is, and when to replace it.
type served struct {
	certificate *tls.Certificate
	by          Opened
	above       time.Time // when the first above it ends
	renew       time.Time
}

// NewServing returns the certificate of outriggerd in the given system namespace,
// which Run gets and keeps. A lifetime of zero is 24 h.
func NewServing(authorities *Authorities, namespace string, lifetime time.Duration) *Serving {
	return &Serving{authorities: authorities, namespace: namespace, lifetime: cmp.Or(lifetime, defaultLifetime)}
}

// TLS returns the certificate as it is now.
func (s *Serving) TLS() (*tls.Certificate, error) {
	if err := s.Ready(); err != nil {
		return nil, err
	}
	return s.current.Load().certificate, nil
}

// Trusted returns the accepted trust domains as they are now.
func (s *Serving) Trusted() ([]mesh.TrustDomain, error) {
	accepted, err := s.authorities.Now()
	if err != nil {
		return nil, err
	}
	return accepted.TrustDomains(), nil
}

// TrustDomains returns Domains as the model has them.
func (a Accepted) TrustDomains() []mesh.TrustDomain {
	domains := a.Domains()
	out := make([]mesh.TrustDomain, len(domains))
	for i, d := range domains {
		out[i] = mesh.TrustDomain{Name: d.Name, Bundle: d.Bundle()}
	}
	return out
}

// Ready returns an error until there is a certificate, and once it has ended.
func (s *Serving) Ready() error {
	now := s.current.Load()
	if now != nil && time.Now().Before(now.certificate.Leaf.NotAfter) {
		return nil
	}
	if why := s.missing.Load(); why != nil {
		return fmt.Errorf("there is no serving certificate: %w", *why)
	}
	return errors.New("there is no serving certificate yet")
}

// Ends returns which authority signed the certificate, when it ends, and when the
// first of those above it does.
func (s *Serving) Ends() (authority string, end, above time.Time, err error) {
	now := s.current.Load()
	if now == nil {
		return "", time.Time{}, time.Time{}, errors.New("there is no serving certificate yet")
	}
	return now.by.Authority.Name, now.certificate.Leaf.NotAfter, now.above, nil
}

// Run gets the certificate, renews it at half of its life, and has it signed anew
// when another authority is to sign it, until ctx ends. While the issuer fails,
// the old one stays in use.
func (s *Serving) Run(ctx context.Context, log logr.Logger) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	changed := s.authorities.Changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-changed: // perhaps while the last certificate was being signed
			changed = s.authorities.Changed()
			if !s.stale() {
				continue
			}
		}
		if err := s.renew(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.missing.Store(&err)
			log.Error(err, "no new serving certificate", "retryIn", retry.String())
			timer.Reset(retry)
			continue
		}
		now := s.current.Load()
		log.Info("serving certificate signed", "authority", now.by.Authority.Name, "notAfter", now.certificate.Leaf.NotAfter)
		timer.Reset(time.Until(now.renew))
	}
}

// stale reports whether another authority should have signed the certificate.
func (s *Serving) stale() bool {
	accepted, err := s.authorities.Now()
	if err != nil {
		return false
	}
	now := s.current.Load()
	return now == nil || now.by.Authority.Name != accepted.Serving.Authority.Name || now.by.Issuer != accepted.Serving.Issuer
}

func (s *Serving) renew(ctx context.Context) error {
	accepted, err := s.authorities.Now()
	if err != nil {
		return err
	}
	by := accepted.Serving
	key, request, template, err := ownRequest(s.namespace, by.Authority.TrustDomain, s.lifetime)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, servingTimeout)
	defer cancel()
	chain, err := issue(ctx, by.Issuer, request, template)
	if err != nil {
		return err
	}
	above := time.Time{}
	for i, c := range chain[1:] {
		if i == 0 || c.NotAfter.Before(above) {
			above = c.NotAfter
		}
	}
	s.current.Store(&served{
		above:       above,
		certificate: &tls.Certificate{Certificate: raw(chain), PrivateKey: key, Leaf: chain[0]},
		by:          by,
		renew:       halfLife(chain, time.Now()),
	})
	return nil
}

// ownRequest makes a key for outriggerd itself, in the given system namespace,
// and a request for it.
func ownRequest(namespace, trustDomain string, lifetime time.Duration) (*ecdsa.PrivateKey, *x509.CertificateRequest, Template, error) {
	id := mesh.Identity{Namespace: namespace, ServiceAccount: ServiceAccount}
	template := newTemplate(id, trustDomain, "", lifetime)
	key, request, err := newRequest(template)
	return key, request, template, err
}

// newRequest makes a key, and a request for it as agents make them.
func newRequest(t Template) (*ecdsa.PrivateKey, *x509.CertificateRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{SerialNumber: t.PodUID}, URIs: t.URIs, DNSNames: t.DNSNames,
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, fmt.Errorf("parse a certificate request: %w", err)
	}
	return key, request, nil
}

// halfLife is when to replace a certificate that was signed now: at half of what
// is left of the one in its chain that ends first.
func halfLife(chain []*x509.Certificate, now time.Time) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain {
		end = earlier(end, c.NotAfter)
	}
	return now.Add(end.Sub(now) / 2)
}
