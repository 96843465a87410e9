package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A userAuthority is an authority of a user's.
type userAuthority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// userRoot makes a root as a user would, after a change.
func userRoot(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) userAuthority {
	t.Helper()
	return userAuthority{}.below(t, key, change)
}

// below makes an authority that a signs; without one it signs itself.
func (a userAuthority) below(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) userAuthority {
	t.Helper()
	template := authorityTemplate("someone's authority", time.Now(), 5)
	if a.certificate != nil {
		template.Subject.CommonName += " below " + a.certificate.Subject.CommonName
		template.MaxPathLen = 2
	}
	if change != nil {
		change(template)
	}
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	c, err := create(template, parent, key.Public(), signer)
	must(t, err)
	return userAuthority{c, key}
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	must(t, err)
	return key
}

// keyText writes a key in the given type of PEM block.
func keyText(t testing.TB, block string, key crypto.Signer) []byte {
	t.Helper()
	var der []byte
	var err error
	switch block {
	case blockRSAKey:
		der = x509.MarshalPKCS1PrivateKey(key.(*rsa.PrivateKey))
	case blockECKey:
		der, err = x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	default:
		der, err = x509.MarshalPKCS8PrivateKey(key)
	}
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})
}

func TestUsersAuthorities(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	root := userRoot(t, rsaKey(t, 2048), nil)
	next := userRoot(t, p256(t), nil)
	upper := root.below(t, p384, nil)
	lower := upper.below(t, rsaKey(t, 3072), func(c *x509.Certificate) { c.MaxPathLen = 1 })
	curve := append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), keyText(t, blockECKey, next.key)...)
	cases := map[string]struct {
		reason  string
		data    map[string][]byte
		root    userAuthority
		roots   int
		parents int // certificates that peers get after the mesh's own intermediate
	}{
		"TLSRoot": {
			reason: "A root in kubernetes.io/tls form.", root: root, roots: 1,
			data: map[string][]byte{"tls.crt": encodeCertificates(root.certificate), "tls.key": keyText(t, blockRSAKey, root.key)},
		},
		"OSM": {
			reason: "What OSM kept in osm-ca-bundle.", root: root, roots: 1,
			data: map[string][]byte{"ca.crt": encodeCertificates(root.certificate), "private.key": keyText(t, blockKey, root.key)},
		},
		"OpenSSL": {
			reason: "openssl writes the curve in front of the key.", root: next, roots: 1,
			data: map[string][]byte{"tls.crt": encodeCertificates(next.certificate), "tls.key": curve},
		},
		"OfflineRoot": {
			reason: "The root's key is elsewhere, and its certificate in ca.crt.", root: root, roots: 1, parents: 2,
			data: map[string][]byte{
				"tls.crt": encodeCertificates(lower.certificate, upper.certificate), "tls.key": keyText(t, blockKey, lower.key),
				"ca.crt": encodeCertificates(root.certificate),
			},
		},
		"OfflineRootInTheChain": {
			reason: "Or at the end of the chain.", root: root, roots: 1, parents: 1,
			data: map[string][]byte{"tls.crt": encodeCertificates(upper.certificate, root.certificate), "tls.key": keyText(t, blockECKey, upper.key)},
		},
		"NextRoot": {
			reason: "A root may be announced before it signs.", root: root, roots: 2, parents: 1,
			data: map[string][]byte{
				"tls.crt": encodeCertificates(upper.certificate), "tls.key": keyText(t, blockKey, upper.key),
				"ca.crt": encodeCertificates(next.certificate, root.certificate),
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ca := caOf(t, tc.data)
			_, request, template, err := ownRequest("outrigger-system", trustDomain, time.Hour)
			must(t, err)
			chain, err := issue(t.Context(), ca, request, template)
			must(t, err)
			if got, want := len(chain), 2+tc.parents; got != want {
				t.Errorf("%s\nthe chain has %d certificates, want %d", tc.reason, got, want)
			}
			if roots := ca.Roots(); len(roots) != tc.roots || !slices.ContainsFunc(roots, tc.root.certificate.Equal) || !ca.authority.root.Equal(tc.root.certificate) {
				t.Errorf("%s\nroots are %d, and the chain leads to %s", tc.reason, len(roots), ca.authority.root.Subject)
			}
		})
	}
}

