package xds_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// A span is what one proxy told about one request.
type span struct {
	*tracev1.Span
	service string
}

func attribute(list []*commonv1.KeyValue, key string) string {
	for _, kv := range list {
		if kv.GetKey() == key {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// A collector takes spans by OTLP over gRPC.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []span
}

func serveCollector(t *testing.T, h *envoytest.Host, address string) *collector {
	t.Helper()
	c, srv := &collector{}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(srv, c)
	l := h.Listen(t, address)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return c
}

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span{s, attribute(resource.GetResource().GetAttributes(), "service.name")})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// of returns the spans of requests to a path.
func (c *collector) of(path string) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.spans), func(s span) bool {
		return !strings.HasSuffix(attribute(s.GetAttributes(), "http.url"), path)
	})
}

// wait waits until both proxies told of all requests to a path.
func (c *collector) wait(t *testing.T, path string, requests int) (clients, servers []span) {
	t.Helper()
	envoytest.Eventually(t, func() error {
		clients, servers = nil, nil
		for _, s := range c.of(path) {
			switch s.GetKind() {
			case tracev1.Span_SPAN_KIND_CLIENT:
				clients = append(clients, s)
			case tracev1.Span_SPAN_KIND_SERVER:
				servers = append(servers, s)
			default:
				return fmt.Errorf("a span of kind %s", s.GetKind())
			}
		}
		if len(clients) != requests || len(servers) != requests {
			return fmt.Errorf("%d and %d spans of %s, want %d from each proxy", len(clients), len(servers), path, requests)
		}
		return nil
	})
	return clients, servers
}

// serveHeaders runs an application that keeps the headers of the last request to
// each path.
func serveHeaders(t *testing.T, h *envoytest.Host, address string) func(path string) http.Header {
	t.Helper()
	var mu sync.Mutex
	last := map[string]http.Header{}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		last[r.URL.Path] = r.Header
	})}
	l := h.Listen(t, address)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return func(path string) http.Header {
		mu.Lock()
		defer mu.Unlock()
		return last[path]
	}
}

// under is a route for what is beneath a path.
func under(path string, s mesh.Sampling) mesh.Route {
	r := all(port("books", "web", webPort))[0]
	r.Match.Path, r.Sampling = mesh.StringMatch{Kind: mesh.Prefix, Value: path}, s
	return r
}

// A tracedWorld is a world of which a collector hears.
type tracedWorld struct {
	*world
	collector *collector
	headers   func(path string) http.Header
	http      *http.Client
}

func (w *tracedWorld) calls(routes []mesh.Route, to mesh.Collector) mesh.View {
	v := w.world.calls(false, mesh.Bundle{
		Name: port("books", "web", webPort), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: []mesh.Identity{store},
		Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8080", store)}, Routes: routes, Traced: true,
	})
	v.Outbound.Collector = &to
	return v
}

func (w *tracedWorld) serves(to mesh.Collector, ports ...mesh.InboundPort) mesh.View {
	v := w.view(ports...)
	v.Inbound.Traced, v.Outbound.Collector = true, &to
	return v
}

func TestTracing(t *testing.T) {
	t.Parallel()
	w := &tracedWorld{world: newWorld(t)}
	w.collector = serveCollector(t, w.outside, "10.1.9.9:4317")
	w.headers = serveHeaders(t, w.host, ":8080")
	w.http = w.app(t)
	outside := mesh.Collector{Host: "10.1.9.9", Port: 4317}
	web, open := everyone(8080, mesh.HTTP), mesh.InboundPort{Port: 8081, Protocol: mesh.HTTP, Mode: mesh.Permissive, PlainText: true, Sampling: mesh.Always}
	serveHeaders(t, w.host, ":8081")
	apply(t, w.envoy, w.serves(outside, web, open))
	apply(t, w.caller, w.calls([]mesh.Route{under("/all", mesh.Always), under("/half", mesh.Always/2), under("/", 0)}, outside))

	t.Run("ParentAndChild", w.parentAndChild)
	t.Run("None", w.none)
	t.Run("Some", w.some)
	t.Run("CallersDecision", w.callersDecision)
	t.Run("CallerWithoutProxy", func(t *testing.T) {
		plain := &http.Transport{DialContext: w.peer.Dial}
		t.Cleanup(plain.CloseIdleConnections)
		do(t, &http.Client{Transport: plain}, "GET", "http://10.1.0.2:8081/plain")
		envoytest.Eventually(t, func() error {
			if got := w.collector.of("/plain"); len(got) != 1 || got[0].service != "store.books" {
				return fmt.Errorf("the server's proxy told %v", got)
			}
			return nil
		})
	})
	t.Run("CollectorInTheMesh", w.collectorInTheMesh)
	t.Run("NowhereToGo", func(t *testing.T) {
		apply(t, w.caller, w.calls([]mesh.Route{under("/", mesh.Always)}, mesh.Collector{}))
		for range 20 {
			if got := do(t, w.http, "GET", "http://10.96.0.1/all/nowhere"); got.code != 200 {
				t.Fatalf("without a collector requests must go on: %d %s", got.code, got.body)
			}
		}
	})
	t.Run("NoListenerChanges", func(t *testing.T) {
		first, second := set(t, w.calls([]mesh.Route{under("/", 0)}, outside)), set(t, w.calls([]mesh.Route{under("/", 7)}, mesh.Collector{}))
		for r := range first.All(xds.Listener) {
			if got := second.Resource(xds.Listener, r.Name); got == nil || got.Version != r.Version {
				t.Errorf("another sampling and collector change listener %s", r.Name)
			}
		}
		one, other := set(t, w.serves(outside, web)), web
		other.Sampling = mesh.Always
		if a, b := one.Resource(xds.Listener, "inbound"), set(t, w.serves(outside, other)).Resource(xds.Listener, "inbound"); a.Version != b.Version {
			t.Error("another sampling changes the inbound listener")
		}
	})
}

