package xds_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// An entry is a line of the access log.
type entry map[string]any

// entries are the lines of an access log in which all of these hold.
func entries(e *envoytest.Envoy, want entry) []entry {
	var out []entry
	for lines := bufio.NewScanner(strings.NewReader(e.Log())); lines.Scan(); {
		var line entry
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.has(want) {
			out = append(out, line)
		}
	}
	return out
}

func (l entry) has(want entry) bool {
	for field, value := range want {
		if l[field] == nil || fmt.Sprint(l[field]) != fmt.Sprint(value) {
			return false
		}
	}
	return true
}

// logs waits for a line in which all of these hold.
func logs(t *testing.T, e *envoytest.Envoy, want entry) entry {
	t.Helper()
	var found []entry
	envoytest.Eventually(t, func() error {
		if found = entries(e, want); len(found) == 0 {
			return fmt.Errorf("no line of the access log has %v", want)
		}
		return nil
	})
	return found[0]
}

func TestDenialsAreExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveHTTP(t, w.host, ":8080", "app")
	accepted := countAccepts(t, w.host, ":3306")
	shop := mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, ModeBy: "Namespace books annotation", Rules: []mesh.Rule{{Source: "TrafficTarget books/all", Callers: []mesh.Identity{buyer}}}}
	db := mesh.InboundPort{Port: 3306, Protocol: mesh.TCP, Callers: []mesh.Identity{buyer}}
	apply(t, w.envoy, w.view(shop, db))
	apply(t, w.caller, w.calls(false))

	const by = "spiffe://cluster.local/ns/books/sa/"
	want := func(line entry, more entry) {
		t.Helper()
		want := entry{"decision": "denied", "direction": "inbound", "server": by + "store"}
		maps.Copy(want, more)
		got := entry{}
		for field := range want {
			got[field] = line[field]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the access log (-want +got):\n%s\n%v", diff, line)
		}
	}
	t.Run("HTTP", func(t *testing.T) {
		if got := do(t, w.server.client(t, thief, 8080), "GET", "https://store/ok?secret"); got.code != 403 {
			t.Fatal(got)
		}
		line := logs(t, w.envoy, entry{"status": 403})
		want(line, entry{"caller": by + "thief", "reason": "no grant matched", "policy": "enforced: Namespace books annotation", "path": "/ok"})
		if strings.Contains(fmt.Sprint(line), "secret") {
			t.Errorf("people put secrets into queries: %v", line)
		}
	})
	t.Run("TCP", func(t *testing.T) {
		if c, err := w.dial(t.Context(), t, thief, 3306); err == nil {
			if _, err := line(c); err == nil {
				t.Fatal("let in")
			}
		}
		want(logs(t, w.envoy, entry{"destination": "10.1.0.2:3306"}), entry{"caller": by + "thief", "reason": "no grant matched", "policy": "enforced: mesh setting"})
		if n := accepted.Load(); n != 0 {
			t.Errorf("the application accepted %d connections of a caller that is denied", n)
		}
		db.ModeBy = "Service books/db annotation"
		apply(t, w.envoy, w.view(shop, db))
		envoytest.Eventually(t, func() error {
			if c, err := w.dial(t.Context(), t, thief, 3306); err == nil {
				_, _ = line(c)
			}
			if len(entries(w.envoy, entry{"policy": "enforced: Service books/db annotation"})) == 0 {
				return errors.New("the new policy is not in the access log")
			}
			return nil
		})
	})
	t.Run("NobodyOfTheMesh", func(t *testing.T) {
		raw, err := w.peer.Dial(t.Context(), "tcp", "10.1.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{ServerName: "8080.store.books.outrigger", InsecureSkipVerify: true})
		if _, err := line(c); err == nil {
			t.Fatal("let in")
		}
		want(logs(t, w.envoy, entry{"reason": "no certificate of this mesh"}), entry{"destination": "10.1.0.2:8080"})
	})
	t.Run("PlainText", func(t *testing.T) {
		c, err := w.peer.Dial(t.Context(), "tcp", "10.1.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		if _, err := line(c); err == nil {
			t.Fatal("let in")
		}
		logs(t, w.envoy, entry{"decision": "denied", "reason": "plain text where only mutual TLS is taken, or a port that no Service leads to"})
	})
	t.Run("Outbound", func(t *testing.T) {
		if got := do(t, w.app(t), "GET", "http://10.96.0.99/"); got.code != 403 {
			t.Fatal(got)
		}
		logs(t, w.caller, entry{
			"status": 403, "decision": "denied", "direction": "outbound", "caller": by + "buyer", "destination": "10.96.0.99:80",
			"reason": "enforced mode: no policy lets it call this address, or nothing serves it",
		})
	})
}

