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
	issuer                 Issuer
	namespace, trustDomain string
	lifetime               time.Duration
	current                atomic.Pointer[served]
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
	s := &Serving{issuer: issuer, namespace: namespace, trustDomain: trustDomain, lifetime: cmp.Or(lifetime, defaultLifetime)}
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
	key, request, template, err := ownRequest(s.namespace, s.trustDomain, s.lifetime)
	if err != nil {
		return err
	}
	chain, err := issue(ctx, s.issuer, request, template)
	if err != nil {
		return err
	}
	s.current.Store(&served{
		certificate: &tls.Certificate{Certificate: raw(chain), PrivateKey: key, Leaf: chain[0]},
		roots:       pool(s.issuer.Roots()),
		renew:       halfLife(chain, time.Now()),
	})
	return nil
}

// ownRequest makes a key for outriggerd itself, in the given system namespace,
// and a request for it.
func ownRequest(namespace, trustDomain string, lifetime time.Duration) (*ecdsa.PrivateKey, *x509.CertificateRequest, Template, error) {
	id := mesh.Identity{Namespace: namespace, ServiceAccount: ServiceAccount}
	template := newTemplate(id, trustDomain, "", lifetime)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, Template{}, fmt.Errorf("make outriggerd's key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: template.URIs, DNSNames: template.DNSNames}, key)
	if err != nil {
		return nil, nil, Template{}, fmt.Errorf("make outriggerd's certificate request: %w", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, Template{}, fmt.Errorf("parse outriggerd's certificate request: %w", err)
	}
	return key, request, template, nil
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
