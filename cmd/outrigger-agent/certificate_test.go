package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// TestRenewal has certificates of a few seconds, a token that is replaced, and a
// control plane that goes away.
func TestRenewal(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.lifetime = 6 * time.Second
	stop := w.serve()
	s := w.start("", nil)
	s.ready()
	first := w.serials()
	if len(first) != 1 {
		t.Fatalf("Envoy has certificates %q; want one", first)
	}

	// From now on only the new token is good.
	w.mu.Lock()
	w.token = "two"
	w.mu.Unlock()
	s.logs("token not accepted")
	w.write("token", "two\n")
	w.mu.Lock()
	w.lifetime = time.Hour
	w.mu.Unlock()
	s.eventually("Envoy has a new certificate", func() error {
		if now := w.serials(); len(now) != 1 || now[0] == first[0] {
			return fmt.Errorf("it has %q, and had %q", now, first)
		}
		return nil
	})

	stop()
	s.ready()
	if code, text, err := s.get(15003, "/"); code != http.StatusOK {
		t.Errorf("without control plane: got %d %q %v; want traffic to flow on", code, text, err)
	}
}

// TestExpiry holds that a sidecar whose certificate has ended is not ready, and
// is ready again when it gets another.
func TestExpiry(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.lifetime = 4 * time.Second
	stop := w.serve()
	s := w.start("", nil)
	s.ready()
	stop()
	s.eventually("the sidecar is not ready", func() error {
		if code, text, err := s.get(15020, "/ready"); code != http.StatusServiceUnavailable || !strings.Contains(text, "the certificate ended at") {
			return fmt.Errorf("%d %s %w", code, text, err)
		}
		return nil
	})
	w.serve()
	s.ready()
}

// serials are those of the certificates that Envoy uses for itself, at one end or at
// several.
func (w *world) serials() []string {
	out, err := w.commandOf("", "admin", "GET", "/certs").Output()
	if err != nil {
		return nil
	}
	var dump struct {
		Certificates []struct {
			CertChain []struct {
				SerialNumber string `json:"serial_number"`
			} `json:"cert_chain"`
		}
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		w.t.Errorf("Envoy's certificates: %v\n%s", err, out)
	}
	var serials []string
	for _, c := range dump.Certificates {
		for _, leaf := range c.CertChain {
			serials = append(serials, leaf.SerialNumber)
		}
	}
	slices.Sort(serials)
	return slices.Compact(serials)
}

func TestWrongControlPlane(t *testing.T) {
	w := newWorld(t)
	w.id = "spiffe://cluster.local/ns/bookstore/sa/thief" // a workload's certificate, of the same root
	w.serve()
	s := w.start("", nil)
	s.logs("want exactly " + controlPlaneID)
	w.mu.Lock()
	asked := w.asked
	w.mu.Unlock()
	if asked != 0 {
		t.Error("the token was sent to somebody who is not the control plane")
	}
	if err := s.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("told to end before there was a certificate: got status %d; want 0", code)
	}
}

// TestBadCertificate has a control plane that signs something else than what was
// asked for. Envoy must not be started with it.
func TestBadCertificate(t *testing.T) {
	stranger := newAuthority(t)
	uri, err := url.Parse("spiffe://cluster.local/ns/bookstore/sa/thief")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		tamper func(*x509.CertificateRequest, *x509.Certificate, *signing.SignResponse)
		want   string
	}{
		"another key": {func(csr *x509.CertificateRequest, _ *x509.Certificate, _ *signing.SignResponse) {
			csr.PublicKey = stranger.key.Public()
		}, "for another key"},
		"another identity": {func(_ *x509.CertificateRequest, leaf *x509.Certificate, _ *signing.SignResponse) {
			leaf.URIs = []*url.URL{uri}
		}, "the certificate is for [spiffe://cluster.local/ns/bookstore/sa/thief]"},
		"one name more": {func(_ *x509.CertificateRequest, leaf *x509.Certificate, _ *signing.SignResponse) {
			leaf.DNSNames = append(leaf.DNSNames, "kubernetes.default")
		}, "kubernetes.default"},
		"ended": {func(_ *x509.CertificateRequest, leaf *x509.Certificate, _ *signing.SignResponse) {
			leaf.NotAfter = time.Now().Add(-time.Minute)
		}, "expired"},
		"nonsense": {func(_ *x509.CertificateRequest, _ *x509.Certificate, r *signing.SignResponse) {
			r.Chain = [][]byte{[]byte("nonsense")}
		}, "parse the chain"},
		"bad roots": {func(_ *x509.CertificateRequest, _ *x509.Certificate, r *signing.SignResponse) {
			r.Roots = [][]byte{[]byte("nonsense")}
		}, "parse the roots"},
		"another root": {func(csr *x509.CertificateRequest, leaf *x509.Certificate, r *signing.SignResponse) {
			if der, err := stranger.sign(csr.PublicKey, leaf); err == nil {
				r.Chain = [][]byte{der}
			}
		}, "unknown authority"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.tamper = test.tamper
			w.serve()
			s := w.start("", nil)
			s.logs(test.want)
			if strings.Contains(s.log.String(), "envoy started") {
				t.Error("Envoy was started all the same")
			}
		})
	}
}

// TestRoot holds that the trust file is not taken for what it is not.
func TestRoot(t *testing.T) {
	w := newWorld(t)
	other := newAuthority(t)
	w.write("ca.crt", string(other.pem()))
	w.serve()
	s := w.start("", nil)
	s.logs("certificate signed by unknown authority")
	w.write("ca.crt", "nothing\n")
	s.logs("there is no certificate in it")
	both := append(other.pem(), w.root.pem()...)
	w.app = "127.0.0.1:1"
	w.write("ca.crt", string(both))
	s.ready()
	trust, err := os.ReadFile(filepath.Join(w.dir, "state/sds/trust.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []authority{other, w.root} {
		if !rootIn(t, trust, a.certificate) {
			t.Errorf("Envoy does not trust root %s", a.certificate.Subject)
		}
	}
}

func rootIn(t *testing.T, secret []byte, want *x509.Certificate) bool {
	t.Helper()
	var file struct {
		Resources []struct {
			Context struct {
				CA struct {
					Text string `json:"inline_string"`
				} `json:"trusted_ca"`
			} `json:"validation_context"`
		}
	}
	if err := json.Unmarshal(secret, &file); err != nil {
		t.Fatal(err)
	}
	for rest := []byte(file.Resources[0].Context.CA.Text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		if bytes.Equal(block.Bytes, want.Raw) {
			return true
		}
	}
}
