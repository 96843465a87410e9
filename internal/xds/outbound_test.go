package xds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// A world is a caller's pod and a server's pod, both with Envoys, and a host
// that is in no mesh.
type world struct {
	*server
	client  *envoytest.Host
	caller  *envoytest.Envoy
	outside *envoytest.Host
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{server: newServer(t)}
	w.client = w.net.Host(t, "10.1.0.1/16", "fd02::1/64")
	w.outside = w.net.Host(t, "10.1.9.9/16", "10.1.9.10/16")
	w.client.Redirect(t)
	w.caller = envoytest.Start(t, envoytest.Pod{
		Namespace: "books", Name: "buyer-1", ServiceAccount: "buyer", Network: w.client.Name,
		Certificate: w.ca.Secret(t, buyer.URI(trustDomain)),
	})
	return w
}

// calls is a caller's View.
func (w *world) calls(egress bool, bundles ...mesh.Bundle) mesh.View {
	v := w.view()
	v.Inbound.Identity = buyer
	v.Outbound.Caller, v.Outbound.AllowEgress = buyer, egress
	for _, b := range bundles {
		b.TrustDomain = trustDomain
		if b.Routes == nil {
			b.Routes = all(b.Name)
		}
		v.Outbound.Bundles = append(v.Outbound.Bundles, &b)
	}
	return v
}