func set(t *testing.T, v mesh.View) *xds.Set {
	t.Helper()
	out, err := xds.NewCache().Set(seal(t, v))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (w *tracedWorld) parentAndChild(t *testing.T) {
	const requests = 10
	for range requests {
		do(t, w.http, "GET", "http://10.96.0.1/all/parent?secret", "X-Request-Id", "not-a-uuid")
	}
	clients, servers := w.collector.wait(t, "/all/parent", requests)
	parents := map[string]span{}
	for _, s := range clients {
		parents[string(s.GetSpanId())] = s
		if s.service != "buyer.books" || s.GetName() != "books/web:80" || len(s.GetParentSpanId()) > 0 {
			t.Errorf("the caller's proxy told %v of %s", s, s.service)
		}
	}
	for _, s := range servers {
		parent, ok := parents[string(s.GetParentSpanId())]
		if !ok || string(parent.GetTraceId()) != string(s.GetTraceId()) || s.service != "store.books" || s.GetName() != "port 8080" {
			t.Errorf("the server's proxy told %v of %s", s, s.service)
		}
	}
	if all := fmt.Sprint(clients, servers); strings.Contains(all, "secret") {
		t.Errorf("people put secrets into queries: %s", all)
	}
	if got := w.headers("/all/parent").Get("X-Request-Id"); got != "not-a-uuid" {
		t.Errorf("the application's x-request-id became %q", got)
	}
}

func (w *tracedWorld) none(t *testing.T) {
	w.untold(t, "/none", func(path string) {
		do(t, w.http, "GET", "http://10.96.0.1"+path)
		do(t, w.http, "GET", "http://10.96.0.1"+path, "X-Client-Trace-Id", "me", "X-Envoy-Force-Trace", "true")
	})
}

// untold makes requests of which nothing may be told, then one over the same
// connections that must be.
func (w *tracedWorld) untold(t *testing.T, path string, call func(path string)) {
	t.Helper()
	for range 10 {
		call(path)
	}
	// Spans of a connection are sent in order.
	do(t, w.http, "GET", "http://10.96.0.1/all/after"+path)
	w.collector.wait(t, "/all/after"+path, 1)
	if got := slices.DeleteFunc(w.collector.of(path), func(s span) bool {
		return strings.Contains(attribute(s.GetAttributes(), "http.url"), "/all/after")
	}); len(got) > 0 {
		t.Errorf("requests that are not traced left %d spans, such as %v", len(got), got[0])
	}
}

func (w *tracedWorld) some(t *testing.T) {
	const requests = 400
	for range requests {
		do(t, w.http, "GET", "http://10.96.0.1/half")
	}
	do(t, w.http, "GET", "http://10.96.0.1/all/after/half")
	w.collector.wait(t, "/all/after/half", 1)
	told := slices.DeleteFunc(w.collector.of("/half"), func(s span) bool {
		return strings.Contains(attribute(s.GetAttributes(), "http.url"), "/all/after")
	})
	clients := slices.DeleteFunc(slices.Clone(told), func(s span) bool { return s.GetKind() != tracev1.Span_SPAN_KIND_CLIENT })
	if n := len(clients); n < 140 || n > 260 || len(told) != 2*n {
		t.Errorf("of %d requests at 50 %%, the caller's proxy told %d, both together %d", requests, n, len(told))
	}
}

func (w *tracedWorld) callersDecision(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	do(t, w.http, "GET", "http://10.96.0.1/sampled", "Traceparent", "00-"+trace+"-"+parent+"-01")
	clients, servers := w.collector.wait(t, "/sampled", 1)
	for _, s := range append(clients, servers...) {
		if got := fmt.Sprintf("%x", s.GetTraceId()); got != trace {
			t.Errorf("trace %s became %s", trace, got)
		}
	}
	if got := fmt.Sprintf("%x", clients[0].GetParentSpanId()); got != parent {
		t.Errorf("the parent is %s, want %s", got, parent)
	}
	w.untold(t, "/all/unsampled", func(path string) {
		do(t, w.http, "GET", "http://10.96.0.1"+path, "Traceparent", "00-"+trace+"-"+parent+"-00")
	})
}

// collectorInTheMesh reaches it as policy has it: by mutual TLS, and only where a
// grant lets each proxy.
func (w *tracedWorld) collectorInTheMesh(t *testing.T) {
	own := serveCollector(t, w.host, ":4317")
	otlp := mesh.InboundPort{Port: 4317, Protocol: mesh.GRPC, Rules: []mesh.Rule{{Source: "TrafficTarget books/spans", Callers: []mesh.Identity{buyer, store}}}}
	to := mesh.Collector{Bundle: &mesh.Bundle{
		Name: port("books", "collector", 4317), TrustDomain: trustDomain, Protocol: mesh.GRPC, Identities: []mesh.Identity{store},
		Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:4317", store)},
	}}
	to.Bundle.Endpoints[0].Address = netip.MustParseAddr("10.1.0.2")
	apply(t, w.envoy, w.serves(to, everyone(8080, mesh.HTTP), otlp))
	apply(t, w.caller, w.calls([]mesh.Route{under("/all", mesh.Always), under("/", 0)}, to))
	envoytest.Eventually(t, func() error {
		do(t, w.http, "GET", "http://10.96.0.1/all/meshed")
		services := map[string]bool{}
		for _, s := range own.of("/all/meshed") {
			services[s.service] = true
		}
		if !services["buyer.books"] || !services["store.books"] {
			return errors.New("not both proxies reached the collector")
		}
		return nil
	})
}
