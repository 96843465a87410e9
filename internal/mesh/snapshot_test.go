package mesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// compareAddrs lets go-cmp look at addresses, whose fields are not exported.
func compareAddrs() cmp.Option {
	return cmp.Options{
		cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
		cmpopts.EquateEmpty(),
	}
}

func TestNewSnapshotIgnoresOrder(t *testing.T) {
	parts := generate(20)
	want, err := NewSnapshot(parts)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		shuffleParts(rng, &parts)
		before := text(parts)
		got, err := NewSnapshot(parts)
		if err != nil {
			t.Fatal(err)
		}
		if text(parts) != before {
			t.Error("NewSnapshot changed its argument")
		}
		if got.Version() != want.Version() {
			t.Errorf("another order has another version")
		}
		if d := cmp.Diff(want.Dump(), got.Dump(), compareAddrs()); d != "" {
			t.Errorf("another order makes another snapshot (-want +got):\n%s", d)
		}
		for _, id := range want.Proxies() {
			a, _ := want.View(id)
			b, ok := got.View(id)
			if d := cmp.Diff(a, b, compareAddrs()); d != "" || !ok {
				t.Fatalf("view of %s differs (-want +got):\n%s", id, d)
			}
		}
	}
}

func shuffleParts(rng *rand.Rand, p *Parts) {
	*p = Parts{
		Settings:   p.Settings,
		Namespaces: shuffled(rng, p.Namespaces), Workloads: shuffled(rng, p.Workloads), Services: shuffled(rng, p.Services),
		Grants: shuffled(rng, p.Grants), Splits: shuffled(rng, p.Splits),
	}
	for i := range p.Services {
		s := &p.Services[i]
		s.Identities, s.Endpoints = shuffled(rng, s.Identities), shuffled(rng, s.Endpoints)
	}
	for i := range p.Grants {
		g := &p.Grants[i]
		g.Callers, g.HTTP = shuffled(rng, g.Callers), shuffled(rng, g.HTTP)
	}
}

