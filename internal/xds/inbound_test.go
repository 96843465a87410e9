package xds_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// A server is a pod with a real Envoy, real redirection and applications, and
// callers at its door.
type server struct {
	ca    *envoytest.CA
	net   *envoytest.Network
	host  *envoytest.Host // the pod
	peer  *envoytest.Host // from where it is called
	envoy *envoytest.Envoy
}

var (
	buyer = id("books", "buyer")
	thief = id("books", "thief")
	store = id("books", "store")
)

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{ca: envoytest.NewCA(t), net: envoytest.NewNetwork(t)}
	s.host = s.net.Host(t, "10.1.0.2/16", "fd02::2/64")
	s.peer = s.net.Host(t, "10.1.0.9/16", "fd02::9/64")
	s.host.Redirect(t)
	s.envoy = envoytest.Start(t, envoytest.Pod{
		Namespace: "books", Name: "store-1", ServiceAccount: "store", Network: s.host.Name,
		Certificate: s.ca.Secret(t, store.URI(trustDomain)),
	})
	return s
}

// view is a server's View with no outbound.
func (s *server) view(ports ...mesh.InboundPort) mesh.View {
	return mesh.View{
		Trust:    &mesh.Trust{TrustDomain: trustDomain, Bundle: s.ca.Bundle()},
		Inbound:  &mesh.Inbound{TrustDomain: trustDomain, Identity: store, Ports: ports},
		Outbound: &mesh.Outbound{TrustDomain: trustDomain, Caller: store, ServiceCIDRs: cidrs("10.96.0.0/12", "fd01::/112")},
	}
}

// dial connects as an identity would through its proxy.
func (s *server) dial(ctx context.Context, t *testing.T, as mesh.Identity, port int, alpn ...string) (net.Conn, error) {
	t.Helper()
	return s.dialAs(ctx, t, as.URI(trustDomain), port, alpn...)
}

func (s *server) dialAs(ctx context.Context, t *testing.T, uri string, port int, alpn ...string) (net.Conn, error) {
	t.Helper()
	chain, key := s.ca.Sign(t, uri)
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.peer.Dial(ctx, "tcp", fmt.Sprintf("10.1.0.2:%d", port))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.ca.Bundle()))
	c := tls.Client(raw, &tls.Config{
		Certificates: []tls.Certificate{certificate}, ServerName: fmt.Sprintf("%d.store.books.outrigger", port), NextProtos: alpn,
		InsecureSkipVerify: true, // names are URIs; the chain is verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := cs.PeerCertificates[0].URIs[0].String(); got != store.URI(trustDomain) {
				return fmt.Errorf("server is %s", got)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	})
	return c, c.HandshakeContext(ctx)
}

// client makes requests as an identity, over one connection.
func (s *server) client(t *testing.T, as mesh.Identity, port int) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialTLSContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx, t, as, port, "http/1.1") },
		DisableCompression: true, MaxConnsPerHost: 1,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// A reply is what came back.
type reply struct {
	code   int
	body   string
	header http.Header
	reused bool // of the connection
}

// do sends a request whose target is not touched on its way to the wire.
func do(t *testing.T, c *http.Client, method, url string, headers ...string) reply {
	t.Helper()
	r, err := try(t, c, method, url, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func try(t *testing.T, c *http.Client, method, url string, headers ...string) (reply, error) {
	t.Helper()
	var out reply
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { out.reused = i.Reused }})
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = url[strings.Index(url, "//"):] // as given, dots and all
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	out.code, out.body, out.header = resp.StatusCode, string(body), resp.Header
	return out, err
}

// serveHTTP runs an application that says what it was asked.
func serveHTTP(t *testing.T, h *envoytest.Host, address, name string) {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: protocols, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name == "app" {
			w.Header().Set("X-Outrigger-Unsent", "forged")
		}
		w.Header().Set("Server", "app")
		_, _ = fmt.Fprintf(w, "%s %s %s %s client=%q", name, r.Proto, r.Method, r.URL.Path, r.Header.Get("X-Forwarded-Client-Cert"))
	})}
	l := h.Listen(t, address)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// serveBanner runs an application that speaks first and then echoes.
