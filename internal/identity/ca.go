package identity

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

const (
	// intermediateLifetime is three times the longest life of a leaf, and the
	// intermediate is replaced after a third of it, so that no leaf is cut short.
	intermediateLifetime = 90 * 24 * time.Hour
	intermediateUse      = intermediateLifetime / 3
	// reload is how often the Secret is looked at.
	reload = time.Minute
)

// A CAConfig says which authority a CA has.
type CAConfig struct {
	TrustDomain string
	// Secret in the system namespace that holds an authority. Empty: outrigger-ca.
	// One of rotation.OwnSecrets is made where the mesh has no root yet, or Fresh.
	Secret string
	// Roots are those that the authority is known by; none where it is not known yet.
	// One that leads to another root is refused.
	Roots []*x509.Certificate
	// Fresh allows an authority that nobody knows yet, because people want to rotate
	// to it, and makes it in a Secret that the mesh may make.
	Fresh bool
	// Changed is called when the roots are other ones; nil for nobody.
	Changed func()
}

// A CA is the built-in issuer. The authority in its Secret signs an intermediate,
// which signs leaves. The intermediate can name nothing outside the trust domain,
// is replaced long before its end, and its key is in memory only, so that each
// replica has one of its own. It is safe for concurrent use.
type CA struct {
	home Home
	cfg  CAConfig

	mu           sync.Mutex
	data         map[string][]byte // of the Secret that authority was read from
	authority    *authority
	intermediate *intermediate // nil before the first use
}

// An intermediate signs leaves until it is replaced.
type intermediate struct {
	certificate *x509.Certificate
	key         crypto.Signer
	chain       []*x509.Certificate // itself and what follows, without the root
	renew       time.Time
}

// Roots returns the roots that the mesh should trust, which the Secret may say
// more of than the one that it signs with.
func (c *CA) Roots() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.authority.roots)
}

// Issue signs a leaf. It takes the key from the request and everything else from
// the template.
func (c *CA) Issue(_ context.Context, request *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	now := time.Now()
	by, err := c.signing(now)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		Subject:               pkix.Name{SerialNumber: t.PodUID},
		URIs:                  t.URIs,
		DNSNames:              t.DNSNames,
		NotBefore:             later(now.Add(-backdate), by.certificate.NotBefore),
		NotAfter:              earlier(now.Add(t.Lifetime), by.certificate.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	certificate, err := create(leaf, by.certificate, request.PublicKey, by.key)
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{certificate}, by.chain...), nil
}

// signing returns the intermediate of the moment, and makes it where there is
// none or its time is over.
func (c *CA) signing(now time.Time) (*intermediate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.intermediate != nil && now.Before(c.intermediate.renew) {
		return c.intermediate, nil
	}
	next, err := newIntermediate(c.authority, c.cfg.TrustDomain, now)
	if err != nil {
		return nil, fmt.Errorf("make an intermediate below Secret %s/%s: %w", c.home.Namespace, c.secret(), err)
	}
	c.intermediate = next
	return next, nil
}

func newIntermediate(a *authority, trustDomain string, now time.Time) (*intermediate, error) {
	end := earlier(now.Add(intermediateLifetime), a.end())
	if !now.Before(end) {
		return nil, fmt.Errorf("it or what signed it ended at %s", end.Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the intermediate's key: %w", err)
	}
	template := authorityTemplate("Outrigger intermediate of "+trustDomain, now, 0)
	template.NotAfter = end
	constrain(template, trustDomain)
	certificate, err := create(template, a.certificate, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &intermediate{
		certificate: certificate, key: key, chain: append([]*x509.Certificate{certificate}, a.parents...),
		renew: now.Add(min(intermediateUse, end.Sub(now)/2)),
	}, nil
}

// constrain limits what an intermediate may name: identities of the trust
// domain, and nothing of any kind that the mesh does not use. Whoever trusts the
// root for something else need not fear the mesh.
func constrain(template *x509.Certificate, trustDomain string) {
	template.PermittedDNSDomainsCritical = true // all of the constraints
	template.PermittedURIDomains = []string{trustDomain}
	template.PermittedDNSDomains = []string{trustDomain}
	template.PermittedEmailAddresses = []string{trustDomain}
	template.ExcludedIPRanges = []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

// secret returns the name of the Secret with the authority.
func (c *CA) secret() string { return cmp.Or(c.cfg.Secret, CASecret) }

// own reports whether it is one that the mesh makes itself.
func (c *CA) own() bool { return slices.Contains(rotation.OwnSecrets(), c.secret()) }

// Run follows the Secret until ctx ends: an intermediate of the user's that is
// renewed there, or a root that is added, counts without a restart. What cannot
// be used is logged, and the authority of before stays in use.
func (c *CA) Run(ctx context.Context, log logr.Logger) error {
	tick := time.NewTicker(reload)
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := c.Reload(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			told = ""
		case err.Error() != told: // once, not every minute
			told = err.Error()
			log.Error(err, "the CA of before stays in use", "secret", c.secret())
		}
		if changed {
			log.Info("CA read again", "secret", c.secret())
		}
	}
}

// Reload reads the Secret, and reports whether there is another authority in it,
// which is then in use.
func (c *CA) Reload(ctx context.Context) (bool, error) {
	data, err := c.home.readCA(ctx, c.secret())
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	same := maps.EqualFunc(data, c.data, slices.Equal[[]byte])
	c.mu.Unlock()
	if same {
		return false, nil
	}
	records, err := c.home.records(ctx)
	if err != nil {
		return false, err
	}
	cfg := c.cfg
	cfg.Fresh, cfg.Roots = false, nil // what is published by now is what counts
	next, err := c.home.useCA(ctx, cfg, records, data)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	rootsChanged := !slices.EqualFunc(c.authority.roots, next.roots, (*x509.Certificate).Equal)
	c.data, c.authority, c.intermediate = data, next, nil
	c.mu.Unlock()
	if rootsChanged && c.cfg.Changed != nil {
		c.cfg.Changed()
	}
	return true, nil
}
