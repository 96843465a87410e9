package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// An app is an application to be probed, at 127.0.0.1.
type app struct{ http, https, grpc, closed, hangs int32 }

func newApp(t *testing.T) app {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) { want(w, r.URL.RawQuery, "a=b&c") })
	mux.HandleFunc("/from", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		want(w, host, "127.0.0.6")
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		want(w, fmt.Sprint(r.Host, r.Header["X-A"], r.UserAgent(), r.Header["Accept"]), "example.org[1 2]kube-probe/1.37[*/*]")
	})
	mux.HandleFunc("/own-headers", func(w http.ResponseWriter, r *http.Request) {
		want(w, fmt.Sprint(r.UserAgent(), r.Header["Accept"]), "mine[]")
	})
	mux.HandleFunc("/local", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/status/500", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.99:1/", http.StatusFound)
	})
	mux.HandleFunc("/circle", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/circle", http.StatusFound) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			fmt.Fprint(w, strings.Repeat("x", 1<<10))
		}
	})
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)

	checks := health.NewServer()
	checks.SetServingStatus("bad", healthv1.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, checks)
	l := listen(t)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	closed := listen(t)
	closed.Close()
	return app{
		http: port(t, plain.Listener.Addr()), https: port(t, secure.Listener.Addr()), grpc: port(t, l.Addr()),
		closed: port(t, closed.Addr()), hangs: port(t, listen(t).Addr()), // connects, and is never answered
	}
}

// want answers 200 where got is what was wanted, and 418 otherwise.
func want(w http.ResponseWriter, got, want string) {
	if got != want {
		w.WriteHeader(http.StatusTeapot)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func port(t *testing.T, a net.Addr) int32 {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return int32(ap.Port())
}

func TestProbes(t *testing.T) {
	a := newApp(t)
	get := func(path string, headers ...bootstrap.Header) bootstrap.Probe {
		return bootstrap.Probe{HTTP: &bootstrap.HTTPProbe{Port: a.http, Path: path, Headers: headers}, TimeoutSeconds: 10}
	}
	tests := map[string]struct {
		reason string
		probe  bootstrap.Probe
		want   int
	}{
		"ok":             {"the application is well", get("/ok"), 200},
		"no slash":       {"the kubelet adds it", get("ok"), 200},
		"399":            {"the last status that is a success", get("/status/399"), 200},
		"400":            {"the first that is none", get("/status/400"), 400},
		"500":            {"the application's status is what the kubelet shows", get("/status/500"), 500},
		"no content":     {"a success has many forms", get("/status/204"), 200},
		"query":          {"a path may bring a query", get("/query?a=b&c"), 200},
		"source":         {"the redirect rules know the agent by its address", get("/from"), 200},
		"headers":        {"the probe's headers, the host among them, and the kubelet's", get("/headers", bootstrap.Header{Name: "Host", Value: "example.org"}, bootstrap.Header{Name: "x-a", Value: "1"}, bootstrap.Header{Name: "X-A", Value: "2"}), 200},
		"own headers":    {"the probe's own word wins; an empty Accept is none", get("/own-headers", bootstrap.Header{Name: "user-agent", Value: "mine"}, bootstrap.Header{Name: "Accept", Value: ""}), 200},
		"local redirect": {"it is followed, and its end counts", get("/local"), 500},
		"redirect away":  {"it is a success, and nobody is called", get("/away"), 200},
		"circle":         {"ten redirects are enough", get("/circle"), 503},
		"endless body":   {"only the beginning is read", get("/endless"), 200},
		"bad path":       {"what is no URL is a path all the same", get("/%zz"), 404},
		"https":          {"the certificate is not verified", bootstrap.Probe{HTTP: &bootstrap.HTTPProbe{Port: a.https, Path: "/ok", TLS: true}}, 200},
		"https to http":  {"no TLS there", bootstrap.Probe{HTTP: &bootstrap.HTTPProbe{Port: a.http, Path: "/ok", TLS: true}}, 503},
		"http to https":  {"Go's server says 400 to that", bootstrap.Probe{HTTP: &bootstrap.HTTPProbe{Port: a.https, Path: "/ok"}}, 400},
		"http closed":    {"nobody listens", bootstrap.Probe{HTTP: &bootstrap.HTTPProbe{Port: a.closed}}, 503},
		"http hangs":     {"the timeout ends it; zero is one second", bootstrap.Probe{HTTP: &bootstrap.HTTPProbe{Port: a.hangs}}, 503},
		"tcp":            {"somebody listens", bootstrap.Probe{TCP: &bootstrap.TCPProbe{Port: a.hangs}}, 200},
		"tcp closed":     {"nobody listens", bootstrap.Probe{TCP: &bootstrap.TCPProbe{Port: a.closed}}, 503},
		"grpc":           {"the server as a whole", bootstrap.Probe{GRPC: &bootstrap.GRPCProbe{Port: a.grpc}}, 200},
		"grpc bad":       {"one service is not well", bootstrap.Probe{GRPC: &bootstrap.GRPCProbe{Port: a.grpc, Service: "bad"}}, 503},
		"grpc unknown":   {"no such service", bootstrap.Probe{GRPC: &bootstrap.GRPCProbe{Port: a.grpc, Service: "none"}}, 503},
		"grpc closed":    {"nobody listens", bootstrap.Probe{GRPC: &bootstrap.GRPCProbe{Port: a.closed}}, 503},
		"grpc hangs":     {"the timeout ends it", bootstrap.Probe{GRPC: &bootstrap.GRPCProbe{Port: a.hangs}}, 503},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.probe.Path = "/probe"
			p := newProber([]bootstrap.Probe{test.probe}, netip.MustParseAddr("127.0.0.1"))
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, "/probe", nil)
			r.Header.Set("User-Agent", "kube-probe/1.37")
			p.ServeHTTP(w, r)
			if w.Code != test.want {
				t.Errorf("%s: got %d %s; want %d", test.reason, w.Code, w.Body, test.want)
			}
		})
	}
}

// TestSource: an address that nobody has is an error that says
// so, and not a probe from another address.
func TestSource(t *testing.T) {
	for pod, want := range map[string]string{"10.0.0.7": "127.0.0.6", "fd00::7": "::6"} {
		if got := source(netip.MustParseAddr(pod)).String(); got != want {
			t.Errorf("pod %s: got source %s; want %s", pod, got, want)
		}
	}
	p := newProber([]bootstrap.Probe{{Path: "/p", TCP: &bootstrap.TCPProbe{Port: 1}}}, netip.MustParseAddr("fd00::7"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.tcp(ctx, 1); err == nil || !strings.Contains(err.Error(), "[fd00::7]:1") {
		t.Errorf("got %v; want an error that names the pod's address", err)
	}
}

func FuzzProbe(f *testing.F) {
	f.Add("/ok?a#b", "Host", "x")
	f.Add("//other.example/", "x y", "\x00")
	f.Add("http://other.example/", "Content-Length", "7")
	f.Fuzz(func(t *testing.T, path, name, value string) {
		probe := &bootstrap.HTTPProbe{Port: 80, Path: path, Headers: []bootstrap.Header{{Name: name, Value: value}}}
		p := newProber(nil, netip.MustParseAddr("10.0.0.7"))
		request := p.request(t.Context(), probe, "")
		if request.URL.Host != "10.0.0.7:80" {
			t.Errorf("path %q leads to %s; a probe reaches its own pod only", path, request.URL.Host)
		}
	})
}
