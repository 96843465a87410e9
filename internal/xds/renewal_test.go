package xds_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestConnectionsOutliveTheirCertificates has a stream over HTTP/2, a TCP connection
// and calls of all kinds go on through three renewals of both sides, each after the
// end of the certificates that the connections were made with.
func TestConnectionsOutliveTheirCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveHTTP(t, w.host, ":8080", "http")
	serveBanner(t, w.host, ":3306", "tcp first")
	serveEcho(t, w.host, ":8081")
	stores := []mesh.Identity{store}
	apply(t, w.envoy, w.view(everyone(3306, mesh.TCP), everyone(8080, mesh.HTTP), everyone(8081, mesh.GRPC)))
	apply(t, w.caller, w.calls(false,
		mesh.Bundle{Name: port("books", "db", 80), Protocol: mesh.TCP, Addresses: addrs("10.96.0.6"), Identities: stores, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:3306", store)}},
		mesh.Bundle{Name: port("books", "echo", 80), Protocol: mesh.GRPC, Addresses: addrs("10.96.0.7"), Identities: stores, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8081", store)}},
		mesh.Bundle{Name: port("books", "store", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: stores, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8080", store)}},
	))
	const life = 3 * time.Second
	renew := func() (end time.Time) {
		t.Helper()
		end = time.Now().Add(life).Truncate(time.Second)
		w.envoy.Renew(t, w.ca.SecretUntil(t, store.URI(trustDomain), end))
		w.caller.Renew(t, w.ca.SecretUntil(t, buyer.URI(trustDomain), end))
		want := end.UTC().Format("2006-01-02T15:04:05Z")
		for _, e := range []*envoytest.Envoy{w.envoy, w.caller} {
			envoytest.Eventually(t, func() error {
				if shown, err := e.Get(t.Context(), "/certs"); err != nil || !strings.Contains(shown, want) {
					return fmt.Errorf("the certificate that ends at %s is not in use: %w", want, err)
				}
				return nil
			})
		}
		return end
	}
	end := renew()
	say := w.echo(t, "http://10.96.0.7/")
	load := w.load(t)
	for n := range 3 {
		renewed := time.NewTimer(time.Until(end) - life/2) // as agents do
		<-renewed.C
		before := end
		end = renew()
		over := time.NewTimer(time.Until(before))
		for open := true; open; {
			select {
			case <-over.C:
				open = false
			default:
			}
			if err := say(fmt.Sprintf("%d %s", n, time.Now())); err != nil {
				t.Fatalf("the stream ended in renewal %d: %v", n+1, err)
			}
		}
	}
	load.end(t)
}

// serveEcho runs an application that answers over HTTP/2 line by line.
func serveEcho(t *testing.T, h *envoytest.Host, address string) {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: protocols, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flow := http.NewResponseController(w)
		_ = flow.Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); _ = flow.Flush() {
			_, _ = fmt.Fprintln(w, lines.Text())
		}
	})}
	l := h.Listen(t, address)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// echo opens a stream from the caller's pod, and returns what says a line and waits for
// its echo.
func (w *world) echo(t *testing.T, url string) func(line string) error {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{DialContext: w.client.Dial, Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	out, in := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, out)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := transport.RoundTrip(request)
	if err != nil || reply.StatusCode != http.StatusOK {
		t.Fatalf("open a stream: %v %v", reply, err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = reply.Body.Close() })
	lines := bufio.NewReader(reply.Body)
	return func(line string) error {
		if _, err := fmt.Fprintln(in, line); err != nil {
			return err
		}
		got, err := lines.ReadString('\n')
		if err == nil && strings.TrimSpace(got) != line {
			err = fmt.Errorf("said %q, heard %q", line, got)
		}
		return err
	}
}
