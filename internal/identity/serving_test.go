package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
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

func TestServing(t *testing.T) {
	issuer := &flaky{CA: testCA(t)}
	s, err := NewServing(t.Context(), issuer, "outrigger-system", trustDomain, time.Second)
	must(t, err)
	first, roots, err := s.TLS()
	must(t, err)
	if got, want := first.Leaf.URIs[0].String(), "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"; got != want {
		t.Errorf("served as %s; want %s", got, want)
	}
	if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool([]*x509.Certificate{issuer.intermediate.certificate})}); err != nil {
		t.Errorf("peers cannot verify the chain: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, testr.New(t)) }()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for renewed := first; renewed == first; renewed, _, _ = s.TLS() {
		select {
		case <-deadline:
			t.Fatal("the certificate was not renewed")
		case <-tick.C:
		}
	}
	cancel()
	must(t, <-ended)

	issuer.down.Store(true)
	if s.renew(t.Context()) == nil {
		t.Error("no error from an issuer that does not answer")
	}
	if _, _, err := s.TLS(); err != nil {
		t.Errorf("the last certificate is gone: %v", err)
	}
	if _, err := NewServing(t.Context(), issuer, "outrigger-system", trustDomain, time.Hour); err == nil {
		t.Error("started without a certificate")
	}
}
