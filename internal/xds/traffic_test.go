package xds_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// An app does what its path says, and counts.
type app struct {
	name  string
	mu    sync.Mutex
	calls map[string]int // by path
	held  chan struct{}  // closed to answer what is held
}

func serveApp(t *testing.T, h *envoytest.Host, address, name string) *app {
	t.Helper()
	a := &app{name: name, calls: map[string]int{}, held: make(chan struct{})}
	srv := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	l := h.Listen(t, address)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return a
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.calls[r.URL.Path]++
	held := a.held
	a.mu.Unlock()
	kind, arg, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch kind {
	case "status":
		code, _ := strconv.Atoi(arg)
		w.WriteHeader(code)
	case "grpc":
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", arg)
	case "hang":
		<-r.Context().Done()
	case "hold":
		select {
		case <-held:
		case <-r.Context().Done():
		}
	case "silent": // after its first line
		_, _ = fmt.Fprintln(w, a.name)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case "talking": // a line every 100 ms
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for n, _ := strconv.Atoi(arg); n > 0; n-- {
			<-tick.C
			_, _ = fmt.Fprintln(w, a.name)
			_ = http.NewResponseController(w).Flush()
		}
	default:
		_, _ = fmt.Fprint(w, a.name)
	}
}

// count returns how often a path was asked for.
func (a *app) count(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[path]
}

// release answers what is held.
func (a *app) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.held)
	a.held = make(chan struct{})
}

// A market is a world whose server's pod has two applications and a database.
type market struct {
	*world
	one, two *app
	http     *http.Client
}

const webPort = 80

func newMarket(t *testing.T) *market {
	t.Helper()
	m := &market{world: newWorld(t)}
	m.one, m.two = serveApp(t, m.host, ":8080", "one"), serveApp(t, m.host, ":8081", "two")
	serveBanner(t, m.host, ":3306", "db")
	serveBanner(t, m.host, ":3307", "auto first")
	apply(t, m.envoy, m.view(everyone(3306, mesh.TCP), everyone(3307, mesh.Auto), everyone(8080, mesh.HTTP), everyone(8081, mesh.HTTP)))
	m.http = m.app(t)
	return m
}

