package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
)

// TestEnvoyKeepsTheConstraints shows a real Envoy, whose verification is not
// Go's, leaves of constrained intermediates: below a root of ours, and below the
// RSA intermediate of a user's.
func TestEnvoyKeepsTheConstraints(t *testing.T) {
	root := userRoot(t, rsaKey(t, 2048), nil)
	lower := root.below(t, rsaKey(t, 2048), nil)
	for name, ca := range map[string]*CA{
		"Ours": testCA(t),
		"Users": caOf(t, map[string][]byte{
			"tls.crt": encodeCertificates(lower.certificate, root.certificate), "tls.key": keyText(t, blockKey, lower.key),
		}),
	} {
		t.Run(name, func(t *testing.T) {
			socket := envoyThatVerifies(t, ca)
			must(t, call(t, socket, ca, parseURL(t, "spiffe://cluster.local/ns/shop/sa/cart"), "cart.shop.cluster.local"))
			if call(t, socket, ca, parseURL(t, "spiffe://example.com/ns/shop/sa/cart"), "") == nil {
				t.Error("Envoy accepts a name outside of the trust domain")
			}
			if call(t, socket, ca, parseURL(t, "spiffe://cluster.local/ns/shop/sa/cart"), "kubernetes.default.svc") == nil {
				t.Error("Envoy accepts a DNS name outside of the trust domain")
			}
		})
	}
}

// envoyThatVerifies starts an Envoy that echoes clients whose certificate
// leads to the CA's roots, and returns the path of its socket.
func envoyThatVerifies(t *testing.T, ca *CA) string {
	t.Helper()
	binary, err := envoybin.EnvoyBinary(t.Context())
	must(t, err)
	dir, err := os.MkdirTemp("", "envoy") //nolint:usetesting // its path must be short: it holds a socket
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	key, request, template, err := ownRequest("outrigger-system", trustDomain, time.Hour)
	must(t, err)
	chain, err := issue(t.Context(), ca, request, template)
	must(t, err)
	keyPEM, err := encodeKey(key)
	must(t, err)
	socket := filepath.Join(dir, "envoy.sock")
	inline := func(text []byte) any { return map[string]any{"inline_string": string(text)} }
	config, err := json.Marshal(map[string]any{"static_resources": map[string]any{"listeners": []any{map[string]any{
		"address": map[string]any{"pipe": map[string]any{"path": socket}},
		"filter_chains": []any{map[string]any{
			"filters": []any{map[string]any{"name": "echo", "typed_config": map[string]any{"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}}},
			"transport_socket": map[string]any{"name": "tls", "typed_config": map[string]any{
				"@type":                      "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
				"require_client_certificate": true,
				"common_tls_context": map[string]any{
					"tls_certificates":   []any{map[string]any{"certificate_chain": inline(encodeCertificates(chain...)), "private_key": inline(keyPEM)}},
					"validation_context": map[string]any{"trusted_ca": inline(encodeCertificates(ca.Roots()...))},
				},
			}},
		}},
	}}}})
	must(t, err)
	file := filepath.Join(dir, "envoy.json")
	must(t, os.WriteFile(file, config, 0o600))
	ctx, stop := context.WithCancel(t.Context())
	log := &strings.Builder{}
	cmd := exec.CommandContext(ctx, binary, "-c", file, "--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log)
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("Envoy does not listen: %v", err)
		}
		<-tick.C
	}
}

// call connects with a leaf of the CA that has these names, and returns nil if
// Envoy answered.
func call(t *testing.T, socket string, ca *CA, uri *url.URL, dns string) error {
	t.Helper()
	key := p256(t)
	leaf := leafTemplate([]*url.URL{uri})
	if dns != "" {
		leaf.DNSNames = []string{dns}
	}
	leaf.PublicKey = key.Public()
	chain := ca.sign(t, leaf)
	conn, err := net.Dial("unix", socket)
	must(t, err)
	client := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // what Envoy verifies is the test
		Certificates:       []tls.Certificate{{Certificate: raw(chain), PrivateKey: key}},
	})
	defer client.Close()
	must(t, client.SetDeadline(time.Now().Add(10*time.Second)))
	if err := client.HandshakeContext(t.Context()); err != nil {
		return err
	}
	// With TLS 1.3 a refusal comes after the handshake, instead of the answer.
	if _, err := client.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(client, make([]byte, len("hello")))
	return err
}

func leafTemplate(uris []*url.URL) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		URIs: append([]*url.URL(nil), uris...), NotBefore: now.Add(-backdate), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}
