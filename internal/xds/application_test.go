package xds_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestWhereApplicationsListen holds that an application is found at the pod's own
// address and at localhost, in this order, and that no other port of localhost is.
func TestWhereApplicationsListen(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	at := map[string]uint16{"10.1.0.2": 8080, "127.0.0.1": 8081, "[::]": 8082, "[fd02::2]": 8083, "[::1]": 8084}
	var ports []mesh.InboundPort
	for address, port := range at {
		serveHTTP(t, s.host, fmt.Sprintf("%s:%d", address, port), address)
		serveBanner(t, s.host, fmt.Sprintf("%s:%d", address, port+1000), address)
		ports = append(ports, everyone(port, mesh.HTTP), everyone(port+1000, mesh.TCP))
	}
	serveHTTP(t, s.host, "10.1.0.2:8090", "pod")
	serveHTTP(t, s.host, "127.0.0.1:8090", "localhost")
	serveHTTP(t, s.host, "127.0.0.1:9901", "admin")
	ports = append(ports, everyone(8090, mesh.HTTP), everyone(8099, mesh.HTTP))
	apply(t, s.envoy, s.view(ports...))

	for address, port := range at {
		for i := range 3 {
			if got := do(t, s.client(t, buyer, int(port)), "POST", "https://store/"); got.code != 200 || !strings.HasPrefix(got.body, address+" ") {
				t.Errorf("HTTP at %s, connection %d: %d %s", address, i, got.code, got.body)
			}
			c, err := s.dial(t.Context(), t, buyer, int(port)+1000)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := line(c); got != address {
				t.Errorf("TCP at %s, connection %d: %q, %v", address, i, got, err)
			}
		}
	}
	if got := do(t, s.client(t, buyer, 8090), "GET", "https://store/"); !strings.HasPrefix(got.body, "pod ") {
		t.Errorf("two applications at one port: %d %s; want that at the pod's address", got.code, got.body)
	}
	if got := do(t, s.client(t, buyer, 8099), "POST", "https://store/"); got.code != 503 || got.header.Get("X-Outrigger-Unsent") != "1" {
		t.Errorf("nothing listens: %d with %v; want 503 and the word that it may be repeated", got.code, got.header)
	}
	if c, err := s.dial(t.Context(), t, buyer, 9901); err == nil {
		got, err := line(c)
		t.Errorf("a port of localhost that no Service leads to: %q, %v", got, err)
	}
	// An application that comes back elsewhere is found there.
	later := s.client(t, buyer, 8099)
	serveHTTP(t, s.host, "127.0.0.1:8099", "late")
	envoytest.Eventually(t, func() error {
		if got := do(t, later, "GET", "https://store/"); !strings.HasPrefix(got.body, "late ") {
			return fmt.Errorf("got %d %s", got.code, got.body)
		}
		return nil
	})
}