func (w *world) app(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: w.client.Dial, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func endpoint(address string, of mesh.Identity) mesh.Endpoint {
	a := netip.MustParseAddrPort(address)
	return mesh.Endpoint{Address: a.Addr(), Port: a.Port(), Identity: of}
}

// banner connects from the caller's pod and returns the first line.
func (w *world) banner(ctx context.Context, address string) (string, error) {
	c, err := w.client.Dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	return line(c)
}

func everyone(port uint16, p mesh.Protocol) mesh.InboundPort {
	return mesh.InboundPort{
		Port: port, Protocol: p, Callers: []mesh.Identity{buyer},
		Rules: []mesh.Rule{{Source: "TrafficTarget books/all", Callers: []mesh.Identity{buyer}}},
	}
}

// A shop is a world with a service of every kind.
type shop struct {
	*world
	store mesh.Bundle   // in versions 1 and 2
	rest  []mesh.Bundle // all others
	http  *http.Client
}

const asBuyer = `;URI=spiffe://cluster.local/ns/books/sa/buyer"`

func TestOutbound(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	apply(t, s.caller, s.shares(true, 50, 50))
	t.Run("Split", s.split)
	t.Run("Identity", s.identity)
	t.Run("HTTP2", s.http2)
	t.Run("Mixed", s.mixed)
	t.Run("WrongServer", s.wrongServer)
	t.Run("ServerFirst", s.serverFirst)
	t.Run("Denied", s.denied)
	t.Run("DeniedOnce", s.deniedOnce)
	t.Run("DeniedUpload", s.deniedUpload)
	t.Run("AllowedAndRevoked", s.allowedAndRevoked)
	t.Run("Egress", s.egress)
	t.Run("Loop", s.loop)
	t.Run("PlainText", s.plainText)
}

func (s *shop) split(t *testing.T) {
	if got := s.count(t, 400); got["v1"] < 140 || got["v2"] < 140 || got["v1"]+got["v2"] != 400 {
		t.Errorf("400 requests at 50/50 went to %v", got)
	}
	apply(t, s.caller, s.shares(true, 0, 1))
	envoytest.Eventually(t, func() error {
		if got := s.count(t, 20); got["v2"] != 20 {
			return fmt.Errorf("20 requests at 0/1 went to %v", got)
		}
		return nil
	})
	apply(t, s.caller, s.shares(true, 1, 0))
	envoytest.Eventually(t, func() error {
		if got := s.count(t, 20); got["v1"] != 20 {
			return fmt.Errorf("20 requests at 1/0 went to %v", got)
		}
		return nil
	})
}

func (s *shop) identity(t *testing.T) {
	for reason, url := range map[string]string{"a service": "http://10.96.0.1/", "by IPv6": "http://[fd01::1]/", "undeclared": "http://10.96.0.2/", "a headless one": "http://10.1.0.2:8080/"} {
		if got := do(t, s.http, "GET", url); got.code != 200 || !strings.HasSuffix(got.body, asBuyer) || got.header.Get("X-Outrigger-Unsent") != "" {
			t.Errorf("%s: got %d %v\n%s", reason, got.code, got.header, got.body)
		}
	}
	if got := do(t, s.http, "GET", "http://10.1.9.9:8080/"); !strings.HasPrefix(got.body, "outside HTTP/1.1 GET /") {
		t.Errorf("an endpoint outside the mesh of a headless service: %d %s", got.code, got.body)
	}
	stats, err := s.caller.Get(t.Context(), "/stats?filter=cluster.books/store_80.ssl")
	if err != nil || !strings.Contains(stats, "ssl.curves.X25519MLKEM768") || !strings.Contains(stats, "ssl.versions.TLSv1.3") || strings.Contains(stats, "TLSv1.2") {
		t.Errorf("key exchange and version: %v\n%s", err, stats)
	}
}

func (s *shop) http2(t *testing.T) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{DialContext: s.client.Dial, Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	for _, url := range []string{"http://10.96.0.8/", "http://10.96.0.2/"} {
		got := do(t, &http.Client{Transport: transport}, "POST", url)
		if !strings.Contains(got.body, " HTTP/2.0 POST ") {
			t.Errorf("%s: %d %s", url, got.code, got.body)
		}
	}
}

func (s *shop) mixed(t *testing.T) {
	seen := map[string]bool{}
	envoytest.Eventually(t, func() error {
		got := do(t, s.http, "GET", "http://10.96.0.5/")
		seen[strings.Fields(got.body)[0]] = true
		if !seen["v1"] || !seen["outside"] {
			return fmt.Errorf("only %v answered", seen)
		}
		return nil
	})
}

func (s *shop) wrongServer(t *testing.T) {
	for _, url := range []string{"http://10.96.0.4/", "http://10.96.0.9/"} {
		if got := do(t, s.http, "GET", url); got.code != 503 || strings.HasPrefix(got.body, "v1") {
			t.Errorf("%s: a server with another name answered %d %s", url, got.code, got.body)
		}
	}
}

func (s *shop) serverFirst(t *testing.T) {
	for address, want := range map[string]string{"10.96.0.6:80": "mysql", "10.96.0.3:80": "auto first", "10.1.9.10:2525": "smtp"} {
		if got, err := s.banner(t.Context(), address); got != want {
			t.Errorf("%s: got %q, %v; want %q", address, got, err, want)
		}
	}
}

func (s *shop) denied(t *testing.T) {
	r, err := try(t, s.http, "GET", "http://10.96.0.99:8080/path?secret", "Host", "ignored")
	if err != nil {
		t.Fatal(err)
	}
	want := "books/buyer may not call 10.96.0.99:8080 (10.96.0.99:8080): enforced mode: no policy lets it call this address, or nothing serves it.\n" +
		"Run: outrigger why call books/buyer-1 GET 'http://10.96.0.99:8080/path'\n"
	if r.code != 403 || r.body != want {
		t.Errorf("got %d\n%s, want 403\n%s", r.code, r.body, want)
	}
	if got, err := s.banner(t.Context(), "10.96.0.99:3306"); got != "" || !errors.Is(err, io.EOF) {
		t.Errorf("TCP got %q, %v; want a closed connection", got, err)
	}
	if r, err := try(t, s.http, "GET", "http://[fd01::99]/"); err != nil || r.code != 403 {
		t.Errorf("by IPv6: %d, %v", r.code, err)
	}
}

func (s *shop) deniedOnce(t *testing.T) {
	// A reply that ends with its connection must not be lost on the way out of
	// the listener inside Envoy.
	for i := range 200 {
		transport := &http.Transport{DialContext: s.client.Dial, DisableKeepAlives: true}
		if r, err := try(t, &http.Client{Transport: transport}, "GET", "http://10.96.0.99/"); err != nil || r.code != 403 || !strings.HasSuffix(r.body, "/'\n") {
			t.Fatalf("request %d: %d %q, %v", i, r.code, r.body, err)
		}
	}
}

func (s *shop) deniedUpload(t *testing.T) {
	for range 20 {
		resp, err := s.app(t).Post("http://10.96.0.99/", "text/plain", strings.NewReader(strings.Repeat("x", 1<<20)))
		if err != nil || resp.StatusCode != 403 {
			t.Fatalf("got %v, %v", resp, err)
		}
		_ = resp.Body.Close()
	}
}

func (s *shop) allowedAndRevoked(t *testing.T) {
	app := s.app(t) // with connections of its own
	open := func() reply { return do(t, app, "GET", "http://10.96.0.1/") }
	if got := open(); got.code != 200 {
		t.Fatalf("got %d %s", got.code, got.body)
	}
	apply(t, s.caller, s.calls(true, s.rest...)) // without the store
	got := open()
	want := "books/buyer may not call 10.96.0.1:80 (10.96.0.1): enforced mode: no policy lets it call this address, or nothing serves it.\n" +
		"Run: outrigger why call books/buyer-1 GET 'http://10.96.0.1/'\n"
	if got.code != 403 || got.body != want || !got.reused {
		t.Errorf("on the open connection (%v): got %d\n%s, want 403\n%s", got.reused, got.code, got.body, want)
	}
	if got := open(); got.code != 403 || got.body != want || got.reused {
		t.Errorf("on a new connection (%v): got %d\n%s, want 403\n%s", !got.reused, got.code, got.body, want)
	}
	apply(t, s.caller, s.shares(true, 1, 0))
	if got := open(); got.code != 200 {
		t.Errorf("a client that was denied is not let through: %d %s", got.code, got.body)
	}
}

func (s *shop) egress(t *testing.T) {
	before, _ := s.caller.Get(t.Context(), "/stats?filter=listener_manager.listener_(modified|in_place_updated)")
	open, err := s.client.Dial(t.Context(), "tcp", "10.1.9.10:2525")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := line(open); got != "smtp" {
		t.Fatalf("got %q, %v", got, err)
	}
	fresh := func() *http.Client { return s.app(t) }
	for _, allowed := range []bool{true, false, true} {
		apply(t, s.caller, s.shares(allowed, 1, 0))
		want := 403
		if allowed {
			want = 200
		}
		var r reply
		envoytest.Eventually(t, func() error {
			if r = do(t, fresh(), "GET", "http://10.1.9.10:8080/x"); r.code != want {
				return fmt.Errorf("egress %v: got %d %s", allowed, r.code, r.body)
			}
			return nil
		})
		if denied := "books/buyer may not call 10.1.9.10:8080 (10.1.9.10:8080): egress is denied in namespace books, and this is outside the mesh.\n"; !allowed && !strings.HasPrefix(r.body, denied) {
			t.Errorf("got\n%s, want\n%s", r.body, denied)
		}
		if got, err := s.banner(t.Context(), "10.1.9.10:2525"); (got == "smtp") != allowed {
			t.Errorf("egress %v: TCP got %q, %v", allowed, got, err)
		}
		if got := do(t, s.http, "GET", "http://10.96.0.1/"); got.code != 200 {
			t.Errorf("egress %v: a call in the mesh got %d", allowed, got.code)
		}
	}
	_, _ = fmt.Fprintln(open, "still there")
	if got, err := line(open); got != "still there" {
		t.Errorf("the open connection got %q, %v", got, err)
	}
	if after, _ := s.caller.Get(t.Context(), "/stats?filter=listener_manager.listener_(modified|in_place_updated)"); after != before {
		t.Errorf("the egress setting changed a listener: before\n%safter\n%s", before, after)
	}
}

func (s *shop) loop(t *testing.T) {
	for _, address := range []string{"127.0.0.1:15001", "127.0.0.1:15003", "10.1.0.1:15001"} {
		if got, err := s.banner(t.Context(), address); got != "" || !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %q, %v; want a closed connection", address, got, err)
		}
	}
}

