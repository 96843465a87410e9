package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
)

const (
	rootLifetime = 10 * 365 * 24 * time.Hour
	// backdate makes a new certificate good for those whose clock is behind.
	backdate = 5 * time.Minute
	// serialBits: positive, and random in at least 64 of them.
	serialBits = 127
)

// Keys of the Secret outrigger-ca.
const (
	keyRoot    = "ca.crt"
	keyRootKey = "ca.key"
)

// A form is how the data of a Secret holds an authority: the entry of its
// certificate, followed by those between it and the root; of its key; and of the
// roots, where they are apart.
type form struct{ certificate, key, roots string }

// forms are told apart by the entry of the key.
func forms() []form {
	return []form{
		{certificate: keyRoot, key: keyRootKey},                   // what newCA makes
		{certificate: "tls.crt", key: "tls.key", roots: "ca.crt"}, // kubernetes.io/tls
		{certificate: "ca.crt", key: "private.key", roots: ""},    // OSM's osm-ca-bundle
	}
}

// An authority is what a Secret holds: a certificate that may sign others, its
// key, and the way to a root. It never changes.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	// parents are what a peer needs to get from the certificate to the root: the
	// certificate first, no root.
	parents []*x509.Certificate
	root    *x509.Certificate
	// roots are all that the mesh should trust; root is one of them.
	roots []*x509.Certificate
}

// newCA makes a root, and returns it as the data of a Secret.
func newCA(trustDomain string, now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the root's key: %w", err)
	}
	root, err := selfSigned("Outrigger root of "+trustDomain, key, now, 1)
	if err != nil {
		return nil, fmt.Errorf("make the root: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{keyRoot: encodeCertificates(root), keyRootKey: text}, nil
}

// parseAuthority reads the data of a Secret, and checks that its pieces belong
// together, may sign an intermediate, and are valid now.
func parseAuthority(data map[string][]byte, now time.Time) (*authority, error) {
	f, err := formOf(data)
	if err != nil {
		return nil, err
	}
	certificate, key, err := parsePair(data, f.certificate, f.key)
	if err != nil {
		return nil, err
	}
	bundle, err := parseCertificates(data[f.certificate])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.certificate, err)
	}
	roots, err := rootsOf(data, f, bundle)
	if err != nil {
		return nil, err
	}
	if err := mayHaveIntermediates(certificate); err != nil {
		return nil, fmt.Errorf("%s: %w", f.certificate, err)
	}
	chains, err := certificate.Verify(x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(bundle[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("find the way from the first certificate in %s to a root: %w", f.certificate, err)
	}
	chain := chains[0]
	last := len(chain) - 1
	return &authority{certificate: certificate, key: key, parents: chain[:last], root: chain[last], roots: roots}, nil
}

// formOf returns the form of a Secret's data.
func formOf(data map[string][]byte) (form, error) {
	var found []form
	var allowed []string
	for _, f := range forms() {
		allowed = append(allowed, f.certificate+" with "+f.key)
		if len(data[f.key]) > 0 {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		return form{}, fmt.Errorf("its entries are [%s]; exactly one of these pairs is allowed: %s",
			strings.Join(slices.Sorted(maps.Keys(data)), " "), strings.Join(allowed, ", "))
	}
	return found[0], nil
}

// rootsOf returns the roots of a form: those that are apart, or else those among
// its certificates.
func rootsOf(data map[string][]byte, f form, bundle []*x509.Certificate) ([]*x509.Certificate, error) {
	where := f.certificate
	if f.roots != "" && len(data[f.roots]) > 0 {
		var err error
		if bundle, err = parseCertificates(data[f.roots]); err != nil {
			return nil, fmt.Errorf("read %s: %w", f.roots, err)
		}
		where = f.roots
	}
	roots := slices.DeleteFunc(slices.Clone(bundle), func(c *x509.Certificate) bool { return !isRoot(c) })
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s holds no root, which is a certificate that signed itself; at least one is required in %s", where, f.rootsEntry())
	}
	return roots, nil
}

func (f form) rootsEntry() string {
	if f.roots != "" {
		return f.roots
	}
	return f.certificate
}

// isRoot reports whether a certificate is an authority that signed itself.
func isRoot(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
}

// mayHaveIntermediates checks that a certificate may sign authorities.
func mayHaveIntermediates(c *x509.Certificate) error {
	switch {
	case !c.IsCA:
		return fmt.Errorf("%q is not an authority; basic constraints with CA:TRUE are required", c.Subject)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%q may not sign certificates; the key usage certificate sign is required", c.Subject)
	case c.MaxPathLen == 0 && c.MaxPathLenZero:
		return fmt.Errorf("%q has a path length of 0; at least 1 is required, for the intermediate that the mesh makes below it", c.Subject)
	default:
		return nil
	}
}

// end is when the way to the root ends.
func (a *authority) end() time.Time {
	end := a.root.NotAfter
	for _, c := range a.parents {
		end = earlier(end, c.NotAfter)
	}
	return end
}

// authorityTemplate is the template of a certificate that signs others.
func authorityTemplate(name string, now time.Time, below int) *x509.Certificate {
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
	template := authorityTemplate(name, now, below)
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