func shuffled[T any](rng *rand.Rand, in []T) []T {
	out := slices.Clone(in)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func TestVersionNamesTheContent(t *testing.T) {
	a, b := generate(3), generate(3)
	b.Services[0].Endpoints[0].Port++
	one, two := must(t, a), must(t, b)
	if one.Version() == two.Version() {
		t.Error("snapshots that differ in an endpoint have the same version")
	}
}

func TestNewSnapshotJoinsFaults(t *testing.T) {
	ns := []Namespace{{Name: "shop"}, {Name: "shop"}}
	id := Identity{Namespace: "other", ServiceAccount: "web"}
	_, err := NewSnapshot(Parts{
		Namespaces: ns,
		Workloads:  []Workload{{ID: ProxyID{Namespace: "shop", Pod: "p", UID: "u"}, Identity: id}},
		Services: []Service{
			{Name: PortName{ServiceName: ServiceName{Namespace: "shop", Name: "web"}, Port: 80}, InMesh: true, Identities: []Identity{id}},
		},
		Grants: []Grant{{Source: "TrafficTarget shop/t", Server: id}},
		Splits: []Split{{Source: "TrafficSplit shop/s", Matches: []HTTPMatch{{Path: StringMatch{Kind: "glob"}}}}},
	})
	if err == nil {
		t.Fatal("faulty parts made a snapshot")
	}
	for _, want := range []string{
		"the trust domain is empty", "namespace shop is listed twice",
		"workload shop/p/u: identity other/web is not one of its namespace",
		"service shop/web:80: identity other/web is not one of its namespace",
		"grant of TrafficTarget shop/t: it names no caller",
		`split of TrafficSplit shop/s: unknown kind of match "glob"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestViewIsShared(t *testing.T) {
	s := must(t, generate(10))
	ids := s.Proxies()
	views := make([]View, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { views[i], _ = s.View(id) })
	}
	wg.Wait()
	bundles := map[string]*Bundle{}
	for i, v := range views {
		again, _ := s.View(ids[i])
		if again.Inbound != v.Inbound || again.Outbound != v.Outbound || again.Trust != v.Trust {
			t.Errorf("%s: asking again makes another view", ids[i])
		}
		for _, b := range v.Outbound.Bundles {
			if bundles[b.Key] == nil {
				bundles[b.Key] = b
			}
			if bundles[b.Key] != b {
				t.Errorf("%s: bundle %s is made twice", ids[i], b.Name)
			}
		}
	}
	// generate makes two replicas of each service account.
	if views[0].Inbound != views[1].Inbound || views[0].Outbound != views[1].Outbound {
		t.Errorf("the replicas %s and %s do not share their view", ids[0], ids[1])
	}
	if _, ok := s.View(ProxyID{Namespace: "no", Pod: "such", UID: "pod"}); ok {
		t.Error("a pod outside the mesh has a view")
	}
}

func BenchmarkNewSnapshot(b *testing.B) {
	for _, n := range []int{100, 1_000, 5_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			parts := generate(n)
			b.ReportAllocs()
			for b.Loop() {
				must(b, parts)
			}
		})
	}
}

func BenchmarkView(b *testing.B) {
	for _, n := range []int{100, 1_000, 5_000} {
		parts := generate(n)
		b.Run(fmt.Sprintf("services=%d/first", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := must(b, parts)
				b.StartTimer()
				s.View(parts.Workloads[0].ID)
			}
		})
		b.Run(fmt.Sprintf("services=%d/each", n), func(b *testing.B) {
			s := must(b, parts)
			ids := s.Proxies()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.View(ids[i%len(ids)])
			}
		})
	}
}

func must(tb testing.TB, parts Parts) *Snapshot {
	tb.Helper()
	s, err := NewSnapshot(parts)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// generate returns a mesh of n services in namespaces of ten, half of which are
// enforced. Each service has a service account of its own and two replicas, and
// is called by its neighbour.
func generate(n int) Parts {
	p := Parts{Settings: Settings{
		TrustDomain: "cluster.local", ClusterDomain: "cluster.local",
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
	}}
	var last Identity
	for i := range n {
		ns := fmt.Sprintf("team-%03d", i/10)
		if i%10 == 0 {
			mode := Permissive
			if i/10%2 == 0 {
				mode = Enforced
			}
			p.Namespaces = append(p.Namespaces, Namespace{Name: ns, Mode: mode, AllowEgress: i%20 == 0})
		}
		id := Identity{Namespace: ns, ServiceAccount: fmt.Sprintf("app-%d", i)}
		svc := Service{
			Name:     PortName{ServiceName: ServiceName{Namespace: ns, Name: id.ServiceAccount}, Port: 80},
			Protocol: HTTP, InMesh: true, Identities: []Identity{id}, TargetPorts: []uint16{8080},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
		}
		for r := range 2 {
			pod := fmt.Sprintf("%s-%d", id.ServiceAccount, r)
			p.Workloads = append(p.Workloads, Workload{
				ID: ProxyID{Namespace: ns, Pod: pod, UID: "uid-" + pod}, Identity: id, Ports: []WorkloadPort{{Port: 8080, Protocol: HTTP}},
			})
			svc.Endpoints = append(svc.Endpoints, Endpoint{Address: netip.AddrFrom4([4]byte{10, byte(r), byte(i >> 8), byte(i)}), Port: 8080, Identity: id})
		}
		p.Services = append(p.Services, svc)
		if !last.IsZero() {
			p.Grants = append(p.Grants, Grant{
				Source: "TrafficTarget " + id.String(), Server: id, Callers: []Identity{last},
				HTTP: []HTTPMatch{{Path: StringMatch{Kind: Regex, Value: "/.*"}}, {Path: StringMatch{Kind: Exact, Value: "/"}, Methods: []string{"GET"}}},
			})
		}
		last = id
	}
	return p
}
