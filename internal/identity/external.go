package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// firstAnswer bounds how long an issuer may take to show its root, or that it signs.
const firstAnswer = 45 * time.Second

// rootsIn returns the roots that a ConfigMap holds.
func rootsIn(m *corev1.ConfigMap) ([]*x509.Certificate, error) {
	roots, err := onlyRoots([]byte(m.Data[TrustKey]))
	if err != nil {
		return nil, fmt.Errorf("read %s of ConfigMap %s/%s: %w", TrustKey, m.Namespace, m.Name, err)
	}
	return roots, nil
}

// onlyRoots reads roots in PEM, at least one, and nothing else.
func onlyRoots(text []byte) ([]*x509.Certificate, error) {
	roots, err := parseCertificates(text)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(roots, func(c *x509.Certificate) bool { return !isRoot(c) }); i >= 0 {
		return nil, fmt.Errorf("%q is not a root; only authorities that signed themselves are allowed", roots[i].Subject)
	}
	return unique(roots), nil
}

// givenRoots returns the roots that the user has given.
func (c *CertManager) givenRoots(ctx context.Context) ([]*x509.Certificate, error) {
	if c.cfg.Roots != "" {
		roots, err := onlyRoots([]byte(c.cfg.Roots))
		if err != nil {
			return nil, fmt.Errorf("read the roots of authority %s: %w", c.cfg.Authority, err)
		}
		return roots, nil
	}
	m := &corev1.ConfigMap{}
	if err := c.cfg.Home.Client.Get(ctx, client.ObjectKey{Namespace: c.cfg.Home.Namespace, Name: c.cfg.RootsConfigMap}, m); err != nil {
		return nil, fmt.Errorf("read the roots in ConfigMap %s/%s: %w", c.cfg.Home.Namespace, c.cfg.RootsConfigMap, err)
	}
	return rootsIn(m)
}

// reload reads the ConfigMap with the roots again. One root at least must have
// been there before: running pods would lose their peers otherwise.
func (c *CertManager) reload(ctx context.Context, log logr.Logger) error {
	if c.cfg.RootsConfigMap == "" {
		return nil
	}
	next, err := c.givenRoots(ctx)
	if err != nil {
		return err
	}
	before := c.Roots()
	if slices.EqualFunc(before, next, (*x509.Certificate).Equal) {
		return nil
	}
	if !overlap(before, next) {
		return fmt.Errorf("ConfigMap %s/%s holds none of the roots of before, which stay in use; have it hold both until every pod's certificate leads to the new ones",
			c.cfg.Home.Namespace, c.cfg.RootsConfigMap)
	}
	c.mu.Lock()
	c.roots = next
	c.mu.Unlock()
	log.Info("roots read again", "configMap", c.cfg.RootsConfigMap, "count", len(next))
	if c.cfg.Changed != nil {
		c.cfg.Changed()
	}
	return nil
}

// overlap reports whether one certificate at least is in both.
func overlap(a, b []*x509.Certificate) bool {
	return slices.ContainsFunc(a, func(c *x509.Certificate) bool { return slices.ContainsFunc(b, c.Equal) })
}

// firstRoots gets a certificate for outriggerd, and returns the root that came
// with it.
func (c *CertManager) firstRoots(ctx context.Context) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	informer, err := c.informer()
	if err != nil {
		cancel()
		return nil, err
	}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		informer.RunWithContext(ctx)
	}()
	defer func() {
		cancel()
		<-watching
	}()
	_, request, template, err := ownRequest(c.cfg.Home.Namespace, c.cfg.TrustDomain, time.Hour)
	if err != nil {
		return nil, err
	}
	answer, err := c.ask(ctx, request, template)
	if err != nil {
		return nil, err
	}
	chain, err := parseCertificates(answer.Status.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of the %s: %w", c.issuer(), err)
	}
	authorities, err := parseCertificates(answer.Status.CA)
	if err != nil {
		authorities = nil // an issuer need not show any
	}
	roots := slices.DeleteFunc(slices.Concat(authorities, chain), func(c *x509.Certificate) bool { return !isRoot(c) })
	if len(roots) == 0 {
		return nil, fmt.Errorf("the %s shows no root with its certificates; put it into a ConfigMap of namespace %s and name that", c.issuer(), c.cfg.Home.Namespace)
	}
	if _, err := checkChain(chain, request, template, roots[:1]); err != nil {
		return nil, fmt.Errorf("check the first certificate of the %s: %w", c.issuer(), err)
	}
	return roots[:1], nil
}