func TestAuthoritiesThatCannotBeUsed(t *testing.T) {
	now := time.Now()
	whole, err := newCA(trustDomain, now)
	must(t, err)
	other, err := newCA(trustDomain, now)
	must(t, err)
	root := userRoot(t, p256(t), nil)
	withRoot := func(key crypto.Signer, block string, change func(*x509.Certificate)) map[string][]byte {
		a := userRoot(t, key, change)
		return map[string][]byte{"tls.crt": encodeCertificates(a.certificate), "tls.key": keyText(t, block, key)}
	}
	changed := func(change func(map[string][]byte)) map[string][]byte {
		data := maps.Clone(whole)
		change(data)
		return data
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	below := root.below(t, p256(t), nil)
	cases := map[string]struct {
		reason string
		data   map[string][]byte
		now    time.Time
		say    []string
	}{
		"Nothing":  {reason: "Any Secret may be named.", data: map[string][]byte{"x": {1}}, say: []string{"[x]", "tls.crt with tls.key", "ca.crt with private.key"}},
		"NoKey":    {reason: "A piece is missing.", data: changed(func(d map[string][]byte) { delete(d, keyRootKey) }), say: []string{"ca.crt with ca.key"}},
		"NoRoot":   {reason: "A piece is missing.", data: changed(func(d map[string][]byte) { delete(d, keyRoot) }), say: []string{"read ca.crt", "no certificate"}},
		"TwoForms": {reason: "Nobody could say which one signs.", data: changed(func(d map[string][]byte) { d["private.key"] = d[keyRootKey] }), say: []string{"exactly one"}},
		"Garbage":  {reason: "A piece is not PEM.", data: changed(func(d map[string][]byte) { d[keyRoot] = []byte("x") }), say: []string{"ca.crt"}},
		"OtherKey": {reason: "The key is of another certificate.", data: changed(func(d map[string][]byte) { d[keyRootKey] = other[keyRootKey] }), say: []string{"ca.key is not the key", "ca.crt"}},
		"Swapped":  {reason: "Two pieces changed places.", data: changed(func(d map[string][]byte) { d[keyRoot], d[keyRootKey] = d[keyRootKey], d[keyRoot] }), say: []string{"ca.crt", "PRIVATE KEY"}},
		"Encrypted": {reason: "Nobody is there to ask for a password.", data: changed(func(d map[string][]byte) {
			d[keyRootKey] = pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY"})
		}), say: []string{"ca.key", "ENCRYPTED", "none of them encrypted"}},
		"TwoKeys":  {reason: "Nobody could say which one is meant.", data: changed(func(d map[string][]byte) { d[keyRootKey] = slices.Concat(d[keyRootKey], other[keyRootKey]) }), say: []string{"ca.key", "more than one key"}},
		"Ended":    {reason: "The root's time is over.", data: whole, now: now.Add(rootLifetime + time.Hour), say: []string{"ca.crt", "expired"}},
		"ShortRSA": {reason: "Too weak to sign for anyone.", data: withRoot(rsaKey(t, 1024), blockRSAKey, nil), say: []string{"tls.key", "1024", "2048"}},
		"Ed25519":  {reason: "Envoy would not accept what it signs.", data: withRoot(edKey, blockKey, nil), say: []string{"tls.key", "RSA and ECDSA"}},
		"Leaf": {
			reason: "A leaf must not sign.",
			data:   withRoot(p256(t), blockKey, func(c *x509.Certificate) { c.IsCA, c.MaxPathLen, c.KeyUsage = false, 0, 0 }), say: []string{"tls.crt", "no root"},
		},
		"NoCertSign": {
			reason: "Nor one that may sign lists only.",
			data:   withRoot(p256(t), blockKey, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), say: []string{"tls.crt"},
		},
		"PathLength": {
			reason: "There must be room for the mesh's own intermediate.",
			data:   withRoot(p256(t), blockKey, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), say: []string{"tls.crt", "path length of 0", "at least 1"},
		},
		"NoWayToTheRoot": {
			reason: "Peers could not verify what it signs.",
			data: map[string][]byte{
				"tls.crt": encodeCertificates(below.certificate), "tls.key": keyText(t, blockKey, below.key),
				"ca.crt": encodeCertificates(userRoot(t, p256(t), func(c *x509.Certificate) { c.Subject.CommonName = "a stranger" }).certificate),
			}, say: []string{"tls.crt", "to a root"},
		},
		"RootMissing": {
			reason: "An intermediate alone is no trust.",
			data:   map[string][]byte{"tls.crt": encodeCertificates(below.certificate), "tls.key": keyText(t, blockKey, below.key)}, say: []string{"tls.crt holds no root", "required in ca.crt"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			at := tc.now
			if at.IsZero() {
				at = now
			}
			_, err := parseAuthority(tc.data, at)
			if err == nil {
				t.Fatalf("%s\nit was accepted", tc.reason)
			}
			for _, say := range tc.say {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("%s\n%v does not say %q", tc.reason, err, say)
				}
			}
			for _, line := range strings.Fields(string(whole[keyRootKey])) {
				if len(line) > 20 && strings.Contains(err.Error(), line) {
					t.Errorf("%s\nthe error tells too much: %v", tc.reason, err)
				}
			}
		})
	}
}