func serveBanner(t *testing.T, h *envoytest.Host, address, banner string) {
	t.Helper()
	l := h.Listen(t, address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = fmt.Fprintln(c, banner)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// line reads one line, or says how the connection ended.
func line(c net.Conn) (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	s, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(s), err
}

// hash is of the caller's certificate, which is another one in every run.
var hash = regexp.MustCompile("Hash=[0-9a-f]{64}")

func TestInboundHTTP(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "app")
	reads := mesh.Rule{Source: "TrafficTarget books/read", Callers: []mesh.Identity{buyer}, Match: mesh.HTTPMatch{
		Path: mesh.StringMatch{Kind: mesh.Regex, Value: "/ok.*"}, Methods: []string{"GET", "HEAD"},
	}}
	byHeader := mesh.Rule{Source: "TrafficTarget books/header", Callers: []mesh.Identity{thief}, Match: mesh.HTTPMatch{
		Path:    mesh.StringMatch{Kind: mesh.Prefix, Value: "/ok/"},
		Headers: []mesh.HeaderMatch{{Name: "x-key", Value: mesh.StringMatch{Kind: mesh.Exact, Value: "1"}}, {Name: ":authority", Value: mesh.StringMatch{Kind: mesh.Regex, Value: "store(:80)?"}}},
	}}
	apply(t, s.envoy, s.view(mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, Rules: []mesh.Rule{byHeader, reads}}))
	cases := map[string]struct {
		reason  string
		as      mesh.Identity
		method  string
		path    string
		headers []string
		want    int
	}{
		"Allowed":       {"the rule covers it", buyer, "GET", "/ok", nil, 200},
		"AnyMethod":     {"any one of the methods", buyer, "HEAD", "/ok/1", nil, 200},
		"Query":         {"the query does not count", buyer, "GET", "/ok?x=/admin", nil, 200},
		"OtherMethod":   {"not one of the methods", buyer, "POST", "/ok", nil, 403},
		"OtherPath":     {"the whole path must match", buyer, "GET", "/a/ok", nil, 403},
		"QueryIsNoPath": {"a path in the query is none", buyer, "GET", "/admin?/ok", nil, 403},
		"DotDot":        {"paths are compared as the application would read them", buyer, "GET", "/ok/../admin", nil, 403},
		"EncodedDots":   {"so are encoded ones", buyer, "GET", "/ok/%2e%2e/admin", nil, 403},
		"EncodedSlash":  {"an escaped slash could be read either way", buyer, "GET", "/ok%2f..%2fadmin", nil, 400},
		"Slashes":       {"slashes are merged", buyer, "GET", "//ok", nil, 200},
		"Stranger":      {"no rule has this caller", id("other", "buyer"), "GET", "/ok", nil, 403},
		"Headers":       {"all of the headers are there", thief, "POST", "/ok/x", []string{"x-key", "1"}, 200},
		"PrefixItself":  {"a prefix is of whole segments", thief, "GET", "/ok", []string{"x-key", "1"}, 200},
		"NotASegment":   {"a prefix is of whole segments", thief, "GET", "/okay", []string{"x-key", "1"}, 403},
		"WrongHeader":   {"one header differs", thief, "GET", "/ok", []string{"x-key", "12"}, 403},
		"NoHeader":      {"one header is missing", thief, "GET", "/ok", nil, 403},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := do(t, s.client(t, tc.as, 8080), tc.method, "https://store"+tc.path, tc.headers...)
			if got.code != tc.want {
				t.Errorf("%s: %s %s as %s is %d, want %d\n%s", tc.reason, tc.method, tc.path, tc.as, got.code, tc.want, got.body)
			}
		})
	}

	t.Run("WhatTheApplicationSees", func(t *testing.T) {
		got := do(t, s.client(t, buyer, 8080), "GET", "https://store/ok/./1", "X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/books/sa/admin")
		if want := `app HTTP/1.1 GET /ok/1 client="By=spiffe://cluster.local/ns/books/sa/store;Hash=H;URI=spiffe://cluster.local/ns/books/sa/buyer"`; hash.ReplaceAllString(got.body, "Hash=H") != want {
			t.Errorf("the application was asked\n%s, want\n%s", got.body, want)
		}
		if got.header.Get("Server") != "app" {
			t.Errorf("Server is %q; it is the application's", got.header.Get("Server"))
		}
		if got.header.Get("X-Outrigger-Unsent") != "" {
			t.Error("the application could make callers repeat what it has done already")
		}
	})
	t.Run("WhatADeniedCallerSees", func(t *testing.T) {
		got := do(t, s.client(t, thief, 8080), "GET", "https://store/ok?secret")
		want := "spiffe://cluster.local/ns/books/sa/thief may not GET /ok at port 8080 of books/store: no policy allows it (enforced: mesh setting).\n" +
			"Run: outrigger why call spiffe://cluster.local/ns/books/sa/thief GET 'http://store/ok'\n"
		if got.body != want || got.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("got %s:\n%s, want\n%s", got.header.Get("Content-Type"), got.body, want)
		}
	})
}