// countAccepts runs an application that speaks first, and counts who came.
func countAccepts(t *testing.T, h *envoytest.Host, address string) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	l := h.Listen(t, address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			_, _ = fmt.Fprintln(c, "welcome")
			_ = c.Close()
		}
	}()
	return &n
}

func TestAccessLogSetting(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "app")
	serveBanner(t, s.host, ":3306", "welcome")
	listener := func(v mesh.View) string {
		set, err := xds.NewCache().Set(seal(t, v))
		if err != nil {
			t.Fatal(err)
		}
		return set.Resource(xds.Listener, "inbound").Version
	}
	web, db := everyone(8080, mesh.HTTP), everyone(3306, mesh.TCP)
	first := listener(s.view(web, db))
	call := func(path string) {
		t.Helper()
		if got := do(t, s.client(t, buyer, 8080), "GET", "https://store"+path); got.code != 200 {
			t.Fatal(got)
		}
		if got := do(t, s.client(t, thief, 8080), "GET", "https://store"+path); got.code != 403 {
			t.Fatal(got)
		}
		c, err := s.dial(t.Context(), t, buyer, 3306)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if got, err := line(c); got != "welcome" {
			t.Fatal(got, err)
		}
	}
	// until calls until their lines are as they should be, since an acknowledgement
	// comes before every worker has the new routes.
	until := func(log mesh.AccessLog, wantAllowed, wantDenied, wantTCP bool) {
		t.Helper()
		web.AccessLog, db.AccessLog = log, log
		if got := listener(s.view(web, db)); got != first {
			t.Errorf("%q changes the listener", log)
		}
		apply(t, s.envoy, s.view(web, db))
		n := 0
		envoytest.Eventually(t, func() error {
			n++
			path := fmt.Sprintf("/try%s/%d", log, n)
			before := len(entries(s.envoy, entry{"port": "3306"}))
			call(path)
			// A line that there is in any case, behind all others.
			raw, err := s.dial(t.Context(), t, buyer, 8080, "http/1.1")
			if err != nil {
				t.Fatal(err)
			}
			malformed := len(entries(s.envoy, entry{"flags": "DPE"}))
			_, _ = fmt.Fprint(raw, "nonsense\r\n\r\n")
			_, _ = line(raw)
			_ = raw.Close()
			envoytest.Eventually(t, func() error {
				if len(entries(s.envoy, entry{"flags": "DPE"})) == malformed {
					return errors.New("a request that had no route left no line")
				}
				return nil
			})
			allowed, denied := len(entries(s.envoy, entry{"path": path, "status": 200})), len(entries(s.envoy, entry{"path": path, "status": 403}))
			tcp := len(entries(s.envoy, entry{"port": "3306"})) - before
			if (allowed > 0) != wantAllowed || (denied > 0) != wantDenied || (tcp > 0) != wantTCP {
				return fmt.Errorf("%q: %d lines of allowed requests, %d of denied ones, %d of connections", log, allowed, denied, tcp)
			}
			return nil
		})
	}
	until(mesh.LogErrors, false, true, false)
	until(mesh.LogOn, true, true, true)
	until(mesh.LogOff, false, false, false)
	until(mesh.LogErrors, false, true, false)
}