// TestConstraintsOfAUsersRoot wants what only verification of a leaf shows.
func TestConstraintsOfAUsersRoot(t *testing.T) {
	home := Home{Namespace: "outrigger-system", Mesh: "outrigger"}
	for name, tc := range map[string]struct {
		change func(*x509.Certificate)
		say    string
	}{
		"Fits":        {change: func(c *x509.Certificate) { c.PermittedURIDomains = []string{trustDomain} }},
		"OtherDomain": {change: func(c *x509.Certificate) { c.PermittedURIDomains = []string{"example.com"} }, say: "spiffe://cluster.local"},
		"ServerOnly":  {change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, say: "key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			root := userRoot(t, p256(t), tc.change)
			data := map[string][]byte{"tls.crt": encodeCertificates(root.certificate), "tls.key": keyText(t, blockKey, root.key)}
			_, err := home.useCA(t.Context(), CAConfig{TrustDomain: trustDomain, Secret: "mine"}, nil, data)
			if tc.say == "" {
				must(t, err)
			} else if err == nil || !strings.Contains(err.Error(), tc.say) || !strings.Contains(err.Error(), "Secret outrigger-system/mine") {
				t.Errorf("want Secret and %q named, got %v", tc.say, err)
			}
		})
	}
}

// TestIntermediateIsConstrained has the intermediate sign what it must not.
func TestIntermediateIsConstrained(t *testing.T) {
	ca := testCA(t)
	uris := newTemplate(cart(), trustDomain, podUID, time.Hour).URIs
	for name, tc := range map[string]struct {
		change func(*x509.Certificate)
		ok     bool
	}{
		"OurIdentity":  {change: func(*x509.Certificate) {}, ok: true},
		"OtherDomain":  {change: func(c *x509.Certificate) { c.URIs[0] = parseURL(t, "spiffe://example.com/ns/shop/sa/cart") }},
		"OtherName":    {change: func(c *x509.Certificate) { c.DNSNames = []string{"kubernetes.default.svc"} }},
		"Address":      {change: func(c *x509.Certificate) { c.IPAddresses = []net.IP{{10, 0, 0, 1}} }},
		"SixthAddress": {change: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("fd00::1")} }},
		"Mail":         {change: func(c *x509.Certificate) { c.EmailAddresses = []string{"root@example.com"} }},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := leafTemplate(uris)
			leaf.PublicKey = p256(t).Public()
			tc.change(leaf)
			chain := ca.sign(t, leaf)
			_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool(ca.Roots()), Intermediates: pool(chain[1:])})
			if (err == nil) != tc.ok {
				t.Errorf("verification says %v", err)
			}
		})
	}
}

func TestIntermediateIsReplaced(t *testing.T) {
	now := time.Now()
	ca := testCA(t)
	at := func(when time.Time) *intermediate {
		t.Helper()
		i, err := ca.signing(when)
		must(t, err)
		return i
	}
	first := at(now)
	if again := at(now.Add(intermediateUse - time.Minute)); again != first {
		t.Error("an intermediate is replaced too early")
	}
	second := at(now.Add(intermediateUse + time.Minute))
	if second == first {
		t.Fatal("an intermediate is not replaced")
	}
	if left := first.certificate.NotAfter.Sub(now.Add(intermediateUse)); left < 30*24*time.Hour {
		t.Errorf("when it is replaced it has %s left, less than the longest leaf", left)
	}
	// Towards the end of the root, everything ends with it.
	end := ca.authority.root.NotAfter
	last := at(end.Add(-time.Hour))
	if !last.certificate.NotAfter.Equal(end) {
		t.Errorf("the last intermediate ends at %s, the root at %s", last.certificate.NotAfter, end)
	}
	ca.intermediate = nil
	if _, err := ca.signing(end.Add(time.Second)); err == nil || !strings.Contains(err.Error(), "Secret /outrigger-ca") {
		t.Errorf("an authority that ended still signs: %v", err)
	}
}

// TestEveryIdentityPasses wants each trust domain that is allowed to work with
// constraints.
func TestEveryIdentityPasses(t *testing.T) {
	for _, domain := range []string{"cluster.local", "mesh", "a-b.example.com", "prod.eu-1.example"} {
		data, err := newCA(domain, time.Now())
		must(t, err)
		a, err := parseAuthority(data, time.Now())
		must(t, err)
		ca := &CA{cfg: CAConfig{TrustDomain: domain}, authority: a}
		for _, id := range []mesh.Identity{{Namespace: "shop", ServiceAccount: "cart"}, {Namespace: "svc", ServiceAccount: "a.b"}} {
			template := newTemplate(id, domain, podUID, time.Hour)
			request := &x509.CertificateRequest{PublicKey: p256(t).Public()}
			if _, err := issue(t.Context(), ca, request, template); err != nil {
				t.Errorf("%s in %s: %v", id, domain, err)
			}
		}
	}
}
