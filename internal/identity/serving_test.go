package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// flaky is an issuer that sometimes does not answer.
type flaky struct {
	*CA
	down atomic.Bool
}

func (f *flaky) Issue(ctx context.Context, r *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	if f.down.Load() {
		return nil, errors.New("the issuer does not answer")
	}
	return f.CA.Issue(ctx, r, t)
}

// runServing runs s until the test ends.
func runServing(t *testing.T, s *Serving) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, testr.New(t)) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
}

// other waits for a certificate that is not the one of before.
func other(t *testing.T, s *Serving, before *tls.Certificate) *tls.Certificate {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := s.TLS(); err == nil && now != before {
			return now
		}
		select {
		case <-deadline:
			t.Fatal("there is no other certificate")
		case <-tick.C:
		}
	}
}

func TestServing(t *testing.T) {
	issuer := &flaky{CA: testCA(t)}
	s := NewServing(authoritiesOf(issuer), "outrigger-system", time.Second)
	if _, err := s.TLS(); err == nil || s.Ready() == nil {
		t.Error("ready before there is a certificate")
	}
	runServing(t, s)
	first := other(t, s, nil)
	must(t, s.Ready())
	if got, want := first.Leaf.URIs[0].String(), "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"; got != want {
		t.Errorf("served as %s; want %s", got, want)
	}
	roots, err := trustedRoots(s)
	must(t, err)
	if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool([]*x509.Certificate{issuer.intermediate.certificate})}); err != nil {
		t.Errorf("peers cannot verify the chain: %v", err)
	}
	other(t, s, first)
}

func TestServingWithoutIssuer(t *testing.T) {
	issuer := &flaky{CA: testCA(t)}
	issuer.down.Store(true)
	authorities := &Authorities{}
	authorities.Missing(errors.New("Vault is sealed"))
	s := NewServing(authorities, "outrigger-system", time.Hour)
	runServing(t, s)
	wait := func(why string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ; s.Ready() == nil || !strings.Contains(s.Ready().Error(), why); <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("readiness says %v; want %s", s.Ready(), why)
			}
		}
	}
	wait("Vault is sealed")
	authorities.Set(alone("first", trustDomain, issuer))
	wait("the issuer does not answer")

	issuer.down.Store(false)
	authorities.RootsChanged() // whoever knows that it is back says so
	first := other(t, s, nil)

	issuer.down.Store(true)
	if s.renew(t.Context()) == nil {
		t.Error("no error from an issuer that does not answer")
	}
	if now, err := s.TLS(); err != nil || now != first {
		t.Errorf("the last certificate is gone: %v", err)
	}
}

func TestServingChangesItsAuthority(t *testing.T) {
	old, next := testCA(t), testCA(t)
	authorities := authoritiesOf(old)
	s := NewServing(authorities, "outrigger-system", time.Hour)
	runServing(t, s)
	first := other(t, s, nil)

	now := alone("first", trustDomain, old)
	second := alone("second", "other.domain", caOfDomain(t, next, "other.domain"))
	now.Trusted = append(now.Trusted, second.Signing)
	authorities.Set(now)
	domains, err := s.Trusted()
	must(t, err)
	want := []mesh.TrustDomain{
		{Name: trustDomain, Bundle: string(encodeCertificates(old.authority.root))},
		{Name: "other.domain", Bundle: string(encodeCertificates(next.authority.root))},
	}
	if !slices.Equal(domains, want) {
		t.Errorf("clients are accepted by %v; want each authority for its own trust domain", domains)
	}
	if still, _ := s.TLS(); still != first {
		t.Error("the certificate changed when only the trust did")
	}
	now.Serving = second.Signing
	authorities.Set(now)
	if got, want := other(t, s, first).Leaf.URIs[0].String(), "spiffe://other.domain/ns/outrigger-system/sa/outriggerd"; got != want {
		t.Errorf("served as %s; want %s", got, want)
	}
}

// slow is an issuer that signs when it is told to.
type slow struct {
	*CA
	asked, sign chan struct{}
}

func (s *slow) Issue(ctx context.Context, r *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	s.asked <- struct{}{}
	<-s.sign
	return s.CA.Issue(ctx, r, t)
}

// TestServingHearsOfAChangeWhileItIsSigned holds that a certificate which another
// authority should have signed by the time it is there is not kept until it is old.
func TestServingHearsOfAChangeWhileItIsSigned(t *testing.T) {
	old := &slow{CA: testCA(t), asked: make(chan struct{}), sign: make(chan struct{})}
	authorities := authoritiesOf(old)
	s := NewServing(authorities, "outrigger-system", time.Hour)
	runServing(t, s)
	<-old.asked
	authorities.Set(alone("second", trustDomain, testCA(t)))
	close(old.sign)
	eventually(t, "the second authority signs", func() error {
		by, _, _, err := s.Ends()
		if err == nil && by != "second" {
			err = errors.New("it is signed by " + by)
		}
		return err
	})
}

// caOfDomain is the same authority, signing for another trust domain.
func caOfDomain(t testing.TB, ca *CA, domain string) *CA {
	t.Helper()
	return &CA{cfg: CAConfig{TrustDomain: domain}, authority: ca.authority}
}

func TestDomains(t *testing.T) {
	a, b, c := testCA(t), testCA(t), testCA(t)
	now := alone("a", "z.domain", a)
	now.Trusted = append(now.Trusted, alone("b", "b.domain", b).Signing, alone("c", "z.domain", c).Signing, alone("d", "a.domain", b).Signing, alone("e", "z.domain", a).Signing)
	got := now.Domains()
	want := []Domain{
		{Name: "z.domain", Roots: []*x509.Certificate{a.authority.root, c.authority.root}},
		{Name: "a.domain", Roots: []*x509.Certificate{b.authority.root}},
		{Name: "b.domain", Roots: []*x509.Certificate{b.authority.root}},
	}
	for i, domain := range want {
		if len(got) != len(want) || got[i].Name != domain.Name || got[i].Bundle() != domain.Bundle() {
			t.Fatalf("domain %d of %d is %s with %d roots; want %s with %d", i, len(got), got[i].Name, len(got[i].Roots), domain.Name, len(domain.Roots))
		}
	}
	if n := len(now.Roots()); n != 3 {
		t.Errorf("%d roots in all; want 3", n)
	}
}

// trustedRoots are those of the first trust domain that is accepted.
func trustedRoots(s *Serving) (*x509.CertPool, error) {
	domains, err := s.Trusted()
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(domains[0].Bundle))
	return roots, nil
}
