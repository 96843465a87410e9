package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	trustDomain = "cluster.local"
	podUID      = "0c6dbd22-2e8f-4a4b-9b1c-0d1f3c5a7e11"
)

func cart() mesh.Identity { return mesh.Identity{Namespace: "shop", ServiceAccount: "cart"} }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// csr makes a request as the agent does, after a change.
func csr(t testing.TB, id mesh.Identity, uid string, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	uris, names := signing.Names(id, trustDomain)
	r := &x509.CertificateRequest{Subject: pkix.Name{SerialNumber: uid}, URIs: uris, DNSNames: names}
	if change != nil {
		change(r)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	must(t, err)
	return der
}

func testCA(t testing.TB) *CA {
	t.Helper()
	data, err := newCA(trustDomain, time.Now())
	must(t, err)
	return caOf(t, data)
}

// caOf is the issuer of an authority.
func caOf(t testing.TB, data map[string][]byte) *CA {
	t.Helper()
	a, err := parseAuthority(data, time.Now())
	must(t, err)
	return &CA{cfg: CAConfig{TrustDomain: trustDomain}, authority: a}
}

// sign has a leaf signed by the CA's intermediate as it is, whatever it says.
func (c *CA) sign(t testing.TB, leaf *x509.Certificate) []*x509.Certificate {
	t.Helper()
	by, err := c.signing(time.Now())
	must(t, err)
	certificate, err := create(leaf, by.certificate, leaf.PublicKey, by.key)
	must(t, err)
	return append([]*x509.Certificate{certificate}, by.chain...)
}

// wantRefusal checks code and reason of an error.
func wantRefusal(t *testing.T, reason string, err error, code codes.Code, why string) {
	t.Helper()
	refusal, ok := errors.AsType[*signing.Refusal](err)
	if !ok || refusal.Code != code || refusal.Reason != why {
		t.Errorf("%s\nwant a refusal %s %s, got %v", reason, code, why, err)
	}
}

func parseURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	must(t, err)
	return u
}

func TestRequest(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	change := func(f func(*x509.CertificateRequest)) []byte { return csr(t, cart(), podUID, p256(t), f) }
	otherName := func(der []byte) []byte { // a kind of name that crypto/x509 does not know
		san, err := asn1.Marshal([]asn1.RawValue{
			{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte("spiffe://cluster.local/ns/shop/sa/cart")},
			{Class: asn1.ClassContextSpecific, Tag: tagDNSName, Bytes: []byte("cart.shop.cluster.local")},
			{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: der},
		})
		must(t, err)
		return change(func(r *x509.CertificateRequest) {
			r.URIs, r.DNSNames = nil, nil
			r.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName, Value: san}}
		})
	}
	cases := map[string]struct {
		reason string
		der    []byte
		code   codes.Code
		why    string
	}{
		"Good":    {reason: "What the agent sends is accepted.", der: change(nil)},
		"Garbage": {reason: "Anything may come.", der: []byte("garbage"), code: codes.InvalidArgument, why: ReasonRequest},
		"Empty":   {reason: "Nothing may come.", code: codes.InvalidArgument, why: ReasonRequest},
		"Trailing": {
			reason: "What follows the request would be overlooked.",
			der:    append(change(nil), 0), code: codes.InvalidArgument, why: ReasonRequest,
		},
		"Long": {
			reason: "A large request costs time before it is known to be nonsense.",
			der:    make([]byte, maxRequest+1), code: codes.InvalidArgument, why: ReasonRequest,
		},
		"RSA":  {reason: "The mesh uses one kind of key.", der: csr(t, cart(), podUID, rsaKey, nil), code: codes.InvalidArgument, why: ReasonKey},
		"P384": {reason: "And one curve.", der: csr(t, cart(), podUID, p384, nil), code: codes.InvalidArgument, why: ReasonKey},
		"BadSignature": {
			reason: "The caller must own the key.",
			der: func() []byte {
				der := change(nil)
				der[len(der)-1] ^= 1
				return der
			}(), code: codes.InvalidArgument, why: ReasonRequest,
		},
		"OtherIdentity": {
			reason: "A pod gets its own identity and no other.",
			der:    csr(t, mesh.Identity{Namespace: "shop", ServiceAccount: "admin"}, podUID, p256(t), nil), code: codes.PermissionDenied, why: ReasonNames,
		},
		"MoreIdentities": {
			reason: "Not even besides its own.",
			der: change(func(r *x509.CertificateRequest) {
				r.URIs = append(r.URIs, parseURL(t, "spiffe://cluster.local/ns/shop/sa/admin"))
			}),
			code: codes.PermissionDenied, why: ReasonNames,
		},
		"MoreNames": {
			reason: "A DNS name could be a server's.",
			der: change(func(r *x509.CertificateRequest) {
				r.DNSNames = append(r.DNSNames, "outrigger-webhook.outrigger-system.svc")
			}),
			code: codes.PermissionDenied, why: ReasonNames,
		},
		"FewerNames": {
			reason: "What is signed is what was announced.",
			der:    change(func(r *x509.CertificateRequest) { r.DNSNames = nil }), code: codes.PermissionDenied, why: ReasonNames,
		},
		"Address": {
			reason: "Addresses change hands.",
			der:    change(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{{10, 0, 0, 1}} }), code: codes.PermissionDenied, why: ReasonNames,
		},
		"Email": {
			reason: "Nothing of another kind.",
			der:    change(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} }), code: codes.PermissionDenied, why: ReasonNames,
		},
		"OtherName": {
			reason: "A kind of name that crypto/x509 does not show would reach an external issuer.",
			der:    otherName([]byte{6, 1, 42, 0xa0, 2, 5, 0}), code: codes.PermissionDenied, why: ReasonNames,
		},
		"OtherPod": {
			reason: "The serial number binds xDS streams to the pod.",
			der:    csr(t, cart(), "other", p256(t), nil), code: codes.PermissionDenied, why: ReasonNames,
		},
		"CommonName": {
			reason: "Some software still reads it as a DNS name.",
			der:    change(func(r *x509.CertificateRequest) { r.Subject.CommonName = "kubernetes" }), code: codes.PermissionDenied, why: ReasonNames,
		},
		"CA": {
			reason: "An external issuer might grant it.",
			der: change(func(r *x509.CertificateRequest) {
				r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
			}),
			code: codes.PermissionDenied, why: ReasonNames,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			request, err := parseRequest(tc.der)
			if err == nil {
				err = checkRequest(request, newTemplate(cart(), trustDomain, podUID, time.Hour))
			}
			if tc.why == "" {
				must(t, err)
				return
			}
			wantRefusal(t, tc.reason, err, tc.code, tc.why)
		})
	}
}

