package identity

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
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

// Serving keeps the certificate that outriggerd shows to proxies and agents. Key
// and certificate are in memory only, different in each replica.
type Serving struct {
	issuer   Issuer
	template Template
	current  atomic.Pointer[served]
}

// served is a certificate, and when to replace it.
type served struct {
	certificate *tls.Certificate
	roots       *x509.CertPool
	renew       time.Time
}

// NewServing gets the first certificate of outriggerd in the given system
// namespace. A lifetime of zero is 24 h.
func NewServing(ctx context.Context, issuer Issuer, namespace, trustDomain string, lifetime time.Duration) (*Serving, error) {
	id := mesh.Identity{Namespace: namespace, ServiceAccount: ServiceAccount}
	s := &Serving{issuer: issuer, template: newTemplate(id, trustDomain, "", cmp.Or(lifetime, defaultLifetime))}
	return s, s.renew(ctx)
}

// TLS returns the certificate and the mesh's roots as they are now.
func (s *Serving) TLS() (*tls.Certificate, *x509.CertPool, error) {
	now := s.current.Load()
	if now == nil {
		return nil, nil, errors.New("there is no serving certificate yet")
	}
	return now.certificate, now.roots, nil
}

// Run renews the certificate at half of its life until ctx ends. While the issuer
// fails, the old one stays in use.
func (s *Serving) Run(ctx context.Context, log logr.Logger) error {
	timer := time.NewTimer(time.Until(s.current.Load().renew))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if err := s.renew(ctx); err != nil {
			log.Error(err, "serving certificate not renewed", "ends", s.current.Load().certificate.Leaf.NotAfter)
			timer.Reset(retry)
			continue
		}
		timer.Reset(time.Until(s.current.Load().renew))
	}
}

func (s *Serving) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the serving key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: s.template.URIs, DNSNames: s.template.DNSNames}, key)
	if err != nil {
		return fmt.Errorf("make the serving certificate's request: %w", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return fmt.Errorf("parse the serving certificate's request: %w", err)
	}
	chain, err := issue(ctx, s.issuer, request, s.template)
	if err != nil {
		return err
	}
	s.current.Store(&served{
		certificate: &tls.Certificate{Certificate: raw(chain), PrivateKey: key, Leaf: chain[0]},
		roots:       pool(s.issuer.Roots()),
		renew:       halfLife(chain[0], time.Now()),
	})
	return nil
}

// halfLife is when to replace a certificate that was signed now.
func halfLife(c *x509.Certificate, now time.Time) time.Time {
	return now.Add(c.NotAfter.Sub(now) / 2)
}
