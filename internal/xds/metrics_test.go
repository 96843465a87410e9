package xds_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// sample is a line of Prometheus' form.
var (
	sample = regexp.MustCompile(`^envoy_outrigger_(\w+)\{(.*)\} (\S+)$`)
	label  = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// sum adds up what a metric says where all of these labels are.
func sum(t *testing.T, e *envoytest.Envoy, metric string, labels map[string]string) float64 {
	t.Helper()
	text, err := e.Get(t.Context(), "/stats/prometheus?filter=outrigger")
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		found := sample.FindStringSubmatch(lines.Text())
		if found == nil || found[1] != metric {
			continue
		}
		has := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(found[2], -1) {
			has[l[1]] = l[2]
		}
		matches := true
		for name, value := range labels {
			matches = matches && has[name] == value
		}
		if n, err := strconv.ParseFloat(found[3], 64); err == nil && matches {
			total += n
		}
	}
	return total
}

// counts waits until a metric is n where all of these labels are.
func counts(t *testing.T, e *envoytest.Envoy, n float64, metric string, labels map[string]string) {
	t.Helper()
	envoytest.Eventually(t, func() error {
		if got := sum(t, e, metric, labels); got != n {
			text, _ := e.Get(t.Context(), "/stats/prometheus?filter=outrigger."+metric)
			return fmt.Errorf("%s%v is %v, want %v, in\n%s", metric, labels, got, n, text)
		}
		return nil
	})
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveHTTP(t, w.host, ":8080", "app")
	serveHTTP(t, w.outside, "10.1.9.9:8080", "outside")
	serveBanner(t, w.host, ":3306", "welcome")
	web := mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, ModeBy: "Namespace books annotation", Rules: []mesh.Rule{{
		Source: "TrafficTarget books/read", Callers: []mesh.Identity{buyer}, Match: mesh.HTTPMatch{Methods: []string{"GET"}},
	}}}
	db := mesh.InboundPort{Port: 3306, Protocol: mesh.TCP, Callers: []mesh.Identity{buyer}}
	open := mesh.InboundPort{Port: 8081, Protocol: mesh.HTTP, Mode: mesh.Permissive, PlainText: true}
	serveHTTP(t, w.host, ":8081", "open")
	apply(t, w.envoy, w.view(web, db, open))
	apply(t, w.caller, w.calls(true,
		mesh.Bundle{Name: port("books", "store", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: []mesh.Identity{store}, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8080", store)}},
		mesh.Bundle{Name: port("books", "legacy", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.2"), Endpoints: []mesh.Endpoint{endpoint("10.1.9.9:8080", mesh.Identity{})}},
		mesh.Bundle{Name: port("books", "db", 3306), Protocol: mesh.TCP, Addresses: addrs("10.96.0.3"), Identities: []mesh.Identity{store}, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:3306", store)}},
		mesh.Bundle{Name: port("books", "gone", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.4")},
	))
	const by = "spiffe://cluster.local/ns/books/sa/"
	app := w.app(t)
	for range 3 {
		do(t, app, "GET", "http://10.96.0.1/")
	}
	do(t, app, "POST", "http://10.96.0.1/")
	do(t, app, "GET", "http://10.96.0.2/")
	do(t, app, "GET", "http://10.96.0.4/")
	do(t, app, "GET", "http://10.96.0.99/")

	t.Run("ServedByMutualTLS", func(t *testing.T) {
		counts(t, w.caller, 3, "requests_total", map[string]string{
			"direction": "outbound", "source": by + "buyer", "destination": by + "store", "service": "books/store:80", "backend": "books/store:80", "code": "200", "tls": "TLSv1.3",
		})
		counts(t, w.envoy, 3, "requests_total", map[string]string{
			"direction": "inbound", "source": by + "buyer", "destination": by + "store", "port": "8080", "code": "200", "tls": "TLSv1.3",
			"decision": "allowed", "allowed_by": "TrafficTarget books/read", "policy": "enforced: Namespace books annotation", "reason": "",
		})
		counts(t, w.caller, 4, "request_duration_milliseconds_count", map[string]string{"service": "books/store:80", "source": by + "buyer"})
	})
	t.Run("Denied", func(t *testing.T) {
		counts(t, w.envoy, 1, "requests_total", map[string]string{
			"source": by + "buyer", "destination": by + "store", "code": "403", "decision": "denied", "reason": "no grant matched", "policy": "enforced: Namespace books annotation", "allowed_by": "",
		})
		counts(t, w.caller, 1, "requests_total", map[string]string{"direction": "outbound", "source": by + "buyer", "decision": "denied", "code": "403"})
	})
	t.Run("PlainText", func(t *testing.T) {
		counts(t, w.caller, 1, "requests_total", map[string]string{"service": "books/legacy:80", "destination": "", "tls": "none", "code": "200"})
		plain := &http.Transport{DialContext: w.peer.Dial}
		t.Cleanup(plain.CloseIdleConnections)
		do(t, &http.Client{Transport: plain}, "GET", "http://10.1.0.2:8081/")
		counts(t, w.envoy, 1, "requests_total", map[string]string{"port": "8081", "source": "", "tls": "none", "decision": "allowed", "allowed_by": "permissive mode", "policy": "permissive: mesh setting"})
	})
	t.Run("NobodyReached", func(t *testing.T) {
		counts(t, w.caller, 1, "requests_total", map[string]string{"service": "books/gone:80", "tls": "", "code": "503", "flags": "UH"})
	})
	t.Run("TCP", func(t *testing.T) {
		if got, err := w.banner(t.Context(), "10.96.0.3:3306"); got != "welcome" {
			t.Fatal(got, err)
		}
		if c, err := w.dial(t.Context(), t, thief, 3306); err == nil {
			_, _ = line(c)
		}
		counts(t, w.caller, 1, "connections_total", map[string]string{"direction": "outbound", "service": "books/db:3306", "destination": by + "store", "tls": "TLSv1.3"})
		counts(t, w.caller, 8, "sent_bytes_total", map[string]string{"service": "books/db:3306"})
		counts(t, w.envoy, 1, "connections_total", map[string]string{"direction": "inbound", "port": "3306", "source": by + "buyer", "decision": "allowed", "policy": "enforced: mesh setting", "allowed_by": ""})
		counts(t, w.envoy, 1, "connections_total", map[string]string{"direction": "inbound", "port": "3306", "source": by + "thief", "decision": "denied", "reason": "no grant matched", "policy": ""})
		db.Mode = mesh.Permissive
		apply(t, w.envoy, w.view(web, db, open))
		envoytest.Eventually(t, func() error {
			_, _ = w.banner(t.Context(), "10.96.0.3:3306")
			if sum(t, w.envoy, "connections_total", map[string]string{"port": "3306", "policy": "permissive: mesh setting", "allowed_by": "permissive mode"}) == 0 {
				return errors.New("no connection is counted for permissive mode")
			}
			return nil
		})
	})
	t.Run("LabelsAreBounded", func(t *testing.T) {
		text, err := w.caller.Get(t.Context(), "/stats?filter=outrigger")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "10.96.0.99") {
			t.Errorf("an address that the application chose is in a label:\n%s", text)
		}
	})
}
