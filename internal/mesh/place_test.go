package mesh

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNearest(t *testing.T) {
	// An endpoint is written as "NAME zones nodes"; a name in capitals is draining.
	cases := map[string]struct {
		reason    string
		near      place
		service   Service
		endpoints []string
		want      string
	}{
		"NoHints":      {reason: "all are alike", near: place{"a", "n1"}, endpoints: []string{"x", "y"}, want: "x y"},
		"Zone":         {reason: "the zone's own", near: place{"a", "n1"}, endpoints: []string{"x a", "y b"}, want: "x"},
		"SeveralZones": {reason: "an endpoint may serve several zones", near: place{"b", ""}, endpoints: []string{"x a", "y a,b"}, want: "y"},
		"OtherZone":    {reason: "none is for this zone", near: place{"c", ""}, endpoints: []string{"x a", "y b"}, want: "x y"},
		"NoZone":       {reason: "the caller's node has no zone", endpoints: []string{"x a", "y b"}, want: "x y"},
		"OneWithout":   {reason: "one ready endpoint without a hint voids them all", near: place{"a", ""}, endpoints: []string{"x a", "y"}, want: "x y"},
		"Node":         {reason: "the node goes before the zone", near: place{"a", "n1"}, endpoints: []string{"x a n1", "y a n2"}, want: "x"},
		"OtherNode":    {reason: "else the zone", near: place{"a", "n3"}, endpoints: []string{"x a n1", "y b n2"}, want: "x"},
		"NodeHalf":     {reason: "one without a node voids the nodes only", near: place{"a", "n1"}, endpoints: []string{"x a n1", "y a", "z b"}, want: "x y"},
		"Draining":     {reason: "what drains has no say, and gets nothing while others are left", near: place{"a", ""}, endpoints: []string{"x a", "Y", "z b"}, want: "x Y"},
		"OnlyDraining": {reason: "hints are for ready endpoints", near: place{"a", ""}, endpoints: []string{"X a", "Y b"}, want: "X Y"},
		"Local":        {reason: "traffic stays on the node", near: place{"a", "n1"}, service: Service{NodeLocal: true}, endpoints: []string{"x - n1", "y - n2"}, want: "x"},
		"LocalNone":    {reason: "even if nobody is there", near: place{"a", ""}, service: Service{NodeLocal: true}, endpoints: []string{"x - n1"}, want: ""},
		"Headless":     {reason: "the caller has chosen", near: place{"a", ""}, service: Service{Headless: true}, endpoints: []string{"x a", "y b"}, want: "x y"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var in []Endpoint
			for _, text := range tc.endpoints {
				f := strings.Fields(text)
				e := Endpoint{Hostname: f[0], Draining: f[0] < "a"}
				if len(f) > 1 && f[1] != "-" {
					e.ForZones = strings.Split(f[1], ",")
				}
				if len(f) > 2 {
					e.ForNodes = []string{f[2]}
				}
				in = append(in, e)
			}
			var got []string
			for _, e := range tc.near.nearest(&tc.service, in) {
				got = append(got, e.Hostname)
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("%s: got %q, want %q", tc.reason, s, tc.want)
			}
		})
	}
}

// TestPlacesShare holds that only what depends on the place is another.
func TestPlacesShare(t *testing.T) {
	parts := generate(4)
	for i := range parts.Namespaces {
		parts.Namespaces[i].Mode = Permissive
	}
	view := func(s *Snapshot, zone string) *Outbound {
		w := Workload{Identity: s.parts.Workloads[0].Identity, Zone: zone, Node: "node of " + zone}
		return s.outbound(caller{Identity: w.Identity, near: s.near(&w)})
	}
	plain := must(t, parts)
	if view(plain, "a") != view(plain, "b") {
		t.Error("without hints, zones do not share")
	}
	hinted := -1
	for i := range parts.Services {
		if svc := &parts.Services[i]; svc.InMesh && !svc.Headless && len(svc.Endpoints) > 0 {
			hinted = i
			twin := svc.Endpoints[0]
			twin.Address = netip.MustParseAddr("10.9.9.9")
			svc.Endpoints = append(svc.Endpoints, twin)
			for j := range svc.Endpoints {
				svc.Endpoints[j].ForZones = []string{"b"}
			}
			svc.Endpoints[0].ForZones = []string{"a"}
			break
		}
	}
	s := must(t, parts)
	a, b, elsewhere := view(s, "a"), view(s, "b"), view(s, "c")
	if a == b || len(a.Bundles) != len(b.Bundles) || a.Key != b.Key {
		t.Fatalf("views of two zones: %d and %d bundles, keys %s and %s", len(a.Bundles), len(b.Bundles), a.Key, b.Key)
	}
	if elsewhere != view(s, "d") {
		t.Error("zones that no hint is for do not share")
	}
	for i := range a.Bundles {
		name := a.Bundles[i].Name
		if same := a.Bundles[i] == b.Bundles[i]; same == (name == parts.Services[hinted].Name) {
			t.Errorf("%s is shared by both zones: %v", name, same)
		}
		for _, e := range a.Bundles[i].Endpoints {
			if e.ForZones != nil || e.ForNodes != nil {
				t.Errorf("%s still has hints, which would change its key for nothing: %s", name, cmp.Diff(Endpoint{}, e, compareAddrs()))
			}
		}
	}
}
