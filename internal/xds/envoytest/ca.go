package envoytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// A CA signs the certificates of a test's pods.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a root.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &ca.key.PublicKey, ca.key)
	must(t, err)
	ca.cert, err = x509.ParseCertificate(der)
	must(t, err)
	return ca
}

// Bundle returns the root as PEM.
func (ca *CA) Bundle() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
}

// Sign returns a chain and a key, both PEM, for the URIs: one, as a rule.
func (ca *CA) Sign(t testing.TB, uris ...string) (chain, key []byte) {
	t.Helper()
	return ca.signUntil(t, time.Now().Add(time.Hour), uris...)
}

func (ca *CA) signUntil(t testing.TB, end time.Time, uris ...string) (chain, key []byte) {
	t.Helper()
	names := make([]*url.URL, len(uris))
	for i, uri := range uris {
		var err error
		names[i], err = url.Parse(uri)
		must(t, err)
	}
	k := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: names,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, ca.cert, &k.PublicKey, ca.key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// Secret returns the certificate file of a pod, for the URI uri.
func (ca *CA) Secret(t testing.TB, uri string) []byte {
	t.Helper()
	return ca.SecretUntil(t, uri, time.Now().Add(time.Hour))
}

// SecretUntil is Secret with the end of the certificate, to the second.
func (ca *CA) SecretUntil(t testing.TB, uri string, end time.Time) []byte {
	t.Helper()
	chain, key := ca.signUntil(t, end, uri)
	secret, err := bootstrap.CertificateSecret(chain, key)
	must(t, err)
	return secret
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return k
}
