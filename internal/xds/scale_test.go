package xds_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestScaleFromZero keeps a client's connections while the only pod of a Service
// comes and goes: the client hears 503 meanwhile, never that it is denied, and no
// listener changes.
func TestScaleFromZero(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveHTTP(t, w.host, ":8080", "alive")
	serveBanner(t, w.host, ":3306", "mysql")
	apply(t, w.envoy, w.view(everyone(3306, mesh.TCP), everyone(8080, mesh.HTTP)))
	empty := []mesh.Bundle{
		{Name: port("books", "store", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1")},
		{Name: port("books", "db", 3306), Protocol: mesh.TCP, Addresses: addrs("10.96.0.2")},
	}
	served := []mesh.Bundle{empty[0], empty[1]}
	for i, at := range []string{"10.1.0.2:8080", "10.1.0.2:3306"} {
		served[i].Identities, served[i].Endpoints = []mesh.Identity{store}, []mesh.Endpoint{endpoint(at, store)}
	}
	app := w.app(t)
	const changes = "/stats?filter=listener_manager.listener_(added|modified|in_place_updated|removed)"
	apply(t, w.caller, w.calls(false, empty...))
	before, _ := w.caller.Get(t.Context(), changes)
	for i, step := range []struct {
		bundles []mesh.Bundle
		want    int
	}{{empty, 503}, {served, 200}, {empty, 503}, {served, 200}} {
		apply(t, w.caller, w.calls(false, step.bundles...))
		var got reply
		// The acknowledgement comes before every worker has the new endpoints.
		envoytest.Eventually(t, func() error {
			if got = do(t, app, "GET", "http://10.96.0.1/"); got.code != step.want {
				return fmt.Errorf("step %d: got %d %s, want %d", i, got.code, got.body, step.want)
			}
			return nil
		})
		if i > 0 && !got.reused {
			t.Errorf("step %d needed a new connection", i)
		}
		if banner, err := w.banner(t.Context(), "10.96.0.2:3306"); (banner == "mysql") != (step.want == 200) || banner == "" && !errors.Is(err, io.EOF) && !isReset(err) {
			t.Errorf("step %d: TCP got %q, %v", i, banner, err)
		}
	}
	if after, _ := w.caller.Get(t.Context(), changes); after != before {
		t.Errorf("scaling changed a listener: before\n%safter\n%s", before, after)
	}
}
