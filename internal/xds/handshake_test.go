package xds_test

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestHandshakesOfStrangers has clients on the network that come to a port of a
// pod by themselves, with and without certificates, old TLS and wrong roots.
func TestHandshakesOfStrangers(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "app")
	apply(t, s.envoy, s.view(mesh.InboundPort{Port: 8080, Mode: mesh.Permissive, Protocol: mesh.HTTP}))

	other := envoytest.NewCA(t)
	member, foreign := certificate(t, s.ca, buyer.URI(trustDomain)), certificate(t, other, buyer.URI(trustDomain))
	cases := map[string]struct {
		reason string
		change func(*tls.Config)
		in     bool
	}{
		"Member":        {reason: "A pod of the mesh is let in.", in: true, change: func(*tls.Config) {}},
		"NoCertificate": {reason: "Without an identity there is no way in.", change: func(c *tls.Config) { c.Certificates = nil }},
		"TLS12":         {reason: "The mesh speaks TLS 1.3 only, so nobody can talk it down.", change: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
		"OtherRoot":     {reason: "A certificate of a root of one's own is worth nothing.", change: func(c *tls.Config) { c.Certificates = []tls.Certificate{foreign} }},
		"OtherDomain": {reason: "Nor is one of the mesh's root for another trust domain.", change: func(c *tls.Config) {
			c.Certificates = []tls.Certificate{certificate(t, s.ca, "spiffe://elsewhere/ns/books/sa/buyer")}
		}},
		"TwoNames": {reason: "A certificate that names the trust domain somewhere is not a name in it.", change: func(c *tls.Config) {
			c.Certificates = []tls.Certificate{certificate(t, s.ca, "spiffe://elsewhere/spiffe://cluster.local/ns/books/sa/buyer")}
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			raw, err := s.peer.Dial(t.Context(), "tcp", "10.1.0.2:8080")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			config := &tls.Config{
				Certificates: []tls.Certificate{member}, ServerName: "8080.store.books.outrigger", NextProtos: []string{"http/1.1"},
				InsecureSkipVerify: true, // the client is the stranger here
			}
			tc.change(config)
			c := tls.Client(raw, config)
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: store\r\nConnection: close\r\n\r\n")
			answer := make([]byte, 64)
			n := 0
			if err == nil {
				// With TLS 1.3 a client learns when it reads that it was refused.
				n, err = c.Read(answer)
			}
			if got := strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200"); got != tc.in {
				t.Errorf("%s\ngot %q, %v", tc.reason, answer[:n], err)
			}
			if state := c.ConnectionState(); tc.in && (state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768) {
				t.Errorf("TLS %x with key exchange %s; want 1.3 with X25519MLKEM768", state.Version, state.CurveID)
			}
		})
	}
}

// TestOldTLSWhereItIsAllowed has a client that knows TLS 1.2 only, and one of today,
// which must not be talked down.
func TestOldTLSWhereItIsAllowed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "app")
	view := s.view(mesh.InboundPort{Port: 8080, Mode: mesh.Permissive, Protocol: mesh.HTTP})
	inbound := *view.Inbound
	inbound.OldTLS = true
	view.Inbound = &inbound
	apply(t, s.envoy, view)
	for want, most := range map[uint16]uint16{tls.VersionTLS12: tls.VersionTLS12, tls.VersionTLS13: tls.VersionTLS13} {
		raw, err := s.peer.Dial(t.Context(), "tcp", "10.1.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{
			Certificates: []tls.Certificate{certificate(t, s.ca, buyer.URI(trustDomain))}, ServerName: "8080.store.books.outrigger",
			MaxVersion: most, InsecureSkipVerify: true, // the client is the stranger here
		})
		if err := c.HandshakeContext(t.Context()); err != nil || c.ConnectionState().Version != want {
			t.Errorf("a client of %s gets %s, %v", tls.VersionName(most), tls.VersionName(c.ConnectionState().Version), err)
		}
		c.Close()
		raw, err = s.peer.Dial(t.Context(), "tcp", "10.1.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		stranger := tls.Client(raw, &tls.Config{ServerName: "8080.store.books.outrigger", MaxVersion: most, InsecureSkipVerify: true})
		_ = stranger.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = fmt.Fprint(stranger, "GET / HTTP/1.1\r\nHost: store\r\n\r\n")
		if err == nil {
			_, err = stranger.Read(make([]byte, 1))
		}
		if err == nil {
			t.Errorf("a client of %s without a certificate is let in", tls.VersionName(most))
		}
		stranger.Close()
	}
}

func certificate(t *testing.T, ca *envoytest.CA, uri string) tls.Certificate {
	t.Helper()
	chain, key := ca.Sign(t, uri)
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
