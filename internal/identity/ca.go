package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	rootLifetime = 10 * 365 * 24 * time.Hour
	// backdate makes a new certificate good for those whose clock is behind.
	backdate = 5 * time.Minute
)

// Keys of the Secret outrigger-ca.
const (
	keyRoot                = "ca.crt"
	keyRootKey             = "ca.key"
	keyIntermediate        = "intermediate.crt"
	keyIntermediateKey     = "intermediate.key"
	blockCertificate       = "CERTIFICATE"
	blockKey               = "PRIVATE KEY"
	serialBits         int = 127 // positive, and random in at least 64 of its bits
)

// A CA is the built-in issuer: a root, and an intermediate that signs. It never
// changes.
type CA struct {
	root         *x509.Certificate
	intermediate *x509.Certificate
	key          crypto.Signer // of the intermediate
}

// newCA makes a root and an intermediate, and returns them as the data of a
// Secret.
func newCA(trustDomain string, now time.Time) (map[string][]byte, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the root's key: %w", err)
	}
	root, err := selfSigned("Outrigger root of "+trustDomain, rootKey, now, 1)
	if err != nil {
		return nil, fmt.Errorf("make the root: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the intermediate's key: %w", err)
	}
	template := authority("Outrigger intermediate of "+trustDomain, now, 0)
	template.NotAfter = root.NotAfter
	intermediate, err := create(template, root, key.Public(), rootKey)
	if err != nil {
		return nil, fmt.Errorf("make the intermediate: %w", err)
	}
	data := map[string][]byte{keyRoot: encodeCertificates(root), keyIntermediate: encodeCertificates(intermediate)}
	for name, k := range map[string]*ecdsa.PrivateKey{keyRootKey: rootKey, keyIntermediateKey: key} {
		if data[name], err = encodeKey(k); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// parseCA reads what newCA wrote, and checks that its pieces belong together and
// are valid now.
func parseCA(data map[string][]byte, now time.Time) (*CA, error) {
	root, _, err := parsePair(data, keyRoot, keyRootKey)
	if err != nil {
		return nil, err
	}
	intermediate, key, err := parsePair(data, keyIntermediate, keyIntermediateKey)
	if err != nil {
		return nil, err
	}
	options := x509.VerifyOptions{Roots: pool([]*x509.Certificate{root}), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if !root.IsCA || !intermediate.IsCA {
		return nil, fmt.Errorf("%s and %s must be authorities", keyRoot, keyIntermediate)
	}
	if _, err := intermediate.Verify(options); err != nil {
		return nil, fmt.Errorf("verify %s: %w", keyIntermediate, err)
	}
	return &CA{root: root, intermediate: intermediate, key: key}, nil
}

// Roots returns the root.
func (c *CA) Roots() []*x509.Certificate { return []*x509.Certificate{c.root} }

// Issue signs a leaf. It takes the key from the request and everything else from
// the template.
func (c *CA) Issue(_ context.Context, request *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	now := time.Now()
	leaf := &x509.Certificate{
		Subject:               pkix.Name{SerialNumber: t.PodUID},
		URIs:                  t.URIs,
		DNSNames:              t.DNSNames,
		NotBefore:             later(now.Add(-backdate), c.intermediate.NotBefore),
		NotAfter:              earlier(now.Add(t.Lifetime), c.intermediate.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if !now.Before(leaf.NotAfter) {
		return nil, fmt.Errorf("the intermediate ended at %s", c.intermediate.NotAfter.Format(time.RFC3339))
	}
	certificate, err := create(leaf, c.intermediate, request.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{certificate, c.intermediate}, nil
}

// authority is the template of a certificate that signs others.
func authority(name string, now time.Time, below int) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Outrigger"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            below,
		MaxPathLenZero:        below == 0,
	}
}

func selfSigned(name string, key crypto.Signer, now time.Time, below int) (*x509.Certificate, error) {
	template := authority(name, now, below)
	return create(template, template, key.Public(), key)
}

// create signs a certificate with a random serial number.
func create(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(serialBits)))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func encodeCertificates(certificates ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: c.Raw})...)
	}
	return text
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

// parseCertificates reads certificates in PEM, at least one. Errors never hold
// any of the text.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != blockCertificate {
			return nil, fmt.Errorf("it holds a PEM block of type %q; only %s is allowed", block.Type, blockCertificate)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse a certificate: %w", err)
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return certificates, nil
}

// parsePair reads a certificate and its key from the data of a Secret. Further
// certificates after the first are ignored.
func parsePair(data map[string][]byte, certificateName, keyName string) (*x509.Certificate, crypto.Signer, error) {
	certificates, err := parseCertificates(data[certificateName])
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", certificateName, err)
	}
	block, _ := pem.Decode(data[keyName])
	if block == nil {
		return nil, nil, fmt.Errorf("read %s: it holds no PEM block", keyName)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: it is not a PKCS #8 key", keyName)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(certificates[0].PublicKey) {
		return nil, nil, fmt.Errorf("%s is not the ECDSA key of %s", keyName, certificateName)
	}
	return certificates[0], signer, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