func TestInboundPolicyChangesOnOpenConnections(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "app")
	granted := mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, Rules: []mesh.Rule{{Source: "TrafficTarget books/all", Callers: []mesh.Identity{buyer}}}}
	denied := mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP}
	c := s.client(t, buyer, 8080)
	for i, step := range []struct {
		port mesh.InboundPort
		want int
	}{{denied, 403}, {granted, 200}, {denied, 403}, {granted, 200}} {
		apply(t, s.envoy, s.view(step.port))
		var got reply
		// The acknowledgement comes before every worker has the new routes.
		envoytest.Eventually(t, func() error {
			got = do(t, c, "GET", "https://store/")
			if got.code != step.want {
				return fmt.Errorf("step %d: got %d, want %d", i, got.code, step.want)
			}
			return nil
		})
		if i > 0 && !got.reused {
			t.Errorf("step %d needed a new connection", i)
		}
	}
}

func TestInboundUnsent(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	apply(t, s.envoy, s.view(mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, Rules: []mesh.Rule{{Source: "x", Callers: []mesh.Identity{buyer}}}}))
	got := do(t, s.client(t, buyer, 8080), "POST", "https://store/")
	if got.code != 503 || got.header.Get("X-Outrigger-Unsent") != "1" {
		t.Errorf("nothing listens: got %d with %v; want 503 and the word that it may be repeated", got.code, got.header)
	}
	if denied := do(t, s.client(t, thief, 8080), "POST", "https://store/"); denied.header.Get("X-Outrigger-Unsent") != "" {
		t.Error("a denied request is to be repeated")
	}
}

func TestInboundTCP(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveBanner(t, s.host, ":3306", "welcome")
	serveBanner(t, s.host, ":3307", "undeclared")
	open := mesh.InboundPort{Port: 3306, Protocol: mesh.TCP, Callers: []mesh.Identity{buyer}}
	shut := mesh.InboundPort{Port: 3306, Protocol: mesh.TCP}
	mayConnect := func(as mesh.Identity, want bool) {
		t.Helper()
		envoytest.Eventually(t, func() error {
			c, err := s.dial(t.Context(), t, as, 3306)
			if err == nil {
				defer func() { _ = c.Close() }()
				var got string
				got, err = line(c)
				if got != "" && got != "welcome" {
					t.Errorf("got %q", got)
				}
			}
			if (err == nil) != want {
				return fmt.Errorf("%s connects: got %w, want it to work: %v", as, err, want)
			}
			return nil
		})
	}
	apply(t, s.envoy, s.view(shut))
	mayConnect(buyer, false)
	before, _ := s.envoy.Get(t.Context(), "/stats?filter=listener_manager.listener_(modified|in_place_updated|added)")
	apply(t, s.envoy, s.view(open))
	mayConnect(buyer, true)
	mayConnect(thief, false)
	kept, err := s.dial(t.Context(), t, buyer, 3306)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := line(kept); got != "welcome" {
		t.Fatalf("got %q, %v", got, err)
	}
	apply(t, s.envoy, s.view(shut))
	mayConnect(buyer, false)
	if _, err := fmt.Fprintln(kept, "still there"); err != nil {
		t.Error(err)
	}
	if got, err := line(kept); got != "still there" {
		t.Errorf("the open connection got %q, %v; a policy change cuts none", got, err)
	}
	if after, _ := s.envoy.Get(t.Context(), "/stats?filter=listener_manager.listener_(modified|in_place_updated|added)"); after != before {
		t.Errorf("a grant changed a listener: before\n%safter\n%s", before, after)
	}

	t.Run("PlainText", func(t *testing.T) {
		for _, port := range []string{"3306", "3307"} {
			c, err := s.peer.Dial(t.Context(), "tcp", "10.1.0.2:"+port)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			if got, err := line(c); err == nil || got != "" {
				t.Errorf("plain text at port %s was answered %q", port, got)
			}
			_ = c.Close()
		}
	})
	t.Run("SilentAtAnUndeclaredPort", func(t *testing.T) {
		c, err := s.peer.Dial(t.Context(), "tcp", "10.1.0.2:3307")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := line(c); !errors.Is(err, io.EOF) {
			t.Errorf("got %q, %v; want a closed connection", got, err)
		}
	})
	t.Run("OtherRoots", func(t *testing.T) {
		apply(t, s.envoy, s.view(open))
		other := *s
		other.ca = envoytest.NewCA(t)
		if c, err := other.dial(t.Context(), t, buyer, 3306); err == nil {
			if got, err := line(c); err == nil {
				t.Errorf("a certificate of another root got %q", got)
			}
		}
	})
}
