package xds_test

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

func TestCache(t *testing.T) {
	t.Parallel()
	view := seal(t, bookstore(envoytest.NewCA(t).Bundle()))
	cache := xds.NewCache()
	first := mustSet(t, cache, view)

	t.Run("EqualViewsShareASet", func(t *testing.T) {
		again := view
		again.Outbound, again.Inbound = new(*view.Outbound), new(*view.Inbound) // of another Snapshot
		if mustSet(t, cache, again) != first {
			t.Error("the same View gave another Set")
		}
	})
	t.Run("EncodingIsDeterministic", func(t *testing.T) {
		other := mustSet(t, xds.NewCache(), view)
		if other.Version() != first.Version() || !xds.Diff(first, other).Empty() {
			t.Error("another cache gives another version")
		}
		for _, typ := range xds.Types() {
			for r := range first.All(typ) {
				if !bytes.Equal(r.Wire, other.Resource(typ, r.Name).Wire) {
					t.Errorf("%s %s has other bytes", typ, r.Name)
				}
			}
		}
	})
	t.Run("OneBundleChanges", func(t *testing.T) {
		v := bookstore(view.Trust.Bundle)
		v.Outbound.Bundles[0].Endpoints = v.Outbound.Bundles[0].Endpoints[:1]
		d := xds.Diff(first, mustSet(t, cache, seal(t, v)))
		if len(d.Changed[xds.Endpoints]) != 1 || d.Changed[xds.Endpoints][0].Name != "books/db:3306" {
			t.Errorf("changed endpoints: %v", d.Changed[xds.Endpoints])
		}
		d.Changed[xds.Endpoints] = nil
		if !d.Empty() {
			t.Errorf("an endpoint that goes changes more than endpoints: %v", d)
		}
	})
	t.Run("AClusterTakesItsEndpointsAlong", func(t *testing.T) {
		v := bookstore(view.Trust.Bundle)
		v.Outbound.Bundles[0].Identities = nil
		d := xds.Diff(first, mustSet(t, cache, seal(t, v)))
		if len(d.Changed[xds.Cluster]) != 1 || len(d.Changed[xds.Endpoints]) != 1 {
			t.Errorf("changed: clusters %v, endpoints %v; a cluster warms until its endpoints come again", d.Changed[xds.Cluster], d.Changed[xds.Endpoints])
		}
	})
	t.Run("Forget", func(t *testing.T) {
		cache.Forget()
		kept := mustSet(t, cache, view)
		if kept != first {
			t.Error("what was used since the last Forget is gone")
		}
		cache.Forget()
		cache.Forget()
		if later := mustSet(t, cache, view); later == first || later.Version() != first.Version() {
			t.Error("what nobody used is kept, or comes back with another version")
		}
	})
	t.Run("Concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := cache.Set(view); err != nil {
					t.Error(err)
				}
				cache.Forget()
			})
		}
		wg.Wait()
	})
}

// TestPolicyChangesNoListener holds what lets policy take effect on open
// connections: whatever may change at run time is not in a listener.
func TestPolicyChangesNoListener(t *testing.T) {
	t.Parallel()
	roots := envoytest.NewCA(t).Bundle()
	base := mustSet(t, xds.NewCache(), seal(t, bookstore(roots)))
	cases := map[string]func(*mesh.View){
		"egress":              func(v *mesh.View) { v.Outbound.AllowEgress = true },
		"an HTTP grant":       func(v *mesh.View) { v.Inbound.Ports[0].Rules = v.Inbound.Ports[0].Rules[:1] },
		"the last HTTP grant": func(v *mesh.View) { v.Inbound.Ports[0].Rules = nil },
		"a TCP grant":         func(v *mesh.View) { v.Inbound.Ports[5].Callers = v.Inbound.Ports[5].Callers[:1] },
		"the last TCP grant":  func(v *mesh.View) { v.Inbound.Ports[5].Callers = nil },
		"the mode": func(v *mesh.View) {
			for i := range v.Inbound.Ports {
				if p := &v.Inbound.Ports[i]; !p.PlainText && p.Mode == mesh.Permissive {
					p.Mode = mesh.Enforced
				} else if !p.PlainText {
					p.Mode = mesh.Permissive
				}
			}
		},
		"the roots":                    func(v *mesh.View) { v.Trust.Bundle += envoytest.NewCA(t).Bundle() },
		"a split":                      func(v *mesh.View) { v.Outbound.Bundles[4].Routes[2].Shares[0].Weight = 50 },
		"who may serve":                func(v *mesh.View) { v.Outbound.Bundles[4].Identities = nil },
		"endpoints":                    func(v *mesh.View) { v.Outbound.Bundles[4].Endpoints = nil },
		"an endpoint joining the mesh": func(v *mesh.View) { v.Outbound.Bundles[3].Endpoints[0].Identity = store },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			v := bookstore(roots)
			change(&v)
			d := xds.Diff(base, mustSet(t, xds.NewCache(), seal(t, v)))
			if d.Empty() {
				t.Error("nothing changed at all")
			}
			if len(d.Changed[xds.Listener])+len(d.Removed[xds.Listener]) > 0 {
				t.Errorf("it changes listeners: %v %v", d.Changed[xds.Listener], d.Removed[xds.Listener])
			}
		})
	}
}

func TestSetRefusesWhatEnvoyWould(t *testing.T) {
	t.Parallel()
	roots := envoytest.NewCA(t).Bundle()
	cases := map[string]struct {
		change func(*mesh.View)
		want   string
	}{
		"NoRoots":   {func(v *mesh.View) { v.Trust.Bundle = "" }, "no PEM certificate"},
		"BadRoots":  {func(v *mesh.View) { v.Trust.Bundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" }, "malformed certificate"},
		"PortZero":  {func(v *mesh.View) { v.Inbound.Ports[0].Port = 0 }, "listener inbound"},
		"PortTwice": {func(v *mesh.View) { v.Inbound.Ports[2].Port = 8080 }, "route inbound:8080 is there twice"},
		"Weights":   {func(v *mesh.View) { v.Outbound.Bundles[4].Routes[2].Shares[0].Weight = 1<<32 - 1 }, "route books/store:80"},
		"Regex":     {func(v *mesh.View) { v.Inbound.Ports[0].Rules[1].Match.Path.Value = "(" }, "route inbound:8080"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			v := bookstore(roots)
			tc.change(&v)
			if _, err := xds.NewCache().Set(seal(t, v)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v; want an error that names %s", err, tc.want)
			}
		})
	}
}