func (s *shop) plainText(t *testing.T) {
	c, err := s.outside.Dial(t.Context(), "tcp", "10.1.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got, err := line(c); err == nil {
		t.Errorf("a strict port answered %q", got)
	}
}

func newShop(t *testing.T) *shop {
	t.Helper()
	w := newWorld(t)
	serveHTTP(t, w.host, ":8080", "v1")
	serveHTTP(t, w.host, ":8081", "v2")
	serveHTTP(t, w.host, ":8082", "auto")
	serveBanner(t, w.host, ":3306", "mysql")
	serveBanner(t, w.host, ":8083", "auto first")
	serveHTTP(t, w.outside, ":8080", "outside")
	serveBanner(t, w.outside, ":2525", "smtp")
	apply(t, w.envoy, w.view(everyone(3306, mesh.TCP), everyone(8080, mesh.HTTP), everyone(8081, mesh.GRPC), everyone(8082, mesh.Auto), everyone(8083, mesh.Auto)))

	bundle := func(name string, p mesh.Protocol, address string, servers []mesh.Identity, eps ...mesh.Endpoint) mesh.Bundle {
		return mesh.Bundle{Name: port("books", name, 80), Protocol: p, Addresses: addrs(address), Identities: servers, Endpoints: eps}
	}
	stores := []mesh.Identity{store}
	v1, outside := endpoint("10.1.0.2:8080", store), endpoint("10.1.9.9:8080", mesh.Identity{})
	s := &shop{world: w, http: w.app(t), store: bundle("store", mesh.HTTP, "10.96.0.1", stores, v1)}
	s.store.Addresses = addrs("10.96.0.1", "fd01::1")
	s.rest = []mesh.Bundle{
		bundle("auto", mesh.Auto, "10.96.0.2", stores, endpoint("10.1.0.2:8082", store)),
		bundle("auto-first", mesh.Auto, "10.96.0.3", stores, endpoint("10.1.0.2:8083", store)),
		{Name: port("books", "headless", 80), Protocol: mesh.HTTP, Headless: true, Identities: stores, Endpoints: []mesh.Endpoint{v1, outside}},
		bundle("impostor", mesh.HTTP, "10.96.0.4", []mesh.Identity{thief}, v1),
		bundle("mixed", mesh.HTTP, "10.96.0.5", stores, v1, outside),
		bundle("mysql", mesh.TCP, "10.96.0.6", stores, endpoint("10.1.0.2:3306", store)),
		bundle("nobody", mesh.HTTP, "10.96.0.9", nil, v1),
		bundle("v2", mesh.GRPC, "10.96.0.8", stores, endpoint("10.1.0.2:8081", store)),
		{Name: port("default", "api", 2525), Passthrough: true, Addresses: addrs("10.96.0.7")},
	}
	return s
}

// shares is the caller's View with the store split in two.
func (s *shop) shares(egress bool, v1, v2 uint32) mesh.View {
	s.store.Routes = []mesh.Route{{Shares: []mesh.Share{{To: port("books", "store", 80), Weight: v1}, {To: port("books", "v2", 80), Weight: v2}}}}
	return s.calls(egress, append([]mesh.Bundle{s.store}, s.rest...)...)
}

// count makes n requests and returns who answered.
func (s *shop) count(t *testing.T, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		got[strings.Fields(do(t, s.http, "GET", "http://10.96.0.1/").body)[0]]++
	}
	return got
}
