package server

import (
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestDebug(t *testing.T) {
	w := newWorld(t, nil)
	handler := w.Debug()
	get := func(path string) (int, string) {
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return recorder.Code, recorder.Body.String()
	}
	if code, _ := get("/debug/snapshot"); code != http.StatusServiceUnavailable {
		t.Errorf("want 503 before the first snapshot, got %d", code)
	}
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	cases := map[string]struct {
		path string
		code int
		say  []string
	}{
		"Proxies":      {"/debug/proxies", 200, []string{"proxy: town/a-1/uid-a-1", "identity: town/a", "address: 127.0.0.1", "trustDomain: cluster.local", "roots:"}},
		"Certificates": {"/debug/certificates", 200, []string{"[]"}},
		"Snapshot":     {"/debug/snapshot", 200, []string{"trustDomain: cluster.local", "serviceAccount: shop"}},
		"View":         {"/debug/view?proxy=town/a-1", 200, []string{"outbound:", "name: shop"}},
		"Envoy":        {"/debug/envoy?proxy=town/a-1/uid-a-1", 200, []string{"cluster:", "town/shop:80"}},
		"Unknown":      {"/debug/view?proxy=town/b-1", 404, []string{"town/b-1"}},
		"Nobody":       {"/debug/envoy", 400, []string{"?proxy=NAMESPACE/POD"}},
		"Post":         {"/debug", 404, nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			code, body := get(tc.path)
			if code != tc.code {
				t.Errorf("want %d, got %d: %s", tc.code, code, body)
			}
			for _, word := range tc.say {
				if !strings.Contains(body, word) {
					t.Errorf("want %q in:\n%s", word, body)
				}
			}
			if strings.Contains(body, "PRIVATE KEY") {
				t.Error("it shows a key")
			}
		})
	}
}

func FuzzBind(f *testing.F) {
	ca := newTestCA(f)
	id := mesh.ProxyID{Namespace: "town", Pod: "a-1", UID: "uid-a-1"}
	certificate := ca.leaf(f, "spiffe://cluster.local/ns/town/sa/a", id.UID, 1e9)
	shown, err := newTrust(credentialsOf(f, ca)).verify([]*x509.Certificate{parsed(f, certificate)})
	must(f, err)
	f.Add(id.String())
	f.Add("town/a-1/other")
	f.Add("//")
	f.Fuzz(func(t *testing.T, node string) {
		got, err := bind(shown, node)
		if err == nil && (got.Namespace != "town" || got.UID != id.UID) {
			t.Errorf("%q may speak for %s as %s", node, got, shown.identity)
		}
	})
}