// TestPasswordIsRefused needs a request made by hand: crypto/x509 writes no
// attribute but extensions.
func TestPasswordIsRefused(t *testing.T) {
	key := p256(t)
	plain, err := x509.ParseCertificateRequest(csr(t, cart(), podUID, key, nil))
	must(t, err)
	var body struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	_, err = asn1.Unmarshal(plain.RawTBSCertificateRequest, &body)
	must(t, err)
	password, err := asn1.Marshal(struct {
		ID     asn1.ObjectIdentifier
		Values []string `asn1:"set"`
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, []string{"secret"}})
	must(t, err)
	body.Attributes = append(body.Attributes, asn1.RawValue{FullBytes: password})
	tbs, err := asn1.Marshal(body)
	must(t, err)
	sum := crypto.SHA256.New()
	sum.Write(tbs)
	signature, err := key.Sign(rand.Reader, sum.Sum(nil), crypto.SHA256)
	must(t, err)
	der, err := asn1.Marshal(struct {
		Body      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.BitString{Bytes: signature, BitLength: len(signature) * 8}})
	must(t, err)
	_, err = parseRequest(der)
	wantRefusal(t, "Some issuers act on attributes.", err, codes.InvalidArgument, ReasonRequest)
	if err == nil || !strings.Contains(err.Error(), "attribute") {
		t.Errorf("want the attribute named, got %v", err)
	}
}

