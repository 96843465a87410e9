package xds_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestInboundPermissiveIsStillMutualTLS holds that a permissive traffic policy
// lets every identity of the mesh in, and nobody without one; and that leaving it
// changes no listener.
func TestInboundPermissiveIsStillMutualTLS(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "http")
	serveHTTP(t, s.host, ":8081", "auto")
	serveBanner(t, s.host, ":3306", "tcp first")
	ports := func(mode mesh.Mode) mesh.View {
		return s.view(mesh.InboundPort{Port: 3306, Protocol: mesh.TCP, Mode: mode}, mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, Mode: mode}, mesh.InboundPort{Port: 8081, Mode: mode})
	}
	apply(t, s.envoy, ports(mesh.Permissive))
	for port, want := range map[int]string{8080: "http HTTP/1.1", 8081: "auto HTTP/1.1"} {
		if got := do(t, s.client(t, thief, port), "GET", "https://store/"); !strings.HasPrefix(got.body, want) {
			t.Errorf("a member at port %d: %d %s", port, got.code, got.body)
		}
	}
	c, err := s.dial(t.Context(), t, thief, 3306)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := line(c); got != "tcp first" {
		t.Errorf("a member at port 3306: %q, %v", got, err)
	}
	for _, address := range []string{"10.1.0.2:8080", "10.1.0.2:8081", "10.1.0.2:3306"} {
		c, err := s.peer.Dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: store\r\n\r\n")
		if got, err := line(c); err == nil || got != "" {
			t.Errorf("plain text at %s was answered %q", address, got)
		}
	}
	const changes = "/stats?filter=listener_manager.listener_(modified|in_place_updated|added)"
	before, _ := s.envoy.Get(t.Context(), changes)
	apply(t, s.envoy, ports(mesh.Enforced))
	if got := do(t, s.client(t, thief, 8080), "GET", "https://store/"); got.code != http.StatusForbidden {
		t.Errorf("enforced: %d", got.code)
	}
	if after, _ := s.envoy.Get(t.Context(), changes); after != before {
		t.Errorf("the mode changed a listener: before\n%safter\n%s", before, after)
	}
}

func TestInboundPlainText(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "http")
	serveHTTP(t, s.host, "[::]:8081", "auto")
	serveBanner(t, s.host, ":8082", "auto first")
	serveBanner(t, s.host, ":3306", "tcp first")
	serveTLS(t, s, ":8443")
	permissive := func(port uint16, p mesh.Protocol) mesh.InboundPort {
		return mesh.InboundPort{Port: port, Protocol: p, Mode: mesh.Permissive, PlainText: true}
	}
	apply(t, s.envoy, s.view(permissive(3306, mesh.TCP), permissive(8080, mesh.HTTP), permissive(8081, mesh.Auto), permissive(8082, mesh.Auto), permissive(8443, mesh.HTTP)))
	plain := &http.Client{Transport: &http.Transport{DialContext: s.peer.Dial}}

	t.Run("EveryMember", func(t *testing.T) {
		for port, want := range map[int]string{8080: "http HTTP/1.1", 8081: "auto HTTP/1.1"} {
			got := do(t, s.client(t, thief, port), "GET", "https://store/")
			if !strings.HasPrefix(got.body, want) || !strings.HasSuffix(got.body, `;URI=spiffe://cluster.local/ns/books/sa/thief"`) {
				t.Errorf("port %d: %d %s", port, got.code, got.body)
			}
		}
		for port, want := range map[int]string{3306: "tcp first", 8082: "auto first"} {
			c, err := s.dial(t.Context(), t, thief, port)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := line(c); got != want {
				t.Errorf("port %d: %q, %v", port, got, err)
			}
		}
	})
	t.Run("PlainHTTP", func(t *testing.T) {
		got := do(t, plain, "GET", "http://10.1.0.2:8080/", "X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/books/sa/admin")
		if want := `http HTTP/1.1 GET / client=""`; got.body != want {
			t.Errorf("got %s, want %s: nobody may claim an identity", got.body, want)
		}
		for _, url := range []string{"http://10.1.0.2:8081/", "http://[fd02::2]:8081/"} {
			if got := do(t, plain, "GET", url); !strings.HasPrefix(got.body, "auto ") {
				t.Errorf("%s: %d %s", url, got.code, got.body)
			}
		}
	})
	t.Run("PlainServerFirst", func(t *testing.T) {
		for address, want := range map[string]string{"10.1.0.2:3306": "tcp first", "10.1.0.2:8082": "auto first"} {
			c, err := s.peer.Dial(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := line(c); got != want {
				t.Errorf("%s: %q, %v", address, got, err)
			}
		}
	})
	t.Run("TheApplicationsOwnTLS", func(t *testing.T) {
		raw, err := s.peer.Dial(t.Context(), "tcp", "10.1.0.2:8443")
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{ServerName: "store.example", InsecureSkipVerify: true})
		if got, err := line(c); got != "own" {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("OtherTrustDomain", func(t *testing.T) {
		c, err := s.dialAs(t.Context(), t, "spiffe://other.domain/ns/books/sa/buyer", 3306)
		if err == nil {
			_, err = line(c)
		}
		if err == nil {
			t.Error("a name of another trust domain was let in")
		}
	})
}

// serveTLS runs an application that speaks TLS itself.
func serveTLS(t *testing.T, s *server, address string) {
	t.Helper()
	chain, key := s.ca.Sign(t, "https://store.example")
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	l := tls.NewListener(s.host.Listen(t, address), &tls.Config{Certificates: []tls.Certificate{certificate}})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintln(c, "own")
			_ = c.Close()
		}
	}()
}

