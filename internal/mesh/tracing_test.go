package mesh

import "testing"

func TestCollectorsService(t *testing.T) {
	otel := PortName{ServiceName{"watch", "otel"}, 4317}
	for host, want := range map[string]PortName{
		"otel.watch": otel, "otel.watch.svc": otel, "otel.watch.svc.cluster.local": otel, "otel.watch.svc.cluster.local.": otel,
		"otel": {}, "otel.watch.example.com": {}, "otel.watch.svc.example.com": {}, "10.1.2.3": {}, "::1": {}, ".watch": {},
	} {
		got, ok := (&Tracing{Host: host, Port: 4317}).Service("cluster.local")
		if got != want || ok != (want != PortName{}) {
			t.Errorf("%s: got %v, %v, want %v", host, got, ok, want)
		}
	}
	if _, ok := (*Tracing)(nil).Service("cluster.local"); ok {
		t.Error("no collector is a Service")
	}
}

// TestCollector follows the spans of a proxy that may call the collector, and of one
// that may not.
func TestCollector(t *testing.T) {
	buyer, thief, otel := Identity{"shop", "buyer"}, Identity{"shop", "thief"}, Identity{"watch", "otel"}
	build := func(host string) *Snapshot {
		t.Helper()
		snap, err := NewSnapshot(Parts{
			Settings:   Settings{TrustDomain: "cluster.local", ClusterDomain: "cluster.local", Tracing: &Tracing{Host: host, Port: 4317}},
			Namespaces: []Namespace{{Name: "shop"}, {Name: "watch"}},
			Services: []Service{{
				Name: PortName{ServiceName{"watch", "otel"}, 4317}, Protocol: GRPC, InMesh: true,
				Identities: []Identity{otel}, TargetPorts: []uint16{4317},
			}},
			Grants: []Grant{{Source: "TrafficTarget watch/spans", Server: otel, Callers: []Identity{buyer}, HTTP: []HTTPMatch{{}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return snap
	}
	snap := build("otel.watch.svc")
	if c := snap.Outbound(buyer).Collector; c.Bundle == nil || c.Host != "" {
		t.Errorf("whoever may call the collector gets %+v", c)
	}
	if c := snap.Outbound(thief).Collector; c.Bundle != nil || c.Host != "" {
		t.Errorf("whoever may not gets %+v", c)
	}
	if c := build("missing.watch.svc").Outbound(buyer).Collector; c.Bundle != nil || c.Host != "" {
		t.Errorf("a collector that is missing in the mesh is reached as %+v", c)
	}
	if c := build("otel.elsewhere.svc").Outbound(thief).Collector; c.Host != "otel.elsewhere.svc" || c.Port != 4317 {
		t.Errorf("a collector outside the mesh is reached as %+v", c)
	}
	if snap.Outbound(buyer).Key != build("missing.watch.svc").Outbound(buyer).Key {
		t.Error("the collector is in the key of what has nothing to do with it")
	}
	bad := Parts{Settings: Settings{TrustDomain: "cluster.local", Tracing: &Tracing{Host: "otel.watch", Port: 4317, Sampling: Always + 1}}}
	if _, err := NewSnapshot(bad); err == nil {
		t.Error("more than every request can be traced")
	}
}
