package xds_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// hold makes n requests that stay at the application.
func (m *market) hold(t *testing.T, n int, path string) (done func() []int) {
	t.Helper()
	before := m.one.count(path)
	codes := make(chan int, n)
	for range n {
		go func() {
			r, _ := try(t, m.app(t), "GET", "http://10.96.0.1"+path)
			codes <- r.code
		}()
	}
	envoytest.Eventually(t, func() error {
		if got := m.one.count(path) - before; got != n {
			return fmt.Errorf("%d of %d requests are at the application", got, n)
		}
		return nil
	})
	return func() []int {
		m.one.release()
		var out []int
		for range n {
			out = append(out, <-codes)
		}
		return out
	}
}

func (m *market) maxRequests(t *testing.T) {
	apply(t, m.caller, m.traffic(mesh.Traffic{Pool: mesh.Pool{MaxRequests: 2}}))
	done := m.hold(t, 2, "/hold/requests")
	if got := m.get(t, "/"); got.code != 503 {
		t.Errorf("the third request at a time got %d, want 503", got.code)
	}
	envoytest.Eventually(t, func() error {
		if !strings.Contains(m.caller.Log(), `"flags":"UO"`) {
			return errors.New("the access log does not say that a limit was met")
		}
		return nil
	})
	if got := done(); !slices.Equal(got, []int{200, 200}) {
		t.Errorf("the first two got %v", got)
	}
	if got := m.get(t, "/"); got.code != 200 {
		t.Errorf("the next request got %d", got.code)
	}
}

func (m *market) maxConnections(t *testing.T) {
	apply(t, m.caller, m.traffic(mesh.Traffic{Pool: mesh.Pool{MaxConnections: 2}}))
	done := m.hold(t, 2, "/hold/connections")
	// Two more may wait for a connection; the threads of Envoy have pools of their
	// own, each of which may open a first connection in any case.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	codes := make(chan int, 20)
	for range cap(codes) {
		go func() {
			request, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://10.96.0.1/hold/more", nil)
			resp, err := m.app(t).Do(request)
			if err != nil {
				codes <- 0
				return
			}
			_ = resp.Body.Close()
			codes <- resp.StatusCode
		}()
	}
	for range cap(codes) - 4 {
		if got := <-codes; got != 503 {
			t.Errorf("a request beyond the limit got %d, want 503", got)
		}
	}
	if got := m.one.count("/hold/more"); got > 2 {
		t.Errorf("%d requests beyond the limit reached the application", got)
	}
	stop()
	if got := done(); !slices.Equal(got, []int{200, 200}) {
		t.Errorf("the first two got %v", got)
	}
}

func (m *market) maxConnectionsOfTCP(t *testing.T) {
	apply(t, m.caller, m.traffic(mesh.Traffic{Pool: mesh.Pool{MaxConnections: 1}}))
	first, err := m.client.Dial(t.Context(), "tcp", "10.96.0.2:3306")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	if got, err := line(first); got != "db" {
		t.Fatalf("the first connection got %q, %v", got, err)
	}
	if got, err := m.banner(t.Context(), "10.96.0.2:3306"); got != "" || err == nil {
		t.Errorf("the second connection got %q, %v; want its end", got, err)
	}
	_ = first.Close()
	envoytest.Eventually(t, func() error {
		if got, err := m.banner(t.Context(), "10.96.0.2:3306"); got != "db" {
			return fmt.Errorf("when the first is gone, the next got %q, %w", got, err)
		}
		return nil
	})
}

func (m *market) outlier(t *testing.T) {
	tr := mesh.Traffic{Pool: mesh.Pool{Outlier: mesh.Outlier{ConsecutiveErrors: 3, EjectionTime: time.Hour}, LoadBalancer: mesh.LoadBalancer{Policy: mesh.RoundRobin}}}
	apply(t, m.caller, m.traffic(tr, endpoint("10.1.0.2:8080", store), endpoint("10.1.0.2:8081", store)))
	// Both fail as long as they are asked to; only one of two is left out.
	for range 40 {
		if got := m.get(t, "/status/500"); got.code != 500 {
			t.Fatalf("got %d %s: an endpoint must be left", got.code, got.body)
		}
	}
	one, two := m.one.count("/status/500"), m.two.count("/status/500")
	for range 40 {
		m.get(t, "/")
	}
	alone := "one"
	if two > one {
		alone = "two"
	}
	for range 40 {
		if got := m.get(t, "/"); got.body != alone {
			t.Fatalf("%s answered, which had failed %d and %d times (one, two)", got.body, one, two)
		}
	}
	if less := min(one, two); less > 10 {
		t.Errorf("the endpoint that was left out got %d failures first; want about 3", less)
	}
	left := map[string]mesh.Endpoint{"one": endpoint("10.1.0.2:8081", store), "two": endpoint("10.1.0.2:8080", store)}[alone]
	apply(t, m.caller, m.traffic(tr, left)) // the other one is gone
	for range 10 {
		if got := m.get(t, "/status/500"); got.code != 500 {
			t.Fatalf("the only endpoint was left out: %d", got.code)
		}
	}
}

// outlierOfTCP leaves out an endpoint to which no connection can be made.
func (m *market) outlierOfTCP(t *testing.T) {
	v := m.traffic(mesh.Traffic{Pool: mesh.Pool{Outlier: mesh.Outlier{ConsecutiveErrors: 2, EjectionTime: time.Hour}}})
	for _, b := range v.Outbound.Bundles {
		if b.Protocol == mesh.TCP {
			b.Endpoints = append(b.Endpoints, endpoint("10.1.9.9:9", mesh.Identity{}))
		}
	}
	apply(t, m.caller, v)
	envoytest.Eventually(t, func() error {
		if got, err := m.banner(t.Context(), "10.96.0.2:3306"); got != "db" {
			return fmt.Errorf("got %q, %w", got, err)
		}
		return m.ejected(t, "books/db:3306", "10.1.9.9")
	})
}

// ejected returns nil when Envoy leaves out exactly that host of a cluster.
func (m *market) ejected(t *testing.T, cluster, want string) error {
	t.Helper()
	text, err := m.caller.Get(t.Context(), "/clusters?format=json")
	if err != nil {
		return err
	}
	var all struct {
		ClusterStatuses []struct {
			Name         string `json:"name"`
			HostStatuses []struct {
				Address struct {
					SocketAddress struct {
						Address string `json:"address"`
					} `json:"socket_address"`
				} `json:"address"`
				HealthStatus struct {
					FailedOutlierCheck bool `json:"failed_outlier_check"`
				} `json:"health_status"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return err
	}
	for _, c := range all.ClusterStatuses {
		for _, h := range c.HostStatuses {
			if a := h.Address.SocketAddress.Address; c.Name == cluster && h.HealthStatus.FailedOutlierCheck != (a == want) {
				return fmt.Errorf("%s of %s is left out: %t", a, cluster, h.HealthStatus.FailedOutlierCheck)
			}
		}
	}
	return nil
}
