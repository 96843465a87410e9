package xds_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
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

// A logged world is a world whose two pods are told what to log.
type loggedWorld struct {
	*world
	first map[string]string // versions of the listeners
}

// views are those of the caller and of the server, each with a port that always logs.
func (w *loggedWorld) views(own, ports mesh.AccessLog) (caller, server mesh.View) {
	web, db := everyone(8080, mesh.HTTP), everyone(3306, mesh.TCP)
	web.AccessLog, db.AccessLog = ports, ports
	mark := mesh.InboundPort{Port: 8081, Protocol: mesh.HTTP, Mode: mesh.Permissive, PlainText: true, AccessLog: mesh.LogOn}
	server = w.view(web, db, mark)
	server.Inbound.AccessLog = own
	caller = w.calls(false,
		mesh.Bundle{Name: port("books", "store", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: []mesh.Identity{store}, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8080", store)}},
		mesh.Bundle{Name: port("books", "db", 3306), Protocol: mesh.TCP, Addresses: addrs("10.96.0.2"), Identities: []mesh.Identity{store}, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:3306", store)}},
		mesh.Bundle{Name: port("books", "gone", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.3")},
	)
	caller.Inbound.AccessLog, caller.Inbound.Ports = own, []mesh.InboundPort{mark}
	return caller, server
}

// apply tells both proxies, and holds that no listener changes.
func (w *loggedWorld) apply(t *testing.T, own, ports mesh.AccessLog) {
	t.Helper()
	caller, server := w.views(own, ports)
	for _, v := range []mesh.View{caller, server} {
		for r := range set(t, v).All(xds.Listener) {
			key := v.Inbound.Identity.String() + " " + r.Name
			if w.first[key] == "" {
				w.first[key] = r.Version
			}
			if w.first[key] != r.Version {
				t.Errorf("%q changes listener %s", own+ports, key)
			}
		}
	}
	apply(t, w.envoy, server)
	apply(t, w.caller, caller)
}

// What leaves a line in the two logs.
type lines struct{ Allowed, Denied, TCP, RefusedTCP, NoCertificate, Sent, SentTCP, Failed, Refused bool }

// call makes one call of each kind, and returns what left a line.
func (w *loggedWorld) call(t *testing.T, path string) lines {
	t.Helper()
	count := func(e *envoytest.Envoy, want entry) int { return len(entries(e, want)) }
	tcp, refused, none := count(w.envoy, entry{"port": "3306", "decision": "allowed"}), count(w.envoy, entry{"port": "3306", "decision": "denied"}), count(w.envoy, entry{"reason": "no certificate of this mesh"})
	sentTCP := count(w.caller, entry{"service": "books/db:3306"})
	app := w.app(t)
	do(t, app, "GET", "http://10.96.0.1"+path)
	do(t, app, "GET", "http://10.96.0.3"+path+"/failed")
	do(t, app, "GET", "http://10.96.0.99"+path+"/refused")
	do(t, w.server.client(t, thief, 8080), "GET", "https://store"+path+"/thief")
	if got, err := w.banner(t.Context(), "10.96.0.2:3306"); got != "welcome" {
		t.Fatal(got, err)
	}
	if c, err := w.dial(t.Context(), t, thief, 3306); err == nil {
		_, _ = line(c)
	}
	raw, err := w.peer.Dial(t.Context(), "tcp", "10.1.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = line(tls.Client(raw, &tls.Config{ServerName: "8080.store.books.outrigger", InsecureSkipVerify: true}))
	_ = raw.Close()
	// Lines that there are in any case, behind all others.
	for at, e := range map[string]*envoytest.Envoy{"10.1.0.2": w.envoy, "10.1.0.1": w.caller} {
		plain := &http.Transport{DialContext: w.peer.Dial}
		do(t, &http.Client{Transport: plain}, "GET", "http://"+at+":8081"+path+"/mark")
		plain.CloseIdleConnections()
		logs(t, e, entry{"path": path + "/mark"})
	}
	return lines{
		Allowed: count(w.envoy, entry{"path": path}) > 0, Denied: count(w.envoy, entry{"path": path + "/thief"}) > 0,
		TCP:        count(w.envoy, entry{"port": "3306", "decision": "allowed"}) > tcp,
		RefusedTCP: count(w.envoy, entry{"port": "3306", "decision": "denied"}) > refused, NoCertificate: count(w.envoy, entry{"reason": "no certificate of this mesh"}) > none,
		Sent: count(w.caller, entry{"path": path}) > 0, SentTCP: count(w.caller, entry{"service": "books/db:3306"}) > sentTCP,
		Failed: count(w.caller, entry{"path": path + "/failed"}) > 0, Refused: count(w.caller, entry{"path": path + "/refused"}) > 0,
	}
}

func TestAccessLogSetting(t *testing.T) {
	t.Parallel()
	w := &loggedWorld{world: newWorld(t), first: map[string]string{}}
	serveHTTP(t, w.host, ":8080", "app")
	serveBanner(t, w.host, ":3306", "welcome")
	errorsOnly := lines{Denied: true, RefusedTCP: true, NoCertificate: true, Failed: true, Refused: true}
	all := lines{true, true, true, true, true, true, true, true, true}
	n := 0
	for _, step := range []struct {
		own, ports mesh.AccessLog
		want       lines
	}{
		{mesh.LogErrors, mesh.LogErrors, errorsOnly},
		{mesh.LogOn, mesh.LogOn, all},
		{mesh.LogOff, mesh.LogOff, lines{}},
		{mesh.LogOff, mesh.LogOn, lines{Allowed: true, Denied: true, TCP: true, RefusedTCP: true}},
		{mesh.LogOn, mesh.LogOff, lines{NoCertificate: true, Sent: true, SentTCP: true, Failed: true, Refused: true}},
		{mesh.LogErrors, mesh.LogErrors, errorsOnly},
	} {
		w.apply(t, step.own, step.ports)
		// An acknowledgement comes before every worker has the new setting.
		envoytest.Eventually(t, func() error {
			n++
			if diff := cmp.Diff(step.want, w.call(t, fmt.Sprintf("/try%d", n))); diff != "" {
				return fmt.Errorf("%q for its own, %q for its ports (-want +got):\n%s", step.own, step.ports, diff)
			}
			return nil
		})
	}
}