func TestLeaf(t *testing.T) {
	ca := testCA(t)
	key := p256(t)
	request, err := parseRequest(csr(t, cart(), podUID, key, nil))
	must(t, err)
	now := time.Now()
	chain, err := issue(t.Context(), ca, request, newTemplate(cart(), trustDomain, podUID, time.Hour))
	must(t, err)
	leaf := chain[0]
	got := map[string]any{
		"uri": leaf.URIs[0].String(), "uris": len(leaf.URIs), "dns": strings.Join(leaf.DNSNames, " "), "serial": leaf.Subject.SerialNumber,
		"subject": leaf.Subject.String(), "ca": leaf.IsCA, "usage": leaf.KeyUsage, "key": key.PublicKey.Equal(leaf.PublicKey),
		"chain": len(chain), "root in chain": chain[len(chain)-1].Equal(ca.authority.root),
	}
	want := map[string]any{
		"uri": "spiffe://cluster.local/ns/shop/sa/cart", "uris": 1, "dns": "cart.shop.cluster.local", "serial": podUID,
		"subject": "SERIALNUMBER=" + podUID, "ca": false, "usage": x509.KeyUsageDigitalSignature, "key": true,
		"chain": 2, "root in chain": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("leaf (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, leaf.ExtKeyUsage); diff != "" {
		t.Errorf("usages (-want +got):\n%s", diff)
	}
	if leaf.NotBefore.After(now.Add(-4*time.Minute)) || leaf.NotAfter.Before(now.Add(59*time.Minute)) || leaf.NotAfter.After(now.Add(61*time.Minute)) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
	again, err := issue(t.Context(), ca, request, newTemplate(cart(), trustDomain, podUID, time.Hour))
	must(t, err)
	if leaf.SerialNumber.Cmp(again[0].SerialNumber) == 0 {
		t.Error("two certificates have one serial number")
	}
	long, err := ca.Issue(t.Context(), request, newTemplate(cart(), trustDomain, podUID, 20*rootLifetime))
	must(t, err)
	if end := ca.intermediate.certificate.NotAfter; long[0].NotAfter.After(end) {
		t.Errorf("the leaf is valid until %s, its issuer until %s", long[0].NotAfter, end)
	}
}

// issuerFunc is an external issuer that does what it likes.
type issuerFunc struct {
	*CA
	t     *testing.T
	spoil func(*x509.Certificate)
}

func (i issuerFunc) Issue(_ context.Context, request *x509.CertificateRequest, tpl Template) ([]*x509.Certificate, error) {
	now := time.Now()
	leaf := &x509.Certificate{
		Subject: pkix.Name{SerialNumber: tpl.PodUID}, URIs: tpl.URIs, DNSNames: tpl.DNSNames,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(tpl.Lifetime), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	leaf.PublicKey = request.PublicKey
	i.spoil(leaf)
	return i.sign(i.t, leaf), nil
}

func TestIssuersAnswerIsChecked(t *testing.T) {
	ca, stranger := testCA(t), testCA(t)
	request, err := parseRequest(csr(t, cart(), podUID, p256(t), nil))
	must(t, err)
	template := newTemplate(cart(), trustDomain, podUID, time.Hour)
	for name, spoil := range map[string]func(*x509.Certificate){
		"Good":        func(*x509.Certificate) {},
		"OtherKey":    func(c *x509.Certificate) { c.PublicKey = p256(t).Public() },
		"CA":          func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign },
		"EncryptOnly": func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment },
		"CertSign":    func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"NoSerial":    func(c *x509.Certificate) { c.Subject.SerialNumber = "" },
		"MoreNames":   func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "x") },
		"NoNames":     func(c *x509.Certificate) { c.DNSNames, c.URIs = nil, nil },
		"ServerOnly":  func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] },
		"Ended":       func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) },
		"FarTooLong":  func(c *x509.Certificate) { c.NotAfter = time.Now().Add(48 * time.Hour) },
		"NotYetValid": func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := issue(t.Context(), issuerFunc{ca, t, spoil}, request, template)
			if name == "Good" {
				must(t, err)
			} else if err == nil {
				t.Error("the answer was accepted")
			}
		})
	}
	for name, tc := range map[string]struct {
		add   func(*x509.Certificate)
		names string
	}{
		"CodeSigning":  {func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, x509.ExtKeyUsageCodeSigning.String()},
		"AnyUsage":     {func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageAny) }, x509.ExtKeyUsageAny.String()},
		"UnknownUsage": {func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, "1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := issue(t.Context(), issuerFunc{ca, t, tc.add}, request, template)
			if err == nil || !strings.Contains(err.Error(), "its extended key usages have ["+tc.names+"]; only client and server authentication are allowed") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("OtherRoot", func(t *testing.T) {
		chain, err := stranger.Issue(t.Context(), request, template)
		must(t, err)
		if _, err := checkChain(chain, request, template, ca.Roots()); err == nil {
			t.Error("the answer was accepted")
		}
	})
	t.Run("Nothing", func(t *testing.T) {
		if _, err := checkChain(nil, request, template, ca.Roots()); err == nil {
			t.Error("the answer was accepted")
		}
	})
	t.Run("TooMuch", func(t *testing.T) {
		chain, err := ca.Issue(t.Context(), request, template)
		must(t, err)
		more, err := checkChain(slices.Concat(chain, ca.Roots(), stranger.Roots()), request, template, ca.Roots())
		must(t, err)
		if !slices.EqualFunc(more, chain, (*x509.Certificate).Equal) {
			t.Errorf("want the chain of %d certificates alone, got %d", len(chain), len(more))
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(csr(f, cart(), podUID, p256(f), nil))
	f.Add(csr(f, cart(), podUID, p256(f), func(r *x509.CertificateRequest) { r.Subject.CommonName = "x" }))
	template := newTemplate(cart(), trustDomain, podUID, time.Hour)
	f.Fuzz(func(t *testing.T, der []byte) {
		request, err := parseRequest(der)
		if err != nil {
			return
		}
		if checkRequest(request, template) == nil && (len(request.URIs) != 1 || request.URIs[0].String() != template.URIs[0].String()) {
			t.Errorf("accepted a request for %v", request.URIs)
		}
	})
}

// authoritiesOf are an issuer alone, which signs everything.
func authoritiesOf(issuer Issuer) *Authorities {
	authorities := &Authorities{}
	authorities.Set(alone("first", trustDomain, issuer))
	return authorities
}

func alone(name, domain string, issuer Issuer) Accepted {
	one := Opened{Authority: Authority{Name: name, TrustDomain: domain, BuiltIn: &rotation.BuiltIn{Secret: name}}, Issuer: issuer}
	return Accepted{Signing: one, Serving: one, Trusted: []Opened{one}}
}
