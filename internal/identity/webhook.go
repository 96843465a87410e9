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
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// WebhookSecret holds the CA of the webhooks, in the system namespace: ca.crt
	// and ca.key. Certificates after the first one in ca.crt are trusted too, so
	// that a rotation can announce the next before it signs.
	WebhookSecret = "outrigger-webhook-ca"
	webhookCAName = "Outrigger webhook CA"
	// syncEvery is how often caBundle is looked at.
	syncEvery = time.Minute
	// manager owns caBundle in the eyes of the API server.
	manager = "outriggerd"
)

// A WebhookConfig says for whom a Webhook makes certificates and where it is
// trusted. All fields but Lifetime and those for conversions are required.
type WebhookConfig struct {
	Home Home
	// DNSNames that the API server calls, such as outrigger-webhook.NAMESPACE.svc.
	DNSNames []string
	// Mutating and Validating name the webhook configurations whose caBundle is
	// kept. A configuration that does not exist makes the replica not ready.
	Mutating, Validating []string
	// Converted name the CRDs whose versions are converted here: as long as nobody
	// else does it, their conversion is sent to Service and trusts the certificate.
	// One that does not exist, or whose conversion is none or another's, is left
	// alone.
	Converted []string
	// Service is the name of the one that the API server calls for conversions, in
	// the system namespace.
	Service string
	// Lifetime of the serving certificate; zero is 24 h.
	Lifetime time.Duration
}

// A Webhook keeps the certificate that outriggerd shows to the API server, and
// the CA of it in the webhook configurations. It is not used where cert-manager
// does this. Its CA is not the mesh's, whose trust domain does not hold the
// webhook's name; losing it is harmless, and a new one is made.
type Webhook struct {
	cfg     WebhookConfig
	current atomic.Pointer[webhookServed]
}

type webhookServed struct {
	certificate *tls.Certificate
	ca          *x509.Certificate
	renew       time.Time
}

// NewWebhook returns a Webhook that is not ready before its first Sync.
func NewWebhook(cfg WebhookConfig) *Webhook {
	cfg.Lifetime = cmp.Or(cfg.Lifetime, defaultLifetime)
	return &Webhook{cfg: cfg}
}

// GetCertificate is for a tls.Config.
func (w *Webhook) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := w.current.Load()
	if now == nil {
		return nil, errors.New("there is no webhook certificate yet")
	}
	return now.certificate, nil
}

// Ready returns nil when the API server trusts the certificate that is served:
// every webhook configuration held its CA when last looked at.
func (w *Webhook) Ready() error {
	now := w.current.Load()
	if now == nil {
		return errors.New("the webhook's CA is not yet in the webhook configurations")
	}
	if time.Now().After(now.certificate.Leaf.NotAfter) {
		return errors.New("the webhook's certificate has ended")
	}
	return nil
}

// Run keeps certificate and caBundle until ctx ends.
func (w *Webhook) Run(ctx context.Context, log logr.Logger) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		changed, err := w.Sync(ctx)
		for _, name := range changed {
			log.Info("webhook CA written", "configuration", name)
		}
		timer.Reset(syncEvery)
		if err != nil {
			log.Error(err, "webhook certificate not kept")
			timer.Reset(retry)
		}
	}
}

// Sync makes the CA if there is none, sees to it that the webhook configurations
// hold it, and only then serves a certificate of it. It returns the names of the
// configurations that it changed.
func (w *Webhook) Sync(ctx context.Context) ([]string, error) {
	secret, err := w.secret(ctx)
	if err != nil {
		return nil, err
	}
	ca, key, err := parsePair(secret.Data, keyRoot, keyRootKey)
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s, which is made anew when it is deleted: %w", secret.Namespace, secret.Name, err)
	}
	trusted, err := parseCertificates(secret.Data[keyRoot])
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s, which is made anew when it is deleted: %w", secret.Namespace, secret.Name, err)
	}
	var changed []string
	for _, c := range w.configurations(trusted) {
		wrote, err := w.keepBundle(ctx, c, trusted)
		if err != nil {
			return changed, fmt.Errorf("keep caBundle of %s: %w", c.name(), err)
		}
		if wrote {
			changed = append(changed, c.name())
		}
	}
	if now := w.current.Load(); now != nil && now.ca.Equal(ca) && time.Now().Before(now.renew) {
		return changed, nil
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return changed, fmt.Errorf("make the webhook's key: %w", err)
	}
	now := time.Now()
	leaf, err := create(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "outriggerd webhook"},
		DNSNames:              w.cfg.DNSNames,
		NotBefore:             later(now.Add(-backdate), ca.NotBefore),
		NotAfter:              earlier(now.Add(w.cfg.Lifetime), ca.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, ca, leafKey.Public(), key)
	if err != nil {
		return changed, err
	}
	w.current.Store(&webhookServed{
		certificate: &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey, Leaf: leaf},
		ca:          ca, renew: halfLife([]*x509.Certificate{leaf}, now),
	})
	return changed, nil
}