// traffic is the caller's View when every Service is called as tr says.
func (m *market) traffic(tr mesh.Traffic, endpoints ...mesh.Endpoint) mesh.View {
	if endpoints == nil {
		endpoints = []mesh.Endpoint{endpoint("10.1.0.2:8080", store)}
	}
	web := mesh.Bundle{Name: port("books", "web", webPort), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: []mesh.Identity{store}, Endpoints: endpoints}
	db := mesh.Bundle{Name: port("books", "db", 3306), Protocol: mesh.TCP, Addresses: addrs("10.96.0.2"), Identities: web.Identities, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:3306", store)}}
	auto := mesh.Bundle{Name: port("books", "auto", 3307), Addresses: addrs("10.96.0.3"), Identities: web.Identities, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:3307", store)}}
	headless := mesh.Bundle{Name: port("books", "headless", 8081), Headless: true, Identities: web.Identities, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8081", store)}}
	list := []mesh.Bundle{auto, db, headless, web}
	for i := range list {
		b := &list[i]
		b.Pool, b.Routes = tr.Pool, all(b.Name)
		if !b.Protocol.IsHTTP() {
			b.IdleTimeout = tr.IdleTimeout
		}
		r := &b.Routes[0]
		r.Timeout, r.IdleTimeout, r.Retry = tr.Timeout, tr.IdleTimeout, tr.Retry
		if h := tr.Pool.LoadBalancer.Header; h != "" {
			r.HashHeaders = []string{h}
		}
	}
	return m.calls(false, list...)
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	t.Run("Timeout", m.timeout)
	t.Run("Retry", m.retry)
	t.Run("PerTryTimeout", m.perTryTimeout)
	t.Run("IdleStream", m.idleStream)
	t.Run("IdleConnection", m.idleConnection)
	t.Run("MaxRequests", m.maxRequests)
	t.Run("MaxConnections", m.maxConnections)
	t.Run("MaxConnectionsOfTCP", m.maxConnectionsOfTCP)
	t.Run("Outlier", m.outlier)
	t.Run("OutlierOfTCP", m.outlierOfTCP)
	t.Run("RingHash", m.ringHash)
	t.Run("NoListenerChanges", m.noListenerChanges)
}

func (m *market) get(t *testing.T, path string, headers ...string) reply {
	t.Helper()
	return do(t, m.http, "GET", "http://10.96.0.1"+path, headers...)
}

func (m *market) timeout(t *testing.T) {
	for reason, url := range map[string]string{"a service": "http://10.96.0.1/hang/timeout", "a headless one": "http://10.1.0.2:8081/hang/timeout"} {
		apply(t, m.caller, m.traffic(mesh.Traffic{Timeout: 300 * time.Millisecond}))
		if got := do(t, m.http, "GET", url); got.code != 504 {
			t.Errorf("%s: a request that takes too long got %d %s, want 504", reason, got.code, got.body)
		}
	}
	if got := m.one.count("/hang/timeout") + m.two.count("/hang/timeout"); got != 2 {
		t.Errorf("two requests that took too long were made %d times", got)
	}
}

func (m *market) retry(t *testing.T) {
	cases := map[string]struct {
		reason string
		retry  mesh.Retry
		path   string
		code   int
		want   int // tries
	}{
		"Default":       {"what reached the application is not tried again", mesh.Retry{}, "/status/500", 500, 1},
		"Word":          {"the first and four more", mesh.Retry{On: []string{"5xx"}, Attempts: 4}, "/status/501", 501, 5},
		"DefaultNumber": {"three more where nothing says how many", mesh.Retry{On: []string{"5xx"}}, "/status/502", 502, 4},
		"OneMore":       {"the least there is", mesh.Retry{On: []string{"5xx"}, Attempts: 1}, "/status/503", 503, 2},
		"Code":          {"only this one", mesh.Retry{On: []string{"409", "425"}, Attempts: 2}, "/status/425", 425, 3},
		"OtherCode":     {"none of these", mesh.Retry{On: []string{"409", "425"}, Attempts: 2}, "/status/504", 504, 1},
		"GRPC":          {"a status of gRPC's", mesh.Retry{On: []string{"unavailable"}, Attempts: 2}, "/grpc/14", 200, 3},
		"OtherGRPC":     {"another status", mesh.Retry{On: []string{"cancelled"}, Attempts: 2}, "/grpc/5", 200, 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			apply(t, m.caller, m.traffic(mesh.Traffic{Retry: c.retry}))
			if got := m.get(t, c.path); got.code != c.code {
				t.Errorf("%s: got %d, want %d", c.reason, got.code, c.code)
			}
			if got := m.one.count(c.path); got != c.want {
				t.Errorf("%s: tried %d times, want %d", c.reason, got, c.want)
			}
		})
	}
}

func (m *market) perTryTimeout(t *testing.T) {
	apply(t, m.caller, m.traffic(mesh.Traffic{Retry: mesh.Retry{On: []string{"gateway-error"}, Attempts: 2, PerTryTimeout: 200 * time.Millisecond}}))
	if got := m.get(t, "/hang/try"); got.code != 504 || m.one.count("/hang/try") != 3 {
		t.Errorf("got %d after %d tries; want 504 after 3", got.code, m.one.count("/hang/try"))
	}
}

func (m *market) idleStream(t *testing.T) {
	apply(t, m.caller, m.traffic(mesh.Traffic{IdleTimeout: 400 * time.Millisecond}))
	if r, err := try(t, m.http, "GET", "http://10.96.0.1/silent"); r.body != "one\n" || err == nil {
		t.Errorf("a silent stream ended with %q, %v; want one line and an error", r.body, err)
	}
	if r := m.get(t, "/talking/8"); r.body != strings.Repeat("one\n", 8) {
		t.Errorf("a stream that is never idle for long got %q", r.body)
	}
}

func (m *market) idleConnection(t *testing.T) {
	for _, address := range []string{"10.96.0.2:3306", "10.96.0.3:3307"} {
		apply(t, m.caller, m.traffic(mesh.Traffic{}))
		old, err := m.client.Dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := line(old); err != nil {
			t.Fatal(err)
		}
		apply(t, m.caller, m.traffic(mesh.Traffic{IdleTimeout: 400 * time.Millisecond}))
		// Secrets reach the threads of Envoy in their own time.
		envoytest.Eventually(t, func() error {
			c, err := m.client.Dial(t.Context(), "tcp", address)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			if _, err := line(c); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !isReset(err) {
				return fmt.Errorf("%s: an idle connection: %w; want its end", address, err)
			}
			return nil
		})
		_, _ = fmt.Fprintln(old, "still there")
		if got, err := line(old); got != "still there" {
			t.Errorf("%s: the connection from before got %q, %v", address, got, err)
		}
	}
}

func (m *market) ringHash(t *testing.T) {
	tr := mesh.Traffic{Pool: mesh.Pool{LoadBalancer: mesh.LoadBalancer{Policy: mesh.RingHash, Header: "x-user"}}}
	apply(t, m.caller, m.traffic(tr, endpoint("10.1.0.2:8080", store), endpoint("10.1.0.2:8081", store)))
	seen := map[string]int{}
	for user := range 20 {
		name := fmt.Sprintf("user-%d", user)
		first := m.get(t, "/", "X-User", name).body
		seen[first]++
		for range 10 {
			if got := m.get(t, "/", "X-User", name).body; got != first {
				t.Fatalf("%s went to %s and to %s", name, first, got)
			}
		}
	}
	if seen["one"] == 0 || seen["two"] == 0 {
		t.Errorf("20 users went to %v", seen)
	}
}

// noListenerChanges sets each of the settings alone, and all of them.
func (m *market) noListenerChanges(t *testing.T) {
	const changes = "/stats?filter=listener_manager.listener_(modified|in_place_updated|added|removed)"
	listeners := func(s *xds.Set) map[string]string {
		out := map[string]string{}
		for r := range s.All(xds.Listener) {
			out[r.Name] = r.Version
		}
		return out
	}
	want := listeners(apply(t, m.caller, m.traffic(mesh.Traffic{})))
	before, _ := m.caller.Get(t.Context(), changes)
	whole := mesh.Traffic{
		Timeout: time.Second, IdleTimeout: time.Second, Retry: mesh.Retry{On: []string{"5xx"}, Attempts: 2, PerTryTimeout: time.Second},
		Pool: mesh.Pool{
			MaxConnections: 10, MaxRequests: 10, Outlier: mesh.Outlier{ConsecutiveErrors: 1, Interval: time.Second, EjectionTime: time.Second},
			LoadBalancer: mesh.LoadBalancer{Policy: mesh.RingHash, Header: ":authority"},
		},
	}
	for name, tr := range map[string]mesh.Traffic{
		"timeout": {Timeout: whole.Timeout}, "idle timeout": {IdleTimeout: whole.IdleTimeout}, "retries": {Retry: whole.Retry},
		"limits":   {Pool: mesh.Pool{MaxConnections: 10, MaxRequests: 10}},
		"outliers": {Pool: mesh.Pool{Outlier: whole.Pool.Outlier}}, "load balancer": {Pool: mesh.Pool{LoadBalancer: whole.Pool.LoadBalancer}},
		"all of them": whole,
	} {
		got := listeners(apply(t, m.caller, m.traffic(tr)))
		for l := range want {
			if got[l] != want[l] {
				t.Errorf("%s: listener %s changed", name, l)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d listeners, %d before", name, len(got), len(want))
		}
	}
	if after, _ := m.caller.Get(t.Context(), changes); after != before {
		t.Errorf("a listener changed: before\n%safter\n%s", before, after)
	}
	scanned := bufio.NewScanner(strings.NewReader(before))
	if !scanned.Scan() {
		t.Error("Envoy counts no changes of listeners")
	}
}
