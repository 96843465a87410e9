package xds_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestProtocols sends through both proxies what only traffic shows: protocols that
// change or keep open a connection, at ports that declare them and at ports that do
// not, and a pod's calls to itself.
func TestProtocols(t *testing.T) {
	t.Parallel()
	p := protocols{newWorld(t)}
	serveStreams(t, p.host, ":8080")
	serveHTTP(t, p.host, ":8090", "self")
	serveTLS(t, p.server, ":8443")
	var ports []mesh.InboundPort
	var bundles []mesh.Bundle
	for i, service := range []struct {
		port     uint16
		protocol mesh.Protocol
	}{{8080, mesh.HTTP}, {8081, mesh.GRPC}, {8082, mesh.Auto}, {8090, mesh.HTTP}, {8443, mesh.TCP}, {8444, mesh.Auto}} {
		in := everyone(service.port, service.protocol)
		in.Callers = append(in.Callers, store)
		in.Rules[0].Callers = append(in.Rules[0].Callers, store)
		ports = append(ports, in)
		bundles = append(bundles, mesh.Bundle{
			Name: port("books", fmt.Sprint("s", service.port), 80), Protocol: service.protocol, Addresses: addrs(fmt.Sprintf("10.96.0.%d", i+1)),
			Identities: []mesh.Identity{store}, Endpoints: []mesh.Endpoint{endpoint(fmt.Sprintf("10.1.0.2:%d", service.port), store)},
		})
	}
	serveStreams(t, p.host, ":8081")
	serveStreams(t, p.host, ":8082")
	serveTLS(t, p.server, ":8444")
	apply(t, p.caller, p.calls(false, bundles...))
	own := p.view(ports...)
	own.Outbound.Bundles = p.calls(false, bundles...).Outbound.Bundles
	apply(t, p.envoy, own)

	for name, address := range map[string]string{"http": "10.96.0.1", "sniffed": "10.96.0.3"} {
		t.Run("WebSocket/"+name, func(t *testing.T) { p.webSocket(t, address) })
	}
	for name, address := range map[string]string{"http": "10.96.0.1", "grpc": "10.96.0.2", "sniffed": "10.96.0.3"} {
		t.Run("Stream/"+name, func(t *testing.T) { p.stream(t, address) })
	}
	for name, address := range map[string]string{"tcp": "10.96.0.5", "sniffed": "10.96.0.6"} {
		t.Run("OwnTLS/"+name, func(t *testing.T) { p.ownTLS(t, address) })
	}
	t.Run("Self", p.self)
}

type protocols struct{ *world }

// serveStreams runs an application that echoes: the lines of a WebSocket, or of any
// other request as they come, with trailers at the end.
func serveStreams(t *testing.T, h *envoytest.Host, address string) {
	t.Helper()
	versions := new(http.Protocols)
	versions.SetHTTP1(true)
	versions.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: versions, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "websocket" {
			c, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(c, buffered)
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(http.StatusOK)
		out := http.NewResponseController(w)
		_ = out.Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			_, _ = fmt.Fprintf(w, "%s %s\n", r.Proto, lines.Text())
			_ = out.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	})}
	l := h.Listen(t, address)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

func (p protocols) webSocket(t *testing.T, address string) {
	c, err := p.client.Dial(t.Context(), "tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %+v, %v; want 101", resp, err)
	}
	for _, frame := range []string{"one\n", "two\n"} {
		_, _ = io.WriteString(c, frame)
		if got, err := in.ReadString('\n'); got != frame {
			t.Errorf("got %q, %v; want %q", got, err, frame)
		}
	}
}

// stream has a conversation over one request, as gRPC does: each answer comes before
// the next question, and trailers at the end.
func (p protocols) stream(t *testing.T, address string) {
	versions := new(http.Protocols)
	versions.SetUnencryptedHTTP2(true)
	transport := &http.Transport{DialContext: p.client.Dial, Protocols: versions}
	t.Cleanup(transport.CloseIdleConnections)
	body, say := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/books.Store/Watch", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	in := bufio.NewReader(resp.Body)
	for i := range 3 {
		_, _ = fmt.Fprintf(say, "message %d\n", i)
		if got, err := in.ReadString('\n'); got != fmt.Sprintf("HTTP/2.0 message %d\n", i) {
			t.Fatalf("answer %d: %q, %v", i, got, err)
		}
	}
	_ = say.Close()
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("at the end: %q, %v, trailers %v", rest, err, resp.Trailer)
	}
}

// ownTLS speaks TLS with the application itself, inside that of the mesh.
func (p protocols) ownTLS(t *testing.T, address string) {
	raw, err := p.client.Dial(t.Context(), "tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{ServerName: "store.example", InsecureSkipVerify: true})
	defer func() { _ = c.Close() }()
	if got, err := line(c); got != "own" {
		t.Errorf("got %q, %v", got, err)
	}
	if got := c.ConnectionState().PeerCertificates[0].URIs[0].String(); got != "https://store.example" {
		t.Errorf("the certificate is %s's; it must be the application's", got)
	}
}

// self calls the pod's own Service, which goes through its proxy twice, and its own
// address, which goes through none.
func (p protocols) self(t *testing.T) {
	transport := &http.Transport{DialContext: p.host.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	app := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	if got := do(t, app, "GET", "http://10.96.0.4/"); !strings.HasSuffix(got.body, `;URI=spiffe://cluster.local/ns/books/sa/store"`) {
		t.Errorf("its own Service: %d %s; want itself as the caller", got.code, got.body)
	}
	for _, url := range []string{"http://10.1.0.2:8090/", "http://127.0.0.1:8090/"} {
		if got := do(t, app, "GET", url); got.body != `self HTTP/1.1 GET / client=""` {
			t.Errorf("%s: %d %s; want no proxy in between", url, got.code, got.body)
		}
	}
	raw, err := p.host.Dial(t.Context(), "tcp", "10.96.0.5:80")
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{ServerName: "store.example", InsecureSkipVerify: true})
	defer func() { _ = c.Close() }()
	if got, err := line(c); got != "own" {
		t.Errorf("its own Service by TCP: %q, %v", got, err)
	}
}