func (w *Webhook) secret(ctx context.Context) (*corev1.Secret, error) {
	home := w.cfg.Home
	secret := &corev1.Secret{}
	err := home.Client.Get(ctx, client.ObjectKey{Namespace: home.Namespace, Name: WebhookSecret}, secret)
	if err == nil {
		return secret, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read Secret %s/%s: %w", home.Namespace, WebhookSecret, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the webhook CA's key: %w", err)
	}
	ca, err := selfSigned(webhookCAName, key, time.Now(), 0)
	if err != nil {
		return nil, fmt.Errorf("make the webhook CA: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return home.createSecret(ctx, WebhookSecret, map[string][]byte{keyRoot: encodeCertificates(ca), keyRootKey: text})
}

// keepBundle writes the CA into a webhook configuration that does not trust it.
func (w *Webhook) keepBundle(ctx context.Context, c configuration, trusted []*x509.Certificate) (bool, error) {
	bundles, err := c.read(ctx, w.cfg.Home.Client)
	if err != nil {
		return false, err
	}
	holdsAll := func(b webhookBundle) bool {
		held, err := parseCertificates(b.caBundle)
		return err == nil && !slices.ContainsFunc(trusted, func(c *x509.Certificate) bool { return !slices.ContainsFunc(held, c.Equal) })
	}
	if !slices.ContainsFunc(bundles, func(b webhookBundle) bool { return !holdsAll(b) }) {
		return false, nil
	}
	for i := range bundles {
		bundles[i].caBundle = encodeCertificates(slices.Concat(trusted, previous(bundles[i].caBundle, trusted))...)
	}
	return true, w.cfg.Home.Client.Apply(ctx, c.apply(bundles), client.FieldOwner(manager), client.ForceOwnership)
}

// previous returns the newest CA of ours in a bundle besides the trusted ones:
// another replica may serve a certificate of it for a little while.
func previous(caBundle []byte, trusted []*x509.Certificate) []*x509.Certificate {
	held, err := parseCertificates(caBundle)
	if err != nil {
		return nil
	}
	held = slices.DeleteFunc(held, func(c *x509.Certificate) bool {
		return c.Subject.CommonName != webhookCAName || time.Now().After(c.NotAfter) || slices.ContainsFunc(trusted, c.Equal)
	})
	slices.SortFunc(held, func(a, b *x509.Certificate) int { return b.NotBefore.Compare(a.NotBefore) })
	return held[:min(1, len(held))]
}

// A webhookBundle is the caBundle of one webhook.
type webhookBundle struct {
	name     string
	caBundle []byte
}

// A configuration is a webhook configuration of either kind, or the conversion of a
// CRD.
type configuration interface {
	name() string
	read(ctx context.Context, c client.Client) ([]webhookBundle, error)
	apply(bundles []webhookBundle) runtime.ApplyConfiguration
}

func (w *Webhook) configurations(trusted []*x509.Certificate) []configuration {
	var all []configuration
	for _, name := range w.cfg.Mutating {
		all = append(all, mutating(name))
	}
	for _, name := range w.cfg.Validating {
		all = append(all, validating(name))
	}
	for _, name := range w.cfg.Converted {
		all = append(all, converted{crd: name, namespace: w.cfg.Home.Namespace, service: w.cfg.Service, trusted: trusted})
	}
	return all
}
