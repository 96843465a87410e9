package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// startServer runs a server of HTTP, with TLS where asked for, and returns its address.
func startServer(t *testing.T, s server, identity string) string {
	t.Helper()
	listener, err := s.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, listener, newHTTPEcho(identity)) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// startGRPC runs a gRPC server and returns its address and what stops it.
func startGRPC(t *testing.T, s server, identity string) (address string, stop func()) {
	t.Helper()
	listener, err := s.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server := newGRPCServer(identity)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			server.Stop()
			<-done
		}
	}
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

// held returns what hold prints in a moment.
func held(t *testing.T, url string) []Line {
	t.Helper()
	out, _, err := command(t, "hold", "--url", url, "--interval", "20ms", "--duration", "400ms")
	if err != nil {
		t.Fatal(err)
	}
	var heard []Line
	for line := range strings.Lines(out) {
		var l Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		heard = append(heard, l)
	}
	return heard
}

func TestEveryProtocolIsHeld(t *testing.T) {
	plain, encrypted := startServer(t, server{host: "127.0.0.1"}, "plain"), startServer(t, server{host: "127.0.0.1", tls: true}, "encrypted")
	grpcPlain, _ := startGRPC(t, server{host: "127.0.0.1"}, "grpc")
	grpcEncrypted, _ := startGRPC(t, server{host: "127.0.0.1", tls: true}, "grpcs")
	cases := map[string]struct{ url, identity string }{
		"HTTP":             {"http://" + plain, "plain"},
		"HTTPS":            {"https://" + encrypted, "encrypted"},
		"WebSocket":        {"ws://" + plain, "plain"},
		"TCP":              {"tcp://" + startTCP(t, ""), ""},
		"TCP, with banner": {"tcp://" + startTCP(t, "220 ready"), "220 ready"},
		"gRPC":             {"grpc://" + grpcPlain, "grpc"},
		"gRPC over TLS":    {"grpcs://" + grpcEncrypted, "grpcs"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			heard := held(t, tc.url)
			if len(heard) < 5 {
				t.Fatalf("%d answers, want one every 20 ms: %v", len(heard), heard)
			}
			for i, line := range heard {
				if line.Status != http.StatusOK || line.Identity != tc.identity || line.Reused != (i > 0) {
					t.Errorf("answer %d is %+v; want 200 of %q, over the first connection", i, line, tc.identity)
				}
			}
			out, _, err := command(t, "job", "--url", tc.url)
			if err != nil || !strings.Contains(out, `"status":200`) {
				t.Errorf("one call: %s (%v)", out, err)
			}
		})
	}
}

// TestAHeldCallIsMadeAgain closes what is held, which must be seen.
func TestAHeldCallIsMadeAgain(t *testing.T) {
	closed := closing(t)
	for _, line := range held(t, "tcp://"+closed) {
		if line.Status != 0 || line.Error == "" || line.Reused {
			t.Errorf("a connection that is closed gave %+v", line)
		}
	}
	address, stop := startGRPC(t, server{host: "127.0.0.1"}, "grpc")
	q := request{url: "grpc://" + address, timeout: 5 * time.Second}
	c, err := q.caller(true, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 2 {
		if r := c.call(t.Context()); r.Status != http.StatusOK {
			t.Fatalf("before the end: %+v", r)
		}
	}
	stop()
	if r := c.call(t.Context()); r.Err == nil || !r.Reused {
		t.Errorf("the stream ended, but the reply is %+v", r)
	}
	if r := c.call(t.Context()); r.Err == nil || r.Reused {
		t.Errorf("nobody listens, but the reply is %+v", r)
	}
}

func TestRefusalsHaveTheirStatus(t *testing.T) {
	refusing := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "you may not", http.StatusForbidden)
		}),
		Protocols: new(http.Protocols),
	}
	refusing.Protocols.SetHTTP1(true)
	refusing.Protocols.SetUnencryptedHTTP2(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = refusing.Serve(listener) }()
	t.Cleanup(func() { _ = refusing.Close() })
	for _, scheme := range []string{"http", "ws", "grpc"} {
		out, _, err := command(t, "job", "--url", scheme+"://"+listener.Addr().String())
		if err == nil || !strings.Contains(out, `"status":403`) {
			t.Errorf("%s: %s (%v), want status 403 and a failure", scheme, out, err)
		}
	}
	if _, _, err := command(t, "job", "--url", "gopher://x"); err == nil || !strings.Contains(err.Error(), "grpcs") {
		t.Errorf("an unknown scheme: %v", err)
	}
}

func TestTLSIsThatOfTheServerItself(t *testing.T) {
	plain := startServer(t, server{host: "127.0.0.1"}, "plain")
	if out, _, err := command(t, "job", "--url", "https://"+plain); err == nil {
		t.Errorf("plain text was taken for TLS: %s", out)
	}
	out, _, err := command(t, "job", "--url", "http://"+plain, "--http2")
	if err != nil {
		t.Errorf("HTTP/2 without TLS: %s (%v)", out, err)
	}
}

func TestTheEchoTellsItsProtocol(t *testing.T) {
	address := startServer(t, server{host: "127.0.0.1"}, "plain")
	resp, err := newHTTP2Client(true, 1).Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var got Echo
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Protocol != "HTTP/2.0" {
		t.Errorf("the server was asked in %q (%v), want HTTP/2.0", got.Protocol, err)
	}
}

func TestTheEchoFailsWhenAsked(t *testing.T) {
	web := httptest.NewServer(faulty(time.Minute, 3, newHTTPEcho("echo")))
	defer web.Close()
	for n, want := range []int{200, 200, 503, 200} {
		q := request{url: web.URL, timeout: 5 * time.Second}
		if r := q.do(t.Context(), newClient(false, 1)); r.Status != want {
			t.Errorf("request %d: %+v, want %d", n, r, want)
		}
	}
	q := request{url: web.URL + "/slow", timeout: 100 * time.Millisecond}
	if r := q.do(t.Context(), newClient(false, 1)); r.Err == nil {
		t.Errorf("a slow request was answered: %+v", r)
	}
}
