package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Types of PEM blocks.
const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	blockRSAKey      = "RSA PRIVATE KEY"
	blockECKey       = "EC PRIVATE KEY"
	blockECCurve     = "EC PARAMETERS" // openssl writes it in front of a key
)

// minRSA is the shortest RSA key of an authority.
const minRSA = 2048

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

// parseKey reads one RSA or ECDSA key in any of the usual forms of PEM. Errors
// never hold any of the text.
func parseKey(text []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(text)
	if block != nil && block.Type == blockECCurve {
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("it holds no PEM block")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it holds more than one key; exactly one is allowed")
	}
	var key any
	var err error
	switch block.Type {
	case blockKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case blockRSAKey:
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case blockECKey:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("it holds a PEM block of type %q; %s, %s and %s are allowed, none of them encrypted", block.Type, blockKey, blockRSAKey, blockECKey)
	}
	if err != nil {
		return nil, fmt.Errorf("it is not a key that can be read, though its PEM block is of type %s", block.Type)
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		if bits := k.N.BitLen(); bits < minRSA {
			return nil, fmt.Errorf("it is an RSA key of %d bits; at least %d are allowed", bits, minRSA)
		}
		return k, nil
	default:
		return nil, fmt.Errorf("it is a %T; RSA and ECDSA are allowed", key)
	}
}

// parsePair reads a certificate and its key from the data of a Secret. Further
// certificates after the first are ignored.
func parsePair(data map[string][]byte, certificateName, keyName string) (*x509.Certificate, crypto.Signer, error) {
	certificates, err := parseCertificates(data[certificateName])
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", certificateName, err)
	}
	key, err := parseKey(data[keyName])
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", keyName, err)
	}
	if !isKeyOf(key, certificates[0]) {
		return nil, nil, fmt.Errorf("%s is not the key of the first certificate in %s", keyName, certificateName)
	}
	return certificates[0], key, nil
}

func isKeyOf(key crypto.Signer, c *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}