func TestOutboundFailures(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveHTTP(t, w.host, ":8080", "alive")
	serveBanner(t, w.host, ":3306", "old")
	serveBanner(t, w.host, ":3307", "new")
	apply(t, w.envoy, w.view(everyone(3306, mesh.TCP), everyone(3307, mesh.TCP), everyone(8080, mesh.HTTP), everyone(8099, mesh.HTTP)))
	http80 := mesh.Bundle{Name: port("books", "store", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: []mesh.Identity{store}}
	db := mesh.Bundle{Name: port("books", "db", 3306), Protocol: mesh.TCP, Addresses: addrs("10.96.0.2"), Identities: []mesh.Identity{store}}
	draining := endpoint("10.1.0.2:8080", store)
	draining.Draining = true

	t.Run("DeadApplication", func(t *testing.T) {
		// Behind :8099 is a proxy whose application has died, behind the last nobody.
		http80.Endpoints = []mesh.Endpoint{endpoint("10.1.0.2:8080", store), endpoint("10.1.0.2:8099", store), endpoint("10.1.9.9:8080", store)}
		apply(t, w.caller, w.calls(false, http80))
		app := w.app(t)
		for i := range 200 {
			resp, err := app.Post("http://10.96.0.1/", "text/plain", strings.NewReader("order"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Fatalf("request %d: %d", i, resp.StatusCode)
			}
		}
	})
	t.Run("Draining", func(t *testing.T) {
		http80.Endpoints = []mesh.Endpoint{draining, endpoint("10.1.0.2:8099", store)}
		apply(t, w.caller, w.calls(false, http80))
		envoytest.Eventually(t, func() error {
			if got := do(t, w.app(t), "GET", "http://10.96.0.1/"); got.code != 503 {
				return fmt.Errorf("a draining endpoint got a request while another was left: %d", got.code)
			}
			return nil
		})
		http80.Endpoints = []mesh.Endpoint{draining}
		apply(t, w.caller, w.calls(false, http80))
		envoytest.Eventually(t, func() error {
			if got := do(t, w.app(t), "GET", "http://10.96.0.1/"); got.code != 200 {
				return fmt.Errorf("the last endpoint gets nothing: %d", got.code)
			}
			return nil
		})
	})
	t.Run("NoEndpoints", func(t *testing.T) {
		http80.Endpoints = nil
		apply(t, w.caller, w.calls(false, http80, db))
		envoytest.Eventually(t, func() error {
			if got := do(t, w.app(t), "GET", "http://10.96.0.1/"); got.code != 503 {
				return fmt.Errorf("got %d", got.code)
			}
			return nil
		})
		if got, err := w.banner(t.Context(), "10.96.0.2:3306"); !errors.Is(err, io.EOF) && !isReset(err) {
			t.Errorf("TCP got %q, %v", got, err)
		}
	})
	t.Run("WeightsOfTCP", func(t *testing.T) {
		db.Endpoints = []mesh.Endpoint{endpoint("10.1.0.2:3306", store), endpoint("10.1.0.2:3307", store)}
		db.Endpoints[0].Weight, db.Endpoints[1].Weight = 90, 10
		apply(t, w.caller, w.calls(false, db))
		got := map[string]int{}
		for range 200 {
			banner, err := w.banner(t.Context(), "10.96.0.2:3306")
			if err != nil {
				t.Fatal(err)
			}
			got[banner]++
		}
		if got["new"] < 10 || got["new"] > 30 || got["old"]+got["new"] != 200 {
			t.Errorf("200 connections at 90/10 went to %v", got)
		}
	})
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && strings.Contains(op.Error(), "reset")
}
